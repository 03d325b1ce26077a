"""The plan: which parameters of a model a configuration prunes, by which rule, and which it leaves dense and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_prune.basics import fullmatch, uncompiled_name
from lightning_prune.config import FixedMasks, MagnitudePrunerConfig, load_config
from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.plan.choosing import Choice, MisfitError, UnfitError, check_prunable, choose, unfit_kind
from lightning_prune.plan.given import find_given
from lightning_prune.plan.names import (
    SUPPORTED_NAMES,
    is_inner,
    is_parametrized,
    type_key,
)
from lightning_prune.plan.patterns import dense_advice
from lightning_prune.plan.rows import Cause, Owner, PrunedParameter, PruningPlan, SkippedModule
from lightning_prune.plan.weight_norm import gain_names, normed_names

__all__ = ["plan_pruning"]


def plan_pruning(model: nn.Module, config: object = None) -> PruningPlan:
    """Decide for each module of a model whether and how it is pruned. Nothing is changed.

    Args:
        model: The model.
        config: What to prune and how, in any form that :func:`~lightning_prune.config.load_config` reads.

    Raises:
        ConfigError: A rule matches nothing, does not fit the weight that it matches, or nothing at all is pruned.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> plan = plan_pruning(model, {"module_name_configs": {"0": {"target_sparsity": 0.75}}})
        >>> [(one.name, one.target_zeros) for one in plan]
        [('0.weight', 24)]
        >>> plan.skipped
        (SkippedModule(name='2', kind='Linear', reason='no rule matches it'),)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"The model must be a torch.nn.Module, got {shown(model)}.")
    rules = load_config(config)
    if isinstance(rules, FixedMasks):
        given = find_given(model, rules)
        return given.applied(_plan_rules(model, given.rules))
    return _plan_rules(model, rules)


def _plan_rules(model: nn.Module, rules: MagnitudePrunerConfig) -> PruningPlan:
    modules = {uncompiled_name(name): module for name, module in model.named_modules() if not is_inner(name)}
    _check_rules_match(modules, rules)
    found: dict[int, PrunedParameter] = {}
    choices: dict[str, Choice] = {}
    misfits: dict[str, MisfitError] = {}
    unfit: dict[str, UnfitError] = {}
    for name, module in modules.items():
        try:
            choice = choices[name] = choose(name, module, rules)
        except MisfitError as error:
            misfits[name] = error
            continue
        except UnfitError as error:
            unfit[name] = error
            continue
        for planned in choice.pruned:
            key = id(planned.parameter)
            found[key] = _tie(found[key], planned) if key in found else planned
    if unfit:
        raise _refuse_unfit(unfit, [name for name, choice in choices.items() if choice.pruned])
    if misfits:
        raise _refuse_misfits(misfits)
    for name, choice in choices.items():
        _follow_ties(name, modules[name], choice, found)
    _check_rules_prune(modules, rules, choices)
    skipped = tuple(row for name, choice in choices.items() for row in _rows(name, modules[name], choice, found))
    if not found:
        raise ConfigError(
            "The configuration prunes nothing of this model. Its modules with parameters: "
            + "; ".join(f"{row.name or '(root)'} ({row.kind}): {row.reason}" for row in skipped[:20])
            + ". Give the modules to prune in module_type_configs or module_name_configs."
        )
    return PruningPlan(tuple(found.values()), skipped, _count_dense(model, found))


def _refuse_misfits(misfits: Mapping[str, MisfitError]) -> ConfigError:
    first, *more = misfits
    also = ""
    if more:
        dense = ", ".join(f'"{re.escape(name)}": None' for name in misfits)
        also = f" Nor do the rules fit {', '.join(more)}. Leave all dense: module_name_configs={{{dense}}}."
    return ConfigError(f"{misfits[first]}{also}")


