"""What other pruning libraries call the same things: ``weight_orig``, ``weight_mask`` and ``weight_mask_amount``.

Core ML Tools, ``torch.nn.utils.prune`` and Lightning's ModelPruning save a weight and its mask apart. So does
coreai-opt, as ``parametrizations.weight.original`` and ``parametrizations.weight.0.mask``. Here such state dicts are
read as those of a plain, pruned module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.basics import (
    has_values,
    home,
    load_checkpoint,
    put_in_place,
    writing_to,
)
from lightning_prune.errors import CheckpointError, one_line

__all__ = ["ForeignWeights", "convert_checkpoint", "plain_state_dict"]

# The tensors of a pruned parameter in a state dict of coreai-opt, while it is trained and when it is finalized.
_PARAMETRIZATION = re.compile(
    r"(?P<module>(?:.*\.)?)parametrizations\.(?P<parameter>\w+)\.(?P<leaf>original|0\.(?:mask|step_count|nonzero_data))"
)
_SUFFIXES = {"original": "_orig", "0.mask": "_mask"}


def plain_state_dict(
    state_dict: Mapping[str, Any], dense: dict[str, Tensor] | None = None, *, keep: Container[str] = ()
) -> dict[str, Any]:
    """Give a state dict the plain names of a model that never heard of pruning, with the pruned weights under them.

    ``weight_orig`` and ``weight_mask`` (of zeros and ones), which Core ML Tools, torch.nn.utils.prune, Lightning's
    ModelPruning and this library's hook masking make, become ``weight``; so do ``parametrizations.weight.original`` and
    ``parametrizations.weight.0.mask`` of coreai-opt. Metadata of Core ML Tools and step counts are left out.
    Everything else, a buffer that happens to be called ``causal_mask`` too, stays as it is and in its order.

    Args:
        state_dict: The state dict; not changed.
        dense: Filled with the weights as they were before masking, by plain name.
        keep: Names that the model itself has, which are left alone.

    Raises:
        CheckpointError: A weight or its mask is sparse, quantized or a meta tensor.

    Example:
        >>> state = {"weight_orig": torch.tensor([1.0, -2.0]), "weight_mask": torch.tensor([1, 0]), "causal_mask": 1}
        >>> plain_state_dict(state)
        {'weight': tensor([1., 0.]), 'causal_mask': 1}
    """
    plain: dict[str, Any] = {}
    state_dict = _as_orig_and_mask(state_dict, keep)
    for name, value in state_dict.items():
        if not isinstance(name, str):
            plain[name] = value
            continue
        if "_COREML_/" in name:
            continue
        base, _, suffix = name.rpartition("_")
        if not _is_masked(state_dict, base) or f"{base}_orig" in keep or suffix not in ("orig", "mask", "amount"):
            plain[name] = value
        elif suffix == "orig":
            kept = state_dict[f"{base}_mask"].to(value.device) != 0
            plain[base] = torch.where(kept, value, torch.zeros((), dtype=value.dtype, device=value.device))
            if dense is not None:
                dense[base] = value
    return plain


def _as_orig_and_mask(state_dict: Mapping[str, Any], keep: Container[str]) -> Mapping[str, Any]:
    """The state dict with the parametrizations of coreai-opt under the names that the other libraries use."""
    renamed: dict[str, Any] = {}
    is_renamed = False
    for name, value in state_dict.items():
        found = _PARAMETRIZATION.fullmatch(name) if isinstance(name, str) else None
        if found is None or name in keep or not _is_pruning(state_dict, name.removesuffix(found["leaf"])):
            renamed[name] = value
            continue
        is_renamed = True
        if found["leaf"] in _SUFFIXES:
            renamed[f"{found['module']}{found['parameter']}{_SUFFIXES[found['leaf']]}"] = value
    return renamed if is_renamed else state_dict


def _is_pruning(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether a parametrization is one of coreai-opt: nobody else counts steps beside a mask, or keeps values of it."""
    mask = f"{prefix}0.mask" in state_dict and f"{prefix}original" in state_dict
    return mask and (f"{prefix}0.step_count" in state_dict or f"{prefix}0.nonzero_data" in state_dict)


