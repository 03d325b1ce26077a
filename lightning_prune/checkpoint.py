"""The state of a pruner as plain numbers and tensors, which ``torch.load(weights_only=True)`` accepts.

Masks travel as bits, pruned-away values as one tensor a parameter. A state is checked as a whole before any of it is
used, so that a damaged one never leaves a model half restored.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.config import ModuleMagnitudePrunerConfig
from lightning_prune.errors import CheckpointError
from lightning_prune.files import put_in_place, writing_to
from lightning_prune.masks import mask_shape
from lightning_prune.paths import home
from lightning_prune.plan import PrunedParameter
from lightning_prune.schedules import PruningScheduler
from lightning_prune.sharding import Box

__all__ = [
    "FORMAT_VERSION",
    "ForeignWeights",
    "ParameterState",
    "convert_checkpoint",
    "dump_state",
    "parse_state",
    "plain_state_dict",
]

FORMAT_VERSION = 1
_BITS = 2**24  # bits of a mask that are counted at a time


@dataclass(frozen=True)
class ParameterState:
    """What is remembered of one pruned parameter.

    Attributes:
        initial_sparsity: Fraction of zeros from which the schedule started.
        sparsity: Fraction of zeros that the schedule asked for last.
        mask: Bytes 0 and 1 that broadcast over the weight.
        pruned_values: Dense values where the mask is 0, in its order; None if they are forgotten or all zero.
        floor: Fraction of zeros below which the schedule may not fall, after a change of rules.
        schedule: The schedule in steps. What is saved holds it only where the rule has it in units of the run; what is
            read holds it only where the rule is still the same.
        is_other_rule: Whether the rule was another one when the state was saved.
    """

    initial_sparsity: float
    sparsity: float
    mask: Tensor
    pruned_values: Tensor | None
    floor: float = 0.0
    schedule: PruningScheduler | None = None
    is_other_rule: bool = False


def dump_state(
    step_count: int, scope: str, parameters: Iterable[tuple[PrunedParameter, ParameterState]]
) -> dict[str, Any]:
    """Turn the state of a pruner into plain values."""
    entries = {one.name: _dump_parameter(one, state) for one, state in parameters}
    return {"version": FORMAT_VERSION, "step_count": step_count, "scope": scope, "parameters": entries}


def parse_state(
    state: Mapping[str, Any],
    parameters: Sequence[PrunedParameter],
    *,
    scope: str = "layer",
    boxes: Sequence[Box | None] | None = None,
    allow_config_change: bool = False,
) -> tuple[int, list[ParameterState]]:
    """Check a state against the parameters that it must fit, and read it.

    Args:
        state: What :func:`dump_state` gave.
        parameters: The parameters that are pruned now.
        scope: What is ranked together now, a layer or all of them.
        boxes: For each parameter the part that this process holds; None for the whole.
        allow_config_change: Accept that a rule (a target, a schedule) differs from the one that the state was saved
            with; names and shapes must fit all the same.

    Returns:
        The step count, and one :class:`ParameterState` for each of ``parameters``.

    Raises:
        CheckpointError: The state is damaged, of an unknown version, or belongs to another model or configuration.
    """
    try:
        version, step_count, entries = state["version"], int(state["step_count"]), dict(state["parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The pruning state is damaged: {error!r} while reading it.") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"The pruning state has format version {version}, this version of lightning_prune reads {FORMAT_VERSION}. "
            "Load it with the version that wrote it."
        )
    names = [one.name for one in parameters]
    lost, new = [name for name in entries if name not in names], [name for name in names if name not in entries]
    if lost or new:
        changes = [f"the checkpoint pruned {', '.join(lost)}, which are not pruned now"] if lost else []
        changes += [f"pruned now, but not in the checkpoint: {', '.join(new)}"] if new else []
        raise CheckpointError(
            f"The pruning state belongs to another model or configuration: {'; '.join(changes)}. "
            "Resume with the model and rules of the checkpoint, or load only its weights and start a new fit, "
            "which continues from their sparsity."
        )
    if not allow_config_change:
        if state.get("scope", "layer") != scope:
            raise CheckpointError(
                f'The pruning state was saved with scope="{state["scope"]}", but this is a run with scope="{scope}". '
                "Resume with the scope of the checkpoint, or pass allow_config_change=True to go on with this one."
            )
        for one in parameters:
            _check_rule(one, entries[one.name])
    parts = [None] * len(parameters) if boxes is None else boxes
    return step_count, [
        _parse_parameter(one, entries[one.name], box) for one, box in zip(parameters, parts, strict=True)
    ]


def plain_state_dict(
    state_dict: Mapping[str, Any], dense: dict[str, Tensor] | None = None, *, keep: Container[str] = ()
) -> dict[str, Any]:
    """Give a state dict the plain names of a model that never heard of pruning, with the pruned weights under them.

    ``weight_orig`` and ``weight_mask`` (of zeros and ones), which Core ML Tools, torch.nn.utils.prune, Lightning's
    ModelPruning and this library's hook masking make, become ``weight``; metadata of Core ML Tools is left out.
    Everything else, a buffer that happens to be called ``causal_mask`` too, stays as it is and in its order.

    Args:
        state_dict: The state dict; not changed.
        dense: Filled with the weights as they were before masking, by plain name.
        keep: Names that the model itself has, which are left alone.

    Example:
        >>> state = {"weight_orig": torch.tensor([1.0, -2.0]), "weight_mask": torch.tensor([1, 0]), "causal_mask": 1}
        >>> plain_state_dict(state)
        {'weight': tensor([1., 0.]), 'causal_mask': 1}
    """
    plain: dict[str, Any] = {}
    for name, value in state_dict.items():
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


def _is_masked(state_dict: Mapping[str, Any], base: str) -> bool:
    """Whether a state dict holds a weight and its mask, and not two tensors that happen to be called so."""
    original, mask = state_dict.get(f"{base}_orig"), state_dict.get(f"{base}_mask")
    if not isinstance(original, Tensor) or not isinstance(mask, Tensor) or mask.ndim != original.ndim:
        return False
    fits = all(one in (1, size) for one, size in zip(mask.shape, original.shape, strict=True))
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
        CheckpointError: The source cannot be read, or the target exists.
    """
    source, target = home(source), home(target)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists. Write to another path, or pass overwrite=True.")
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for files that are no checkpoints
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{source} cannot be read as a checkpoint: {first_line}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{source} must hold a state dict or a checkpoint, got {type(checkpoint).__name__}.")
    is_checkpoint = isinstance(checkpoint.get("state_dict"), Mapping)
    dense: dict[str, Tensor] = {}
    plain = plain_state_dict(checkpoint["state_dict"] if is_checkpoint else checkpoint, dense)
    with writing_to(target) as place:
        torch.save({**checkpoint, "state_dict": plain} if is_checkpoint else plain, place)
        put_in_place(place, target)
    return {name: float((plain[name] == 0).sum() / plain[name].numel()) for name in dense}


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
        self._handles += [one.register_load_state_dict_pre_hook(_SavedOrder(order)) for one in optimizers]

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
            by_place = sorted(parameters, key=lambda one: self._order.get(id(one), 0))
            moved = {id(one): index for one, index in zip(by_place, indices, strict=True)}
            reordered = [moved[id(one)] for one in parameters]
            groups.append({**saved, "params": reordered})
            for which, row in enumerate((indices, reordered)):
                misfits[which] += sum(
                    not _fits(states.get(index, {}), one) for index, one in zip(row, parameters, strict=True)
                )
        return {**state_dict, "param_groups": groups} if misfits[1] < misfits[0] else None