def _refuse_unfit(unfit: Mapping[str, UnfitError], others: list[str]) -> ConfigError:
    first, *more = unfit
    also = f" So are {len(more)} more." if len(more) > 1 else " So is one more." if more else ""
    by_name = any(str(error).startswith("module_name_configs") for error in unfit.values())
    place = ", in front of the other names" if by_name else ""
    return ConfigError(f"{unfit[first]}{also} Leave out what cannot be pruned: {dense_advice(unfit, others)}{place}.")


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters of rank 2 and more, by their names in it; the gains of a weight norm are no weights."""
    named = list(module.named_parameters(recurse=False))
    if is_parametrized(module):
        named += [
            (f"parametrizations.{name}", parameter)
            for name, parameter in module.parametrizations.named_parameters()  # type: ignore[union-attr]
        ]
    return _without_gains(named)


def _without_gains(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    known = {name: parameter for name, parameter in named if not isinstance(parameter, UninitializedParameter)}
    gains = gain_names(known)
    return {name: parameter for name, parameter in known.items() if parameter.ndim > 1 and name not in gains}


def _count_dense(model: nn.Module, found: Mapping[int, PrunedParameter]) -> int:
    """Weights of rank 2 and more that are not pruned; the gains of a weight norm are no weights."""
    weights = _without_gains(model.named_parameters(remove_duplicate=False)).values()
    distinct = {id(weight): weight.numel() for weight in weights}  # a tied weight counts once
    return sum(size for key, size in distinct.items() if key not in found)


def _follow_ties(name: str, module: nn.Module, choice: Choice, found: dict[int, PrunedParameter]) -> None:
    """What a module shares with one that is pruned is pruned in it too."""
    if isinstance(module, torch.jit.ScriptModule):  # which makes its parameters anew for everyone who asks
        return
    for attribute, parameter in module._parameters.items():
        planned = found.get(id(parameter))
        if planned is None or any(place.module is module and place.attribute == attribute for place in planned.owners):
            continue
        check_prunable(parameter, planned, module)
        if choice.cause == "rule":
            raise ConfigError(
                f"{name} and {planned.name} are one tied parameter, but {name} is {choice.reason}, and "
                f"{planned.rule} prunes it. Leave both modules out with None, or neither."
            )
        gain = next((Owner(module, g) for g, v in normed_names(module).values() if v == attribute), None)
        found[id(parameter)] = _tie(planned, replace(planned, name=name, owners=(Owner(module, attribute),), gain=gain))
        if not choice.pruned:
            choice.reason, choice.cause = f"tied to {planned.name}, pruned with it", "tie"


def _rows(
    name: str, module: nn.Module, choice: Choice, found: Mapping[int, PrunedParameter]
) -> Iterator[SkippedModule]:
    """What stays dense of a module: one row for all of it, or one for each parameter if others are pruned."""
    if next(module.parameters(recurse=False), None) is None and not is_parametrized(module):
        return
    kind = type_key(module)
    weights = {
        key: weight.numel()
        for key, weight in _weights(module).items()
        if id(weight) not in found and unfit_kind(weight) is None and not isinstance(module, torch.jit.ScriptModule)
    }
    if not choice.pruned:
        misfit = next(iter(choice.misfits.values()), None) if choice.cause != "tie" else None
        is_addressed = choice.cause == "reach" and choice.rule not in (None, "global_config")
        cause: Cause = "misfit" if misfit is not None else "name" if is_addressed else choice.cause
        yield SkippedModule(name, kind, misfit or choice.reason, cause, weights)
        return
    for key in dict.fromkeys([*choice.misfits, *weights]):
        misfit, left = choice.misfits.get(key), {key: weights[key]} if key in weights else {}
        cause = "name" if misfit is None else "misfit"
        yield SkippedModule(".".join(filter(None, (name, key))), kind, misfit or choice.reason, cause, left)


def _check_rules_match(modules: dict[str, nn.Module], config: MagnitudePrunerConfig) -> None:
    """Refuse rules that match nothing: most often a misspelled name."""
    for pattern in config.module_name_configs:
        matched = [name for name in modules if fullmatch(pattern, name)]
        if not matched:
            inside = [name for name in modules if name.endswith(f".{pattern}")]
            hint = f' Did you mean "{inside[0]}"?' if inside else did_you_mean(pattern, modules)
            if pattern in modules:
                hint = f" It is a regular expression: write {re.escape(pattern)!r} for that name."
            hint = hint or f" It has {', '.join(filter(None, list(modules)[:30]))}."
            raise ConfigError(f'module_name_configs["{pattern}"] matches no module of the model.{hint}')
    known = {
        key: None
        for module in modules.values()
        for cls in type(module).__mro__
        for key in (cls, cls.__name__, f"{cls.__module__}.{cls.__qualname__}")
    }
    kinds = sorted({type(module).__name__ for module in modules.values()} | SUPPORTED_NAMES)
    for key in config.module_type_configs:
        name = key if isinstance(key, str) else key.__name__
        # a rule for a supported type may stand in a configuration that serves several models
        if key not in known and name not in SUPPORTED_NAMES:
            raise ConfigError(
                f'module_type_configs["{name}"] matches no module of the model.{did_you_mean(name, kinds)}'
            )


def _check_rules_prune(
    modules: Mapping[str, nn.Module], config: MagnitudePrunerConfig, choices: Mapping[str, Choice]
) -> None:
    """Refuse a rule that applies to modules, but finds its parameter in none of them: most often it is misspelled."""
    applies: dict[str, list[str]] = {}
    for name, choice in choices.items():
        if choice.rule is not None and choice.cause != "rule":
            applies.setdefault(choice.rule, []).append(name)
    for rule, names in applies.items():
        if any(choices[name].has_parameter or choices[name].cause == "tie" for name in names):
            continue
        _, leaf = config.match(names[0], modules[names[0]]) or ("", None)
        asked = "weight" if leaf is None else leaf.param_name
        own = dict.fromkeys(key for name in names for key, _ in modules[name].named_parameters(recurse=False))
        kinds = ", ".join(sorted({type(modules[name]).__name__ for name in names}))
        where = f"{', '.join(name or '(root)' for name in names[:5])} ({kinds})"
        if asked in own or (not own and rule.startswith("module_name_configs")):
            raise ConfigError(
                f'{rule} prunes nothing: it matches {where}, where a pattern finds no "{asked}" to prune. Write the '
                f'full name of the module, or a pattern that reaches inside it such as "{rule[21:-2]}\\..*".'
            )
        hint = did_you_mean(asked, own) or (f" They have {', '.join(own)}." if own else " They have none of their own.")
        raise ConfigError(
            f'{rule}.param_name: no parameter "{asked}" is in any module that it applies to: {where}.{hint}'
        )


def _tie(first: PrunedParameter, second: PrunedParameter) -> PrunedParameter:
    """One entry for a parameter that hangs in two places."""
    if first.config != second.config:
        raise ConfigError(
            f"{first.name} and {second.name} are one tied parameter, but {first.rule} and {second.rule} prune it "
            "differently. Give both modules the same rule."
        )
    if first.gain_parameter is not second.gain_parameter:
        raise ConfigError(
            f"{first.name} and {second.name} are one tied parameter, but a weight norm makes another weight of it in "
            "each. Tie their gains too, or leave the modules out with None."
        )
    owners = first.owners + second.owners
    return replace(first, owners=owners, is_named=first.is_named or second.is_named)
