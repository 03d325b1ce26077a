"""Masks from elsewhere meet a model: which parameters they are for, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_prune.basics import uncompiled_name
from lightning_prune.config import FixedMasks, MagnitudePrunerConfig, ModuleMagnitudePrunerConfig
from lightning_prune.errors import ConfigError, did_you_mean, first_names
from lightning_prune.masks import Given
from lightning_prune.plan.choosing import unfit_kind
from lightning_prune.plan.names import is_inner
from lightning_prune.plan.rows import PruningPlan
from lightning_prune.schedules import ConstantSparsityScheduler
from lightning_prune.sharding import is_sharded

__all__ = ["GivenMasks", "find_given"]


class _Fixed(ConstantSparsityScheduler):
    """Nothing to choose: the mask holds from the start; the first step alone lets go of what it has pruned."""

    @property
    def last_update_step(self) -> int:
        """No step changes it."""
        return 0


@dataclass(frozen=True)
class GivenMasks:
    """Masks that were compared with a model.

    Attributes:
        rules: Rules that reach exactly the parameters that have one.
        masks: The masks, by the identity of the parameter.
        names: What the user calls each of these parameters.
    """

    rules: MagnitudePrunerConfig
    masks: Mapping[int, Given]
    names: Mapping[int, str]

    def applied(self, plan: PruningPlan) -> PruningPlan:
        """What :attr:`rules` prune, by the masks.

        Raises:
            ConfigError: The network computes a weight from the parameter, or something else has pruned it.
        """
        rows = []
        for planned in plan:
            given = self.masks[id(planned.parameter)]
            if planned.gain is not None:
                raise ConfigError(
                    f"{planned.name} has a mask, but the network uses a weight that a norm makes of it. Remove the "
                    "weight norm, and give the mask of the plain weight."
                )
            sparsity = given.fixed_sparsity
            config = replace(planned.config, initial_sparsity=sparsity, target_sparsity=sparsity)
            rule = "FixedMasks.from_zeros()" if given.is_found else f'FixedMasks["{planned.name}"]'
            rows.append(replace(planned, config=config, rule=rule, given=given))
        lost = [self.names[key] for key in self.masks.keys() - {id(planned.parameter) for planned in rows}]
        if lost:
            raise ConfigError(
                f"FixedMasks: {first_names(sorted(lost))} cannot be masked: the network computes other weights from "
                "them, or they are empty. Remove the parametrization, or leave the masks out."
            )
        is_found = any(given.is_found for given in self.masks.values())
        reason = "no weight of it has zeros" if is_found else "no mask is given for it"
        skipped = tuple(row if row.cause == "tie" else replace(row, reason=reason) for row in plan.skipped)
        return replace(plan, parameters=tuple(rows), skipped=skipped)


def find_given(model: nn.Module, fixed: FixedMasks) -> GivenMasks:
    """Find the parameters of masks, and compare them.

    Raises:
        ConfigError: A mask is for no parameter, of another shape, or keeps nothing; or nothing in the model is zero.
    """
    known = {uncompiled_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    found = _zeros_of(known) if fixed.masks is None else _fitting(known, fixed.masks)
    places: dict[str, list[str]] = {}
    masks: dict[int, Given] = {}
    names: dict[int, str] = {}
    for name, given in found.items():
        key = id(known[name])
        if key not in masks:
            module, _, attribute = name.rpartition(".")
            places.setdefault(module, []).append(attribute)
            masks[key], names[key] = given, name
        elif not torch.equal(masks[key].values, given.values):
            raise ConfigError(
                f"{names[key]} and {name} are one tied parameter, but their masks differ. Give one of them."
            )
    rules = {
        re.escape(module): ModuleMagnitudePrunerConfig(_Fixed(0), param_name="|".join(map(re.escape, attributes)))
        for module, attributes in places.items()
    }
    return GivenMasks(MagnitudePrunerConfig(module_name_configs=dict(rules)), masks, names)


def _fitting(known: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> dict[str, Given]:
    """The masks that a user has given, each of the shape of its parameter."""
    found = {}
    for name, mask in masks.items():
        parameter, called = known.get(name), f'FixedMasks["{name}"]'
        if parameter is None:
            hint = did_you_mean(name, known) or f" It has {first_names(known)}."
            raise ConfigError(f"{called} is for no parameter of the model.{hint}")
        if isinstance(parameter, UninitializedParameter):
            raise ConfigError(f"{called}: the parameter has no shape yet. Run one batch through the model first.")
        if is_inner(name.rpartition(".")[0]):
            raise ConfigError(
                f"{called} is part of a parametrization, from which the network computes another weight. Remove it, "
                "and give the mask of the plain weight."
            )
        kind = unfit_kind(parameter)
        if kind is not None:
            raise ConfigError(f"{called}: the parameter is {kind}; what is masked are plain tensors of floats.")
        try:
            whole = mask.expand(parameter.shape).contiguous()
        except RuntimeError as error:
            raise ConfigError(
                f"{called} must have the shape of its parameter, {tuple(parameter.shape)}, or one that broadcasts to "
                f"it, got {tuple(mask.shape)}."
            ) from error
        if not bool(whole.any()):
            raise ConfigError(
                f"{called} keeps nothing of its parameter. True is what is kept: write ~mask if it says what is pruned."
            )
        found[name] = Given(whole)
    return found


def _zeros_of(known: Mapping[str, nn.Parameter]) -> dict[str, Given]:
    """The zeros of weights of rank 2 and more that have others too."""
    found = {}
    for name, parameter in known.items():
        is_open = isinstance(parameter, UninitializedParameter) or parameter.ndim < 2
        if is_open or is_inner(name.rpartition(".")[0]) or unfit_kind(parameter) is not None:
            continue
        if is_sharded(parameter):
            raise ConfigError(
                f"FixedMasks.from_zeros() cannot look at {name}, which is sharded over processes (DTensor). Find the "
                "zeros before: FixedMasks({name: weight != 0 for ...}), of whole weights."
            )
        kept = (parameter.detach() != 0).cpu().contiguous()
        if bool(kept.any()) and not bool(kept.all()):
            found[name] = Given(kept, is_found=True)
    if not found:
        raise ConfigError(
            "FixedMasks.from_zeros() found no weight of rank 2 or more with zeros. Load the pruned weights before the "
            "model is prepared, or before trainer.fit."
        )
    return found
