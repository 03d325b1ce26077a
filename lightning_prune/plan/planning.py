"""The plan: which parameters of a model a configuration prunes, by which rule, and which it leaves dense and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_prune.basics import DottedText, as_text, fullmatch, new_table
from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig, load_config
from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.masks import FORMATS
from lightning_prune.plan.patterns import dense_advice
from lightning_prune.plan.weight_norm import normed_names, normed_weight
from lightning_prune.sharding import is_sharded, local_part

__all__ = [
    "SUPPORTED_MODULES",
    "PrunedParameter",
    "PruningPlan",
    "SkippedModule",
    "is_compiled",
    "plan_pruning",
    "uncompiled_name",
]

SUPPORTED_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What ``global_config`` and regular expressions prune; other modules are pruned where their type or name is given."""

_SUPPORTED_NAMES = {cls.__name__ for cls in SUPPORTED_MODULES}
_ORIGINALS: dict[str | None, tuple[str, str | None]] = {  # the parameter that is pruned, and its gain
    "_WeightNorm": ("original1", "original0"),
    "_SpectralNorm": ("original", None),
}


@dataclass(frozen=True)
class Owner:
    """A place where a parameter hangs: ``getattr(module, attribute)``."""

    module: nn.Module = field(repr=False)
    attribute: str