def _fits(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether an optimizer's state may be that of a parameter, by its shapes."""
    return all(value.shape == parameter.shape for value in state.values() if isinstance(value, Tensor) and value.ndim)


def _dump_parameter(one: PrunedParameter, state: ParameterState) -> dict[str, Any]:
    packed = torch.from_numpy(np.packbits(state.mask.cpu().contiguous().numpy().reshape(-1)))
    values = None if state.pruned_values is None else state.pruned_values.cpu()
    return {
        "shape": list(one.shape),
        "rule": _rule_text(one),
        "schedule": _schedule_text(one, state),
        "initial_sparsity": state.initial_sparsity,
        "sparsity": state.sparsity,
        "floor": state.floor,
        "mask": packed,
        "mask_shape": list(state.mask.shape),
        "pruned_values": values,
        "digest": _digest(packed, values),
    }


def _parse_parameter(one: PrunedParameter, entry: Mapping[str, Any], box: Box | None) -> ParameterState:
    try:
        if list(entry["shape"]) != list(one.shape):
            raise CheckpointError(
                f"{one.name} has shape {list(entry['shape'])} in the pruning state and {list(one.shape)} now. "
                "Resume with the model of the checkpoint."
            )
        packed, values, shape = entry["mask"], entry["pruned_values"], tuple(entry["mask_shape"])
        if shape != mask_shape(one.shape, granularity=one.config.granularity):
            raise CheckpointError(
                f"{one.name}: the mask of the checkpoint has shape {shape}, which does not fit the granularity "
                f"{one.config.granularity} of now. Resume with the granularity of the checkpoint."
            )
        if _digest(packed, values) != entry["digest"]:
            raise CheckpointError(f"The pruning state of {one.name} is damaged: its digest does not fit its content.")
        if box is None:
            mask = _unpack(packed, 0, prod(shape)).reshape(shape)
        else:
            mask, values = _cut_out(packed, shape, values, one.shape, box)
        is_other_rule, schedule = entry["rule"] != _rule_text(one), entry["schedule"]
        return ParameterState(
            float(entry["initial_sparsity"]),
            float(entry["sparsity"]),
            mask,
            values,
            float(entry["floor"]),
            None if schedule is None or is_other_rule else _read_schedule(schedule),
            is_other_rule,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"The pruning state of {one.name} is damaged: {error!r} while reading it.") from error


def _unpack(packed: Tensor, start: int, stop: int) -> Tensor:
    """Bits ``start`` to ``stop`` of a packed mask, as bytes 0 and 1."""
    first = start // 8
    bits = np.unpackbits(packed.numpy()[first : -(-stop // 8)], count=stop - 8 * first)
    return torch.from_numpy(bits[start - 8 * first :])


def _cut_out(
    packed: Tensor, mask_shape: tuple[int, ...], values: Tensor | None, shape: tuple[int, ...], box: Box
) -> tuple[Tensor, Tensor | None]:
    """The part of a mask, and of the pruned values, of one box of the weight; no whole weight is made."""
    part = box.narrowed(mask_shape)
    width, (rows, *rest) = prod(mask_shape[1:]), part.shape
    top = part.start[0] if prod(part.shape) else 0
    strip = _unpack(packed, top * width, (top + rows) * width).reshape(rows, *mask_shape[1:])  # whole rows
    mask = strip[part.within(Box((top, *(0 for _ in rest)), part.stop))]
    if values is None:
        return mask, None
    repeats = prod(shape) // prod(mask_shape)
    before = top * width - sum(
        int(_unpack(packed, at, min(at + _BITS, top * width)).sum(dtype=torch.int64))
        for at in range(0, top * width, _BITS)
    )
    pruned = strip.expand(rows, *shape[1:]) == 0
    dense = values.new_zeros(pruned.shape)
    dense[pruned] = values[before * repeats : before * repeats + int(pruned.sum())]
    dense = dense[box.within(Box((top, *(0 for _ in rest)), box.stop))] if prod(box.shape) else dense[:0]
    return mask, dense[mask.expand(dense.shape) == 0]


def _check_rule(one: PrunedParameter, entry: Mapping[str, Any]) -> None:
    try:
        before, now = json.loads(entry["rule"]), json.loads(_rule_text(one))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The pruning state of {one.name} is damaged: {error!r} while reading it.") from error
    for field in now:
        if before.get(field) != now[field]:
            raise CheckpointError(
                f"{one.name}: {field} was {before.get(field)} in the checkpoint and is {now[field]} now. "
                "Resume with the configuration of the checkpoint, or pass allow_config_change=True to change it."
            )


def _rule_text(one: PrunedParameter) -> str:
    """The rule as the user wrote it: a run that is resumed for longer has the same one."""
    return json.dumps(one.config.as_dict(), default=repr)


def _schedule_text(one: PrunedParameter, state: ParameterState) -> str | None:
    """The schedule in steps, of a rule that has it in units of the run; None where the rule says all."""
    if state.schedule is None or not state.schedule.is_resolved or one.config.schedule.is_resolved:
        return None
    return json.dumps(replace(one.config, scheduler=state.schedule).as_dict()["scheduler"], default=repr)


def _read_schedule(text: str) -> PruningScheduler:
    return ModuleMagnitudePrunerConfig(scheduler=json.loads(text)).schedule


def _digest(packed: Tensor, values: Tensor | None) -> int:
    digest = zlib.crc32(packed.numpy().tobytes())
    return digest if values is None else zlib.crc32(values.contiguous().view(torch.uint8).numpy().tobytes(), digest)