def _is_masked(state_dict: Mapping[str, Any], base: str) -> bool:
    """Whether a state dict holds a weight and its mask, and not two tensors that happen to be called so."""
    original, mask = state_dict.get(f"{base}_orig"), state_dict.get(f"{base}_mask")
    if not isinstance(original, Tensor) or not isinstance(mask, Tensor) or mask.ndim != original.ndim:
        return False
    for name, tensor in ((f"{base}_orig", original), (f"{base}_mask", mask)):
        if not has_values(tensor):
            raise CheckpointError(
                f"{name} must hold its numbers one by one to be masked, but is sparse, quantized or on the meta "
                "device. Save it dense: tensor.to_dense()."
            )
    fits = all(length in (1, size) for length, size in zip(mask.shape, original.shape, strict=True))
    return fits and base not in state_dict and bool(((mask == 0) | (mask == 1)).all())


def convert_checkpoint(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, float]:
    """Rewrite a checkpoint or state dict of another pruning library with plain names and pruned weights.

    Args:
        source: A file that ``torch.load(weights_only=True)`` reads: a Lightning checkpoint, or a bare state dict.
        target: Where to write; the file appears only when it is complete.
        overwrite: Replace ``target`` if it is there.

    Returns:
        Fraction of zeros of each weight that was converted.

    Raises:
        CheckpointError: The source cannot be read, the target exists or cannot be written, or a weight or its mask is
            sparse, quantized or a meta tensor.
    """
    source, target = home(source), home(target)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists. Write to another path, or pass overwrite=True.")
    checkpoint, state = load_checkpoint(source)
    dense: dict[str, Tensor] = {}
    plain = plain_state_dict(state, dense)
    try:
        with writing_to(target) as place:
            torch.save(plain if state is checkpoint else {**checkpoint, "state_dict": plain}, place)
            put_in_place(place, target)
    except (OSError, RuntimeError) as error:  # torch has errors of its own for a full disk
        raise CheckpointError(f"{target} cannot be written: {one_line(error)}") from error
    return {name: float((plain[name] == 0).sum() / max(plain[name].numel(), 1)) for name in dense}


class ForeignWeights:
    """Lets a module load a state dict that another pruning library made, and remembers its dense weights.

    Attributes:
        dense: Weights as they were before masking, by plain name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.dense: dict[str, Tensor] = {}
        self._order: list[str] = []
        self._handles = [
            module.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
                _PlainNames(self.dense, self._order)
            )
        ]

    def follow(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Let the optimizers of the module load states from the same checkpoint.

        ``torch.nn.utils.prune`` puts a weight that it prunes behind the bias of its module, and an optimizer that was
        made after it counts them in that order.
        """
        if not self._order:
            return
        places = {name: place for place, name in enumerate(self._order)}
        order = {id(parameter): places.get(name, 0) for name, parameter in module.named_parameters()}
        self._handles += [optimizer.register_load_state_dict_pre_hook(_SavedOrder(order)) for optimizer in optimizers]

    def remove(self) -> None:
        """Let the module and its optimizers load states as before."""
        for handle in self._handles:
            handle.remove()


class _PlainNames:
    """Hook of a module; an object, so that a module that carries it can be copied and pickled."""

    def __init__(self, dense: dict[str, Tensor], order: list[str]) -> None:
        self._dense, self._order = dense, order

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        plain = plain_state_dict(state_dict, self._dense, keep=set(module.state_dict()))
        self._order[:] = plain
        if plain.keys() != state_dict.keys():
            state_dict.clear()
            state_dict.update(plain)


class _SavedOrder:
    """Hook of an optimizer: gives each parameter its own state, where the saved ones stand in another order."""

    def __init__(self, order: Mapping[int, int]) -> None:
        self._order = order

    def __call__(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        states, groups, misfits = state_dict["state"], [], [0, 0]
        for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):
            parameters, indices = group["params"], saved["params"]
            if len(parameters) != len(indices):
                return None  # the optimizer says so itself
            by_place = sorted(parameters, key=lambda parameter: self._order.get(id(parameter), 0))
            moved = {id(parameter): index for parameter, index in zip(by_place, indices, strict=True)}
            reordered = [moved[id(parameter)] for parameter in parameters]
            groups.append({**saved, "params": reordered})
            for which, row in enumerate((indices, reordered)):
                misfits[which] += sum(
                    not _fits(states.get(index, {}), parameter)
                    for index, parameter in zip(row, parameters, strict=True)
                )
        return {**state_dict, "param_groups": groups} if misfits[1] < misfits[0] else None


def _fits(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether an optimizer's state may be that of a parameter, by its shapes."""
    return all(value.shape == parameter.shape for value in state.values() if isinstance(value, Tensor) and value.ndim)