@dataclass(frozen=True)
class PrunedParameter:
    """One parameter that is pruned: where it is, and by which rule.

    Attributes:
        name: Its name in the state dict, such as ``"body.0.weight"``.
        label: What reports call it: the name of its module, or of the parameter where a module has several.
        owners: The places where it hangs; more than one for a tied parameter.
        config: What the rule says.
        rule: The path of the rule in the configuration.
        shape: Shape of the weight, ``(C_out, C_in, *K)``.
        is_named: Whether the rule is for this one module, by its whole name.
        gain: Where the ``g`` of a weight norm hangs, if the parameter is its ``v``.
    """

    name: str
    label: str
    owners: tuple[Owner, ...]
    config: ModuleMagnitudePrunerConfig
    rule: str
    shape: tuple[int, ...]
    is_named: bool = False
    gain: Owner | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself, as it hangs before masks are attached."""
        return getattr(self.owners[0].module, self.owners[0].attribute)  # type: ignore[no-any-return]

    @property
    def gain_parameter(self) -> nn.Parameter | None:
        """The ``g`` of a weight norm, whose ``v`` is the parameter."""
        return None if self.gain is None else getattr(self.gain.module, self.gain.attribute)

    @property
    def gain_name(self) -> str:
        """The name of ``g`` in the state dict; empty where there is none."""
        return "" if self.gain is None else ".".join([*self.name.split(".")[:-1], self.gain.attribute])

    @property
    def weight(self) -> Tensor:
        """What is ranked: the parameter, or the weight that a weight norm computes from it."""
        gain = self.gain_parameter
        return self.parameter if gain is None else normed_weight(self.parameter, gain)

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def target_zeros(self) -> int:
        """Weights that are zero at the target; the most there can be where blocks do not divide the channels."""
        return self.config.structure.zeros(self.shape, self.config.target_sparsity)

    @property
    def structure(self) -> str:
        """The structure of its zeros, in words."""
        return str(self.config.structure)


Cause = Literal["rule", "misfit", "tie", "name", "reach", "wait"]


@dataclass(frozen=True)
class SkippedModule:
    """A module with parameters, or one parameter of a module that is pruned otherwise, that stays dense, and why.

    Attributes:
        name: Its name.
        kind: Class of the module, as ``module_type_configs`` knows it.
        reason: Why it stays dense.
        cause: Whether a rule leaves it dense with None (``"rule"``), does not fit it (``"misfit"``) or names other
            parameters and modules (``"name"``), it is tied to what is pruned (``"tie"``), no rule by name or type
            applies to it and ``global_config`` does not reach it (``"reach"``), or it waits to be trained (``"wait"``).
        weights: Number of weights that stay dense and could be pruned, by the name that each parameter of rank 2 and
            more has in its module.
    """

    name: str
    kind: str
    reason: str
    cause: Cause = field(default="reach", repr=False)
    weights: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True)
class PruningPlan:
    """What a configuration does to a model. Prints as a table; iterates over the pruned parameters.

    Attributes:
        parameters: What is pruned.
        skipped: Modules that stay dense, and parameters of rank 2 and more that do so in a module that is pruned; the
            table has one row for those that do so alike, :meth:`records` all.
        dense_weights: Number of weights of rank 2 and more that no rule prunes.
    """

    parameters: tuple[PrunedParameter, ...]
    skipped: tuple[SkippedModule, ...]
    dense_weights: int = 0

    def __iter__(self) -> Iterator[PrunedParameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a module, pruned ones first."""
        pruned = [
            {
                "module": one.label,
                "rule": one.rule,
                "shape": list(one.shape),
                "structure": one.structure,
                "target_sparsity": one.config.target_sparsity,
                "zeros": one.target_zeros,
                "weights": one.numel,
                "reason": None,
            }
            for one in self.parameters
        ]
        nothing = dict.fromkeys(("rule", "shape", "structure", "target_sparsity", "zeros", "weights"))
        return pruned + [{"module": one.name, **nothing, "reason": one.reason} for one in self.skipped]

    def without(self, parameters: Iterable[PrunedParameter], reason: str) -> PruningPlan:
        """The same plan with some parameters among what stays dense, for a reason."""
        left = {one.name: one for one in parameters}
        skipped = [
            SkippedModule(one.label, type(one.owners[0].module).__name__, reason, "wait") for one in left.values()
        ]
        return PruningPlan(
            tuple(one for one in self.parameters if one.name not in left),
            (*self.skipped, *skipped),
            self.dense_weights + sum(one.numel for one in left.values() if len(one.shape) > 1),
        )

    def _skipped_alike(self) -> dict[tuple[str, str], list[str]]:
        """Names of the modules that stay dense, by their kind and the reason."""
        alike: dict[tuple[str, str], list[str]] = {}
        for one in self.skipped:
            alike.setdefault((one.kind, one.reason), []).append(one.name)
        return alike

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __rich__(self) -> Table:
        """Table for a terminal or a notebook; 80 columns are enough. What stays dense alike shares a row."""
        table = new_table("Pruning plan")
        table.add_column("module")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("target", "zeros"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("rule, or why it stays dense")
        for one in self.parameters:
            shape, target = "x".join(map(str, one.shape)), f"{one.config.target_sparsity:.1%}"
            label, rule = DottedText(one.label or "(root)"), DottedText(one.rule)
            table.add_row(label, shape, one.structure, target, f"{one.target_zeros:,}", rule)
        for (kind, reason), names in self._skipped_alike().items():
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            name, reason_text = (DottedText(text, "dim") for text in (f"{names[0] or '(root)'}{more}", reason))
            table.add_row(name, "", DottedText(kind, "dim"), "", "", reason_text)
        zeros, weights = sum(one.target_zeros for one in self), sum(one.numel for one in self)
        layers = "1 layer" if len(self) == 1 else f"{len(self)} layers"
        table.caption = f"{zeros:,} of {weights:,} weights in {layers} will be zero ({zeros / weights:.1%})"
        table.caption += (
            f", {zeros / (weights + self.dense_weights):.1%} with the weights of rank 2 and more that stay dense."
            if self.dense_weights
            else "."
        )
        return table


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
    modules = {uncompiled_name(name): module for name, module in model.named_modules() if not _is_inner(name)}
    _check_rules_match(modules, rules)
    found: dict[int, PrunedParameter] = {}
    choices: dict[str, _Choice] = {}
    misfits: dict[str, _MisfitError] = {}
    unfit: dict[str, _UnfitError] = {}
    for name, module in modules.items():
        try:
            choice = choices[name] = _choose(name, module, rules)
        except _MisfitError as error:
            misfits[name] = error
            continue
        except _UnfitError as error:
            unfit[name] = error
            continue
        for one in choice.pruned:
            key = id(one.parameter)
            found[key] = _tie(found[key], one) if key in found else one
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
            + "; ".join(f"{one.name or '(root)'} ({one.kind}): {one.reason}" for one in skipped[:20])
            + ". Give the modules to prune in module_type_configs or module_name_configs."
        )
    return PruningPlan(tuple(found.values()), skipped, _count_dense(model, found))


