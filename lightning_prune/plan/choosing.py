"""Which parameters of one module a rule prunes, and why not the others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_prune.basics import fullmatch
from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.errors import ConfigError, did_you_mean
from lightning_prune.masks import FORMATS
from lightning_prune.plan.names import SUPPORTED_MODULES, SUPPORTED_NAMES, in_words, inside, is_parametrized, type_key
from lightning_prune.plan.rows import Cause, Owner, PrunedParameter
from lightning_prune.plan.weight_norm import normed_names
from lightning_prune.sharding import is_sharded, local_part

__all__ = ["Choice", "MisfitError", "UnfitError", "check_prunable", "choose", "unfit_kind"]

_ORIGINALS: dict[str | None, tuple[str, str | None]] = {  # the parameter that is pruned, and its gain
    "_WeightNorm": ("original1", "original0"),
    "_SpectralNorm": ("original", None),
}


@dataclass
class Choice:
    """What the rules say of one module.

    Attributes:
        rule: The path of the rule that applies to it; None where none does.
        pruned: Its parameters that are pruned.
        reason: Why it, or what is left of it, stays dense.
        cause: As of a :class:`SkippedModule`.
        misfits: Why the rule does not fit a parameter, by the name of the parameter.
        has_parameter: Whether it has a parameter of the name that the rule asks for.
    """

    reason: str
    rule: str | None = None
    cause: Cause = "reach"
    pruned: list[PrunedParameter] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    has_parameter: bool = False


class MisfitError(ConfigError):
    """A rule that names a module asks for a structure that its weight does not have."""


class UnfitError(ConfigError):
    """A rule reaches a parameter of a kind that cannot be pruned."""


def choose(name: str, module: nn.Module, config: MagnitudePrunerConfig) -> Choice:
    """Parameters of one module that are pruned, and why the others are not."""
    kind = type(module).__name__
    match = config.match(name, module)
    if match is None:
        return Choice("no rule matches it")
    rule, leaf = match
    if leaf is None:
        return Choice(f"left dense by {rule}", rule, "rule")
    by_name, whole_names = rule.startswith("module_name_configs"), (name, re.escape(name))
    is_exact = any(rule == f'module_name_configs["{whole}"]' for whole in whole_names)
    is_named = is_exact or rule.startswith("module_type_configs")
    # a pattern reaches any module whose parameter it names, as "encoder.*" with in_proj_weight does
    names_parameter = by_name and leaf.param_name != "weight"
    if isinstance(module, torch.jit.ScriptModule):
        return _refuse_scripted(name, module, rule, is_reached=is_named or names_parameter)
    if not isinstance(module, SUPPORTED_MODULES) and not is_named and not names_parameter:
        own = module.parameters(recurse=False)
        if all(not isinstance(parameter, UninitializedParameter) and parameter.ndim < 2 for parameter in own):
            return Choice("its parameters have rank 1", rule if by_name else None)
        reason = f"{type_key(module)} is pruned only where its type or its full name is given"
        return Choice(reason, rule if by_name else None)
    attributes = _find_attributes(module, leaf.param_name)
    if not attributes and is_exact:
        known = [key for key, _ in module.named_parameters(recurse=False)]
        hint = did_you_mean(leaf.param_name, known) or (
            f" It has {', '.join(known)}."
            if known
            else f" It has none of its own. For the modules in it write module_name_configs[{inside(name)!r}]."
        )
        raise ConfigError(f'{rule}.param_name: {in_words(name, kind)} has no parameter "{leaf.param_name}".{hint}')
    choice = Choice(f'it has no parameter "{leaf.param_name}"', rule, has_parameter=bool(attributes))
    if attributes:
        choice.reason = f'{rule}.param_name "{leaf.param_name}" does not match it'
    for attribute in attributes:
        is_clear = attribute == leaf.param_name and name != "global"  # "global" is the sum in every report
        label = name if is_clear else ".".join(filter(None, (name, attribute)))
        owner, gain, path = _resolve(module, attribute, rule, in_words(name, kind))
        parameter = getattr(owner.module, owner.attribute)
        if not isinstance(parameter, UninitializedParameter) and parameter.numel() == 0:
            choice.reason = "it has no weights"
            continue
        full_name = ".".join(filter(None, (name, path)))
        check_prunable(parameter, PrunedParameter(full_name, label, (owner,), leaf, rule, ()), module)
        planned = PrunedParameter(full_name, label, (owner,), leaf, rule, tuple(parameter.shape), is_exact, gain)
        misfit = leaf.structure.misfit(planned.shape, is_named=by_name) or _norm_misfit(planned, module, attribute)
        if misfit is None:
            choice.pruned.append(planned)
        elif by_name:
            called = f"{full_name}, whose shape is {planned.shape}"
            raise MisfitError(
                f"{rule}.{misfit} in {called}. Give it another rule, or leave {in_words(name, kind)} out with None."
            )
        else:
            choice.misfits[path] = f"{rule}.{misfit}"
    return choice


def _refuse_scripted(name: str, module: nn.Module, rule: str, *, is_reached: bool) -> Choice:
    """Refuse what would be pruned if it were not scripted: its weights are out of reach."""
    original = str(getattr(module, "original_name", ""))
    if (is_reached or original in SUPPORTED_NAMES) and next(module.parameters(recurse=False), None) is not None:
        raise UnfitError(
            f'{rule}: "{name}" ({original}) is compiled by torch.jit, so its weights are out of reach. Script or trace '
            "it after pruning."
        )
    return Choice("it is compiled by torch.jit")


def _find_attributes(module: nn.Module, pattern: str) -> list[str]:
    """Names of a module's own parameters, parametrized and already pruned parameters too, that match a pattern."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    names += list(module.parametrizations) if is_parametrized(module) else []  # type: ignore[arg-type]
    hooks = module._forward_pre_hooks.values()
    names += [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
    # in the old style of spectral_norm "weight" is weight_orig, in that of weight_norm it is weight_v and weight_g
    behind = {hook.name: [f"{hook.name}_orig"] for hook in hooks if isinstance(hook, SpectralNorm)}
    behind |= {name: [direction, gain] for name, (gain, direction) in normed_names(module).items()}
    found = [name for name in names if fullmatch(pattern, name)]
    for weight, parts in behind.items():
        if any(fullmatch(pattern, name) for name in (weight, parts[0])):
            found = [*(name for name in found if name not in parts), weight]
    return found


def _resolve(module: nn.Module, attribute: str, rule: str, called: str) -> tuple[Owner, Owner | None, str]:
    """The place of the tensor that training updates, behind a parametrization of ``attribute``; of a gain; its path."""
    normed = normed_names(module)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name in (attribute, *normed.get(attribute, ())):
            raise ConfigError(
                f"{rule}: {called} is pruned already, by {type(hook).__name__}. One parameter can have one pruner: "
                "remove the other one, or leave this module out with None."
            )
    if module._parameters.get(attribute) is not None:
        return Owner(module, attribute), None, attribute
    if attribute in normed:
        gain, direction = normed[attribute]
        return Owner(module, direction), Owner(module, gain), direction
    if f"{attribute}_orig" in module._parameters:  # of spectral_norm in its old style
        return Owner(module, f"{attribute}_orig"), None, f"{attribute}_orig"
    steps = module.parametrizations[attribute] if is_parametrized(module) else []  # type: ignore[index]
    kind = type(steps[0]).__name__ if len(steps) == 1 else None
    if kind not in _ORIGINALS:
        names = " and ".join(type(step).__name__ for step in steps)
        raise ConfigError(
            f"{rule}: {called} computes its {attribute} by {names or 'nothing'}, which would not keep zeros. "
            "Remove the parametrization, or leave this module out with None."
        )
    original, other = _ORIGINALS[kind]
    its_gain = None if other is None else Owner(steps, other)  # type: ignore[arg-type]
    return Owner(steps, original), its_gain, f"parametrizations.{attribute}.{original}"  # type: ignore[arg-type]


def check_prunable(parameter: Any, planned: PrunedParameter, module: nn.Module) -> None:
    """Refuse what is no plain tensor of floats, has no shape yet, or has sparse gradients."""
    if isinstance(parameter, UninitializedParameter):
        raise ConfigError(
            f"{planned.rule}: {planned.name} has no shape yet. Run one batch through the model before it is prepared."
        )
    if getattr(module, "sparse", False):
        raise ConfigError(
            f"{planned.rule}: {planned.name} has sparse gradients. Write sparse=False, or leave it out with None."
        )
    what = unfit_kind(parameter)
    if what is not None:
        raise UnfitError(
            f"{planned.rule}: {planned.name} is {what}; what is pruned are plain tensors of a floating dtype."
        )


def unfit_kind(parameter: Tensor) -> str | None:
    """In which way a tensor is none that can be pruned; None if it can be."""
    if parameter.dtype not in FORMATS:
        return f"of {parameter.dtype}"
    if parameter.layout is not torch.strided:
        return f"of layout {parameter.layout}"
    kind = type(local_part(parameter) if is_sharded(parameter) else parameter)  # a DTensor is as good as its parts
    reads = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    plain = (torch.Tensor.__torch_function__.__func__, nn.Parameter.__torch_function__)  # type: ignore[attr-defined]
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or reads not in plain:
        return f"a {kind.__name__}, which has operations of its own"
    return None


def _norm_misfit(planned: PrunedParameter, module: nn.Module, attribute: str) -> str | None:
    """Why a weight cannot be pruned that is computed by a norm: of shards, or all of it; None if it can."""
    gain = planned.gain_parameter
    if gain is not None and (is_sharded(planned.parameter) or is_sharded(gain)):
        return (
            "param_name: the rows of a weight norm that is sharded over processes (DTensor) have norms that no process "
            "knows, unless it is taken off before,"
        )
    hooks = module._forward_pre_hooks.values()
    is_divided = any(isinstance(hook, SpectralNorm) and hook.name == attribute for hook in hooks)
    if parametrize.is_parametrized(module, attribute):
        steps = module.parametrizations[attribute]  # type: ignore[index]
        is_divided |= any(type(step).__name__ == "_SpectralNorm" for step in steps)
    if is_divided and planned.target_zeros >= planned.numel:
        return (
            "target_sparsity must be below 1.0 where a weight is divided by its spectral norm, which is 0 / 0 without "
            f"it, got {planned.config.target_sparsity}"
        )
    return None
