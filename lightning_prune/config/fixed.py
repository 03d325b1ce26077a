"""A configuration that chooses nothing: masks from elsewhere, under which the rest is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_prune.basics import check_claims, has_values, load_tensors, read_safetensors, uncompiled_name
from lightning_prune.config.levels import MagnitudePrunerConfig
from lightning_prune.errors import CheckpointError, ConfigError, shown

__all__ = ["FixedMasks"]

_LEVELS = ("global_config", "module_type_configs", "module_name_configs")


class FixedMasks(MagnitudePrunerConfig):
    """Masks from elsewhere (SparseGPT, Wanda, a pruned checkpoint), which hold for a whole training.

    It stands where a configuration does: ``MagnitudePruningCallback(FixedMasks(masks))``, and likewise for
    :class:`~lightning_prune.MagnitudePruner`. Nothing is ranked, and no mask changes: what a mask prunes is zero from
    ``prepare`` on, in every forward and every checkpoint, and what it keeps is trained. Parameters without a mask are
    trained as they are.

    Args:
        masks: Bool tensors (True = keep) by the full names of parameters, each of the shape of its parameter or one
            that broadcasts to it; or the path of such a dict in a file of safetensors (``.safetensors``) or of
            ``torch.save``, which is read with ``weights_only=True``. The masks are copied.

    Raises:
        ConfigError: There are no masks, or one is no bool tensor; a file cannot be read. Names and shapes are compared
            with the model when it is prepared, and by ``plan(model)``; a mask that keeps nothing is refused there too.

    Example:
        >>> from lightning_prune import MagnitudePruner
        >>> model = torch.nn.Linear(2, 2)
        >>> pruner = MagnitudePruner(model, FixedMasks({"weight": torch.tensor([[True, False], [False, True]])}))
        >>> (pruner.prepare().weight != 0).tolist()
        [[True, False], [False, True]]
        >>> pruner.plan.records()[0]["structure"], pruner.plan.records()[0]["target_sparsity"]
        ('given mask', 0.5)
    """

    masks: Mapping[str, Tensor] | None
    """The masks by name; None where they are the zeros of the model."""

    def __init__(self, masks: Mapping[str, Tensor] | str | os.PathLike[str]) -> None:
        self._fill(_checked(_read(Path(masks)) if isinstance(masks, (str, os.PathLike)) else masks))

    @classmethod
    def from_zeros(cls) -> FixedMasks:
        """Keep what is zero in the model when it is prepared, which is when a fit starts.

        Every weight of rank 2 and more that has zeros, but not zeros alone, is masked by them: a weight that is zero
        altogether was most often initialised so, and is trained. Zeros of biases and of the scales of norms are trained
        too; give their masks by name to keep them.

        Example:
            >>> from lightning_prune import plan_pruning
            >>> model = torch.nn.Linear(2, 2)
            >>> model.weight.data = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
            >>> plan_pruning(model, FixedMasks.from_zeros()).records()[0]["zeros"]
            1
        """
        made = cls.__new__(cls)
        made._fill(None)
        return made

    def _fill(self, masks: dict[str, Tensor] | None) -> None:
        self.global_config, self.module_type_configs, self.module_name_configs = None, {}, {}
        self.masks = masks

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse rules beside the masks."""
        if name in _LEVELS and value:
            raise ConfigError(
                f"{name} must be left out of FixedMasks: nothing is ranked under masks from elsewhere. Prune other "
                "parameters in a fit of their own, or by a second callback."
            )
        super().__setattr__(name, value)

    @property
    def rule_names(self) -> list[str]:
        """What is masked, as a checkpoint knows it."""
        return ["zeros"] if self.masks is None else ["masks", *self.masks]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> NoReturn:
        """Refused: masks are no text."""
        raise ConfigError("FixedMasks are not read from a dict of rules or from YAML. Write FixedMasks(masks).")

    def as_dict(self) -> NoReturn:
        """Refused, as :meth:`as_yaml` is: masks are no text."""
        raise ConfigError(
            "FixedMasks cannot be written as plain values or YAML: masks are tensors. Keep them in a file, and write "
            'FixedMasks("masks.safetensors").'
        )

    def __eq__(self, other: object) -> bool:
        """Equal masks of equal names."""
        if not isinstance(other, FixedMasks):
            return False if isinstance(other, MagnitudePrunerConfig) else NotImplemented
        if self.masks is None or other.masks is None:
            return self.masks is other.masks
        return self.masks.keys() == other.masks.keys() and all(
            torch.equal(mask, other.masks[name]) for name, mask in self.masks.items()
        )

    __hash__ = None

    def __repr__(self) -> str:
        return "FixedMasks.from_zeros()" if self.masks is None else f"FixedMasks({shown(list(self.masks))})"


def _read(path: Path) -> Any:
    """What a file of masks holds."""
    try:
        if path.suffix != ".safetensors":
            masks = load_tensors(path)
            check_claims(masks.values() if isinstance(masks, Mapping) else (), path)
            return masks
        return read_safetensors(path)[1]
    except CheckpointError as error:
        raise ConfigError(f"FixedMasks: {path} cannot be read as masks: {error}") from error


def _checked(masks: Any) -> dict[str, Tensor]:
    """Copies of masks by the names that parameters have without a compiler."""
    if not isinstance(masks, Mapping):
        raise ConfigError(
            f"FixedMasks takes bool tensors by the names of parameters, or the path of a file of them, got "
            f'{shown(masks)}. Write FixedMasks({{"fc.weight": mask}}).'
        )
    if not masks:
        raise ConfigError("FixedMasks must have at least one mask, got none. For the zeros of a model: from_zeros().")
    for name, mask in masks.items():
        if not isinstance(name, str):
            raise ConfigError(f"FixedMasks takes masks by the names of parameters, got the key {shown(name)}.")
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or not has_values(mask):
            got = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else shown(mask)
            raise ConfigError(
                f'FixedMasks["{name}"] must be a plain bool tensor, True where a weight is kept, got {got}. '
                "Write (mask != 0) if it holds ones and zeros."
            )
    return {uncompiled_name(name): mask.detach().cpu().clone() for name, mask in masks.items()}