@dataclass
class _Choice:
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


class _MisfitError(ConfigError):
    """A rule that names a module asks for a structure that its weight does not have."""


class _UnfitError(ConfigError):
    """A rule reaches a parameter of a kind that cannot be pruned."""


def _refuse_misfits(misfits: Mapping[str, _MisfitError]) -> ConfigError:
    first, *more = misfits
    also = ""
    if more:
        dense = ", ".join(f'"{re.escape(name)}": None' for name in misfits)
        also = f" Nor do the rules fit {', '.join(more)}. Leave all dense: module_name_configs={{{dense}}}."
    return ConfigError(f"{misfits[first]}{also}")


def _refuse_unfit(unfit: Mapping[str, _UnfitError], others: list[str]) -> ConfigError:
    first, *more = unfit
    also = f" So are {len(more)} more." if len(more) > 1 else " So is one more." if more else ""
    by_name = any(str(error).startswith("module_name_configs") for error in unfit.values())
    place = ", in front of the other names" if by_name else ""
    return ConfigError(f"{unfit[first]}{also} Leave out what cannot be pruned: {dense_advice(unfit, others)}{place}.")


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters of rank 2 and more, by their names in it; the gains of a weight norm are no weights."""
    named = list(module.named_parameters(recurse=False))
    if _is_parametrized(module):
        named += [
            (f"parametrizations.{name}", one)
            for name, one in module.parametrizations.named_parameters()  # type: ignore[union-attr]
        ]
    return {
        name: one
        for name, one in named
        if not isinstance(one, UninitializedParameter) and one.ndim > 1 and not _is_gain(name)
    }


def _is_gain(name: str) -> bool:
    return name.endswith(("_g", ".original0"))


def _count_dense(model: nn.Module, found: Mapping[int, PrunedParameter]) -> int:
    """Weights of rank 2 and more that are not pruned; the gains of a weight norm are no weights."""
    return sum(
        one.numel()
        for name, one in model.named_parameters()
        if not isinstance(one, UninitializedParameter) and one.ndim > 1 and id(one) not in found and not _is_gain(name)
    )


def _follow_ties(name: str, module: nn.Module, choice: _Choice, found: dict[int, PrunedParameter]) -> None:
    """What a module shares with one that is pruned is pruned in it too."""
    if isinstance(module, torch.jit.ScriptModule):  # which makes its parameters anew for everyone who asks
        return
    for attribute, parameter in module._parameters.items():
        one = found.get(id(parameter))
        if one is None or any(place.module is module and place.attribute == attribute for place in one.owners):
            continue
        _check_prunable(parameter, one, module)
        if choice.cause == "rule":
            raise ConfigError(
                f"{name} and {one.name} are one tied parameter, but {name} is {choice.reason}, and {one.rule} prunes "
                "it. Leave both modules out with None, or neither."
            )
        gain = next((Owner(module, g) for g, v in normed_names(module).values() if v == attribute), None)
        found[id(parameter)] = _tie(one, replace(one, name=name, owners=(Owner(module, attribute),), gain=gain))
        if not choice.pruned:
            choice.reason, choice.cause = f"tied to {one.name}, pruned with it", "tie"


def _rows(
    name: str, module: nn.Module, choice: _Choice, found: Mapping[int, PrunedParameter]
) -> Iterator[SkippedModule]:
    """What stays dense of a module: one row for all of it, or one for each parameter if others are pruned."""
    if next(module.parameters(recurse=False), None) is None and not _is_parametrized(module):
        return
    kind = _type_key(module)
    weights = {
        key: one.numel()
        for key, one in _weights(module).items()
        if id(one) not in found and _unfit_kind(one) is None and not isinstance(module, torch.jit.ScriptModule)
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


def _choose(name: str, module: nn.Module, config: MagnitudePrunerConfig) -> _Choice:
    """Parameters of one module that are pruned, and why the others are not."""
    kind = type(module).__name__
    match = config.match(name, module)
    if match is None:
        return _Choice("no rule matches it")
    rule, leaf = match
    if leaf is None:
        return _Choice(f"left dense by {rule}", rule, "rule")
    by_name, whole_names = rule.startswith("module_name_configs"), (name, re.escape(name))
    is_exact = any(rule == f'module_name_configs["{one}"]' for one in whole_names)
    is_named = is_exact or rule.startswith("module_type_configs")
    # a pattern reaches any module whose parameter it names, as "encoder.*" with in_proj_weight does
    names_parameter = by_name and leaf.param_name != "weight"
    if isinstance(module, torch.jit.ScriptModule):
        return _refuse_scripted(name, module, rule, is_reached=is_named or names_parameter)
    if not isinstance(module, SUPPORTED_MODULES) and not is_named and not names_parameter:
        own = module.parameters(recurse=False)
        if all(not isinstance(parameter, UninitializedParameter) and parameter.ndim < 2 for parameter in own):
            return _Choice("its parameters have rank 1", rule if by_name else None)
        reason = f"{_type_key(module)} is pruned only where its type or its full name is given"
        return _Choice(reason, rule if by_name else None)
    attributes = _find_attributes(module, leaf.param_name)
    if not attributes and is_exact:
        known = [key for key, _ in module.named_parameters(recurse=False)]
        hint = did_you_mean(leaf.param_name, known) or (
            f" It has {', '.join(known)}."
            if known
            else f" It has none of its own. For the modules in it write module_name_configs[{_inside(name)!r}]."
        )
        raise ConfigError(f'{rule}.param_name: {_called(name, kind)} has no parameter "{leaf.param_name}".{hint}')
    choice = _Choice(f'it has no parameter "{leaf.param_name}"', rule, has_parameter=bool(attributes))
    if attributes:
        choice.reason = f'{rule}.param_name "{leaf.param_name}" does not match it'
    for attribute in attributes:
        is_clear = attribute == leaf.param_name and name != "global"  # "global" is the sum in every report
        label = name if is_clear else ".".join(filter(None, (name, attribute)))
        owner, gain, path = _resolve(module, attribute, rule, _called(name, kind))
        parameter = getattr(owner.module, owner.attribute)
        if not isinstance(parameter, UninitializedParameter) and parameter.numel() == 0:
            choice.reason = "it has no weights"
            continue
        full_name = ".".join(filter(None, (name, path)))
        _check_prunable(parameter, PrunedParameter(full_name, label, (owner,), leaf, rule, ()), module)
        one = PrunedParameter(full_name, label, (owner,), leaf, rule, tuple(parameter.shape), is_exact, gain)
        misfit = leaf.structure.misfit(one.shape, is_named=by_name) or _norm_misfit(one, module, attribute)
        if misfit is None:
            choice.pruned.append(one)
        elif by_name:
            called = f"{full_name}, whose shape is {one.shape}"
            raise _MisfitError(
                f"{rule}.{misfit} in {called}. Give it another rule, or leave {_called(name, kind)} out with None."
            )
        else:
            choice.misfits[path] = f"{rule}.{misfit}"
    return choice


def _refuse_scripted(name: str, module: nn.Module, rule: str, *, is_reached: bool) -> _Choice:
    """Refuse what would be pruned if it were not scripted: its weights are out of reach."""
    original = str(getattr(module, "original_name", ""))
    if (is_reached or original in _SUPPORTED_NAMES) and next(module.parameters(recurse=False), None) is not None:
        raise _UnfitError(
            f'{rule}: "{name}" ({original}) is compiled by torch.jit, so its weights are out of reach. Script or trace '
            "it after pruning."
        )
    return _Choice("it is compiled by torch.jit")


def _find_attributes(module: nn.Module, pattern: str) -> list[str]:
    """Names of a module's own parameters, parametrized and already pruned ones too, that match a pattern."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    names += list(module.parametrizations) if _is_parametrized(module) else []  # type: ignore[arg-type]
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
    steps = module.parametrizations[attribute] if _is_parametrized(module) else []  # type: ignore[index]
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


def _check_prunable(parameter: Any, one: PrunedParameter, module: nn.Module) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ConfigError(
            f"{one.rule}: {one.name} has no shape yet. Run one batch through the model before it is prepared."
        )
    if getattr(module, "sparse", False):
        raise ConfigError(
            f"{one.rule}: {one.name} has sparse gradients. Write sparse=False, or leave it out with None."
        )
    what = _unfit_kind(parameter)
    if what is not None:
        raise _UnfitError(f"{one.rule}: {one.name} is {what}; what is pruned are plain tensors of a floating dtype.")


def _unfit_kind(parameter: Tensor) -> str | None:
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


def _norm_misfit(one: PrunedParameter, module: nn.Module, attribute: str) -> str | None:
    """Why a weight cannot be pruned that is computed by a norm: of shards, or all of it; None if it can."""
    gain = one.gain_parameter
    if gain is not None and (is_sharded(one.parameter) or is_sharded(gain)):
        return (
            "param_name: the rows of a weight norm that is sharded over processes (DTensor) have norms that no process "
            "knows, unless it is taken off before,"
        )
    hooks = module._forward_pre_hooks.values()
    is_divided = any(isinstance(hook, SpectralNorm) and hook.name == attribute for hook in hooks)
    if parametrize.is_parametrized(module, attribute):
        steps = module.parametrizations[attribute]  # type: ignore[index]
        is_divided |= any(type(step).__name__ == "_SpectralNorm" for step in steps)
    if is_divided and one.target_zeros >= one.numel:
        return (
            "target_sparsity must be below 1.0 where a weight is divided by its spectral norm, which is 0 / 0 without "
            f"it, got {one.config.target_sparsity}"
        )
    return None


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
    kinds = sorted({type(module).__name__ for module in modules.values()} | _SUPPORTED_NAMES)
    for key in config.module_type_configs:
        name = key if isinstance(key, str) else key.__name__
        # a rule for a supported type may stand in a configuration that serves several models
        if key not in known and name not in _SUPPORTED_NAMES:
            raise ConfigError(
                f'module_type_configs["{name}"] matches no module of the model.{did_you_mean(name, kinds)}'
            )


def _check_rules_prune(
    modules: Mapping[str, nn.Module], config: MagnitudePrunerConfig, choices: Mapping[str, _Choice]
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


def _inside(name: str) -> str:
    """A pattern that reaches the modules inside a module."""
    return f"{re.escape(name)}\\..*" if name else ".*"


def _called(name: str, kind: str) -> str:
    return f'"{name}" ({kind})' if name else f"the model ({kind})"


def _type_key(module: nn.Module) -> str:
    """The name of a class, with its package where a supported module has the same."""
    cls = type(module)
    is_clear = cls.__name__ not in _SUPPORTED_NAMES or isinstance(module, SUPPORTED_MODULES)
    return cls.__name__ if is_clear else f"{cls.__module__}.{cls.__qualname__}"


def _is_parametrized(module: nn.Module) -> bool:
    return bool(parametrize.is_parametrized(module))


def _is_inner(name: str) -> bool:
    return "parametrizations" in name.split(".")


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps a module, or was called on it in place."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def uncompiled_name(name: str) -> str:
    """The name without the wrapper that torch.compile puts around a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
