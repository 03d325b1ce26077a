"""The plan: which parameters of a model a configuration prunes, by which rule, and which it leaves dense and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig, did_you_mean, load_config
from lightning_prune.errors import ConfigError, shown
from lightning_prune.masks import mask_shape
from lightning_prune.matching import fullmatch
from lightning_prune.selection import pruned_count
from lightning_prune.tables import as_text, new_table

__all__ = [
    "SUPPORTED_MODULES",
    "PrunedParameter",
    "PruningPlan",
    "SkippedModule",
    "plan_pruning",
    "uncompiled_name",
]

SUPPORTED_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What ``global_config`` and regular expressions prune; other modules are pruned where their type or name is given."""

_SUPPORTED_NAMES = {cls.__name__ for cls in SUPPORTED_MODULES}
_LEFT = "left dense by"
_ORIGINALS = {"_WeightNorm": "original1", "_SpectralNorm": "original"}


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
    """

    name: str
    label: str
    owners: tuple[Owner, ...]
    config: ModuleMagnitudePrunerConfig
    rule: str
    shape: tuple[int, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself, as it hangs before masks are attached."""
        return getattr(self.owners[0].module, self.owners[0].attribute)  # type: ignore[no-any-return]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def target_zeros(self) -> int:
        """Weights that are zero at the target; the most there can be where blocks do not divide the channels."""
        config = self.config
        if config.n_m_ratio is not None:
            n, m = config.n_m_ratio
            length = self.shape[config.dim]
            padding = -length % m  # is pruned first
            in_a_row = length // m * n + (max(0, n - padding) if padding else 0)
            return in_a_row * (self.numel // length)
        groups = math.prod(mask_shape(self.shape, granularity=config.granularity))
        pruned = pruned_count(groups, config.target_sparsity)
        if config.block_size > 1 and self.shape[0] % config.block_size == 0:
            pruned = pruned // config.block_size * config.block_size
        return pruned * (self.numel // groups)

    @property
    def structure(self) -> str:
        """The structure of its zeros, in words."""
        if self.config.n_m_ratio is not None:
            return "{}:{} zeros, dim {}".format(*self.config.n_m_ratio, self.config.dim)
        block = f", block {self.config.block_size}" if self.config.block_size > 1 else ""
        return self.config.granularity + block


@dataclass(frozen=True)
class SkippedModule:
    """A module with parameters that stays dense, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class PruningPlan:
    """What a configuration does to a model. Prints as a table; iterates over the pruned parameters.

    Attributes:
        parameters: What is pruned.
        skipped: Modules that stay dense; the table has one row for those that do so alike, :meth:`records` all.
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
        table.add_column("module", overflow="fold")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("target", "zeros"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("rule, or why it stays dense", overflow="fold")
        for one in self.parameters:
            shape, target = "x".join(map(str, one.shape)), f"{one.config.target_sparsity:.1%}"
            # names and rules as Text: square brackets in them are no markup
            label, rule = Text(one.label or "(root)"), Text(one.rule)
            table.add_row(label, shape, one.structure, target, f"{one.target_zeros:,}", rule)
        for (kind, reason), names in self._skipped_alike().items():
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            name, kind_text, reason_text = (Text(text, "dim") for text in (f"{names[0]}{more}", kind, reason))
            table.add_row(name, "", kind_text, "", "", reason_text)
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
    used: set[str] = set()
    left: list[tuple[str, nn.Module, str]] = []
    misfits: dict[str, _MisfitError] = {}
    for name, module in modules.items():
        try:
            chosen, reason = _choose(name, module, rules)
        except _MisfitError as error:
            misfits[name] = error
            continue
        for one in chosen:
            used.add(one.rule)
            key = id(one.parameter)
            found[key] = _tie(found[key], one) if key in found else one
        if not chosen and (next(module.parameters(recurse=False), None) is not None or _is_parametrized(module)):
            left.append((name, module, reason))
    if misfits:
        first, *more = misfits
        dense = ", ".join(f'"{re.escape(name)}": None' for name in misfits)
        also = (
            f" Nor do the rules fit {', '.join(more)}. Leave all dense: module_name_configs={{{dense}}}."
            if more
            else ""
        )
        raise ConfigError(f"{misfits[first]}{also}")
    skipped = tuple(_skip(name, module, reason, found) for name, module, reason in left)
    _check_rules_prune(modules, rules, used)
    if not found:
        raise ConfigError(
            "The configuration prunes nothing of this model. Its modules with parameters: "
            + "; ".join(f"{one.name or '(root)'} ({one.kind}): {one.reason}" for one in skipped[:20])
            + ". Give the modules to prune in module_type_configs or module_name_configs."
        )
    return PruningPlan(tuple(found.values()), skipped, _count_dense(model, found))


def _count_dense(model: nn.Module, found: dict[int, PrunedParameter]) -> int:
    """Weights of rank 2 and more that are not pruned; the gains of a weight norm are no weights."""
    return sum(
        one.numel()
        for name, one in model.named_parameters()
        if not isinstance(one, UninitializedParameter)
        and one.ndim > 1
        and id(one) not in found
        and not name.endswith(("_g", ".original0"))
    )


def _skip(name: str, module: nn.Module, reason: str, found: dict[int, PrunedParameter]) -> SkippedModule:
    """A module that no rule prunes; what it shares with a module that is pruned is pruned in it too."""
    for attribute, parameter in module._parameters.items():
        one = found.get(id(parameter))
        if one is None:
            continue
        _check_prunable(parameter, one, module)
        if reason.startswith(_LEFT):
            raise ConfigError(
                f"{name} and {one.name} are one tied parameter, but {name} is {reason}, and {one.rule} prunes it. "
                "Leave both modules out with None, or neither."
            )
        found[id(parameter)] = replace(one, owners=(*one.owners, Owner(module, attribute)))
        reason = f"tied to {one.name}, pruned with it"
    return SkippedModule(name, type(module).__name__, reason)


def _choose(name: str, module: nn.Module, config: MagnitudePrunerConfig) -> tuple[list[PrunedParameter], str]:
    """Parameters of one module that are pruned, or why there are none."""
    kind = type(module).__name__
    match = config.match(name, module)
    if match is None:
        return [], "no rule matches it"
    rule, leaf = match
    if leaf is None:
        return [], f"{_LEFT} {rule}"
    whole_names = (f'module_name_configs["{one}"]' for one in (name, re.escape(name)))
    is_named = rule in whole_names or rule.startswith("module_type_configs")
    # a pattern reaches any module whose parameter it names, as "encoder.*" with in_proj_weight does
    names_parameter = rule.startswith("module_name_configs") and leaf.param_name != "weight"
    if not isinstance(module, SUPPORTED_MODULES) and not is_named and not names_parameter:
        if all(parameter.ndim < 2 for parameter in module.parameters(recurse=False)):
            return [], "its parameters have rank 1"
        called = kind if kind not in _SUPPORTED_NAMES else f"{type(module).__module__}.{kind}"
        return [], f"{called} is pruned only where its type or its full name is given"
    attributes = _find_attributes(module, leaf.param_name)
    if not attributes and is_named:
        own = [key for key, _ in module.named_parameters(recurse=False)]
        hint = did_you_mean(leaf.param_name, own) or (
            f" It has {', '.join(own)}."
            if own
            else f" It has none of its own. For the modules in it write module_name_configs[{_inside(name)!r}]."
        )
        raise ConfigError(f'{rule}.param_name: {_called(name, kind)} has no parameter "{leaf.param_name}".{hint}')
    chosen = []
    for attribute in attributes:
        is_clear = attribute == leaf.param_name and name != "global"  # "global" is the sum in every report
        label = name if is_clear else ".".join(filter(None, (name, attribute)))
        owner, path = _resolve(module, attribute, rule, _called(name, kind))
        parameter = getattr(owner.module, owner.attribute)
        if not isinstance(parameter, UninitializedParameter) and parameter.numel() == 0:
            return [], "it has no weights"
        full_name = ".".join(filter(None, (name, path)))
        one = PrunedParameter(full_name, label, (owner,), leaf, rule, ())
        _check_prunable(parameter, one, module)
        one = PrunedParameter(full_name, label, (owner,), leaf, rule, tuple(parameter.shape))
        _check_fits(one, _called(name, kind))
        chosen.append(one)
    return chosen, f'it has no parameter "{leaf.param_name}"'


def _find_attributes(module: nn.Module, pattern: str) -> list[str]:
    """Names of a module's own parameters, parametrized and already pruned ones too, that match a pattern."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    names += list(module.parametrizations) if _is_parametrized(module) else []  # type: ignore[arg-type]
    hooks = module._forward_pre_hooks.values()
    names += [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
    # torch.nn.utils.weight_norm keeps "weight" as weight_g and weight_v
    names += [
        name[:-2] for name in module._parameters if name.endswith("_v") and name[:-2] + "_g" in module._parameters
    ]
    norms = [hook.name for hook in hooks if isinstance(hook, SpectralNorm)]
    names = [name for name in names if name not in {f"{norm}_orig" for norm in norms}] + norms
    return [name for name in names if fullmatch(pattern, name)]


def _resolve(module: nn.Module, attribute: str, rule: str, called: str) -> tuple[Owner, str]:
    """The place of the tensor that training updates, behind a parametrization of ``attribute``."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == attribute:
            raise ConfigError(
                f"{rule}: {called} is pruned already, by {type(hook).__name__}. One parameter can have one pruner: "
                "remove the other one, or leave this module out with None."
            )
    if module._parameters.get(attribute) is not None:
        return Owner(module, attribute), attribute
    for inner in (f"{attribute}_v", f"{attribute}_orig"):  # of weight_norm and spectral_norm in their old style
        if inner in module._parameters:
            return Owner(module, inner), inner
    steps = module.parametrizations[attribute] if _is_parametrized(module) else []  # type: ignore[index]
    kind = type(steps[0]).__name__ if len(steps) == 1 else None
    if kind not in _ORIGINALS:
        names = " and ".join(type(step).__name__ for step in steps)
        raise ConfigError(
            f"{rule}: {called} computes its {attribute} by {names or 'nothing'}, which would not keep zeros. "
            "Remove the parametrization, or leave this module out with None."
        )
    original = _ORIGINALS[kind]
    return Owner(steps, original), f"parametrizations.{attribute}.{original}"  # type: ignore[arg-type]


def _check_prunable(parameter: Any, one: PrunedParameter, module: nn.Module) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ConfigError(
            f"{one.rule}: {one.name} has no shape yet. Run one batch through the model before it is prepared."
        )
    if parameter is None or not parameter.is_floating_point():
        raise ConfigError(f"{one.rule}: {one.name} must be a parameter of a floating dtype, got {shown(parameter)}.")
    if getattr(module, "sparse", False):
        raise ConfigError(
            f"{one.rule}: {one.name} has sparse gradients. Write sparse=False, or leave it out with None."
        )


class _MisfitError(ConfigError):
    """A rule asks for a structure that a weight does not have."""


def _check_fits(one: PrunedParameter, called: str) -> None:
    """Check that the structure that the rule asks for exists in a weight of this shape."""
    leaf, rank, leave_out = one.config, len(one.shape), f"or leave {called} out with None."
    least = 1 if leaf.n_m_ratio is None else 2
    if rank < least:
        raise _MisfitError(
            f"{one.rule}: {one.name} has shape {one.shape}, but what this rule prunes has rank {least} or more. "
            f"Give it another rule, {leave_out}"
        )
    if leaf.granularity != "per_scalar" and rank < 3:
        raise _MisfitError(
            f'{one.rule}.granularity: "{leaf.granularity}" needs a weight of rank 3 or more, but {called} has shape '
            f'{one.shape}. Give it a rule with "per_scalar", {leave_out}'
        )
    if leaf.block_size > 1 and leaf.block_size > one.shape[0] // 2:
        raise _MisfitError(
            f"{one.rule}.block_size must be at most half the output channels, got {leaf.block_size} for the "
            f"{one.shape[0]} of {called}. Give it a rule with a smaller block_size, {leave_out}"
        )
    if leaf.n_m_ratio is not None:
        n, m = leaf.n_m_ratio
        if one.shape[leaf.dim] <= m - n:
            raise _MisfitError(
                f"{one.rule}.n_m_ratio: {n}:{m} zeros along dim {leaf.dim} prunes nothing of {called}, whose shape is "
                f"{one.shape}. Give it another rule, {leave_out}"
            )


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


def _check_rules_prune(modules: dict[str, nn.Module], config: MagnitudePrunerConfig, used: set[str]) -> None:
    """Refuse a rule by name that applies to modules of which it prunes none."""
    for pattern, leaf in config.module_name_configs.items():
        rule = f'module_name_configs["{pattern}"]'
        applies = [name for name, module in modules.items() if (config.match(name, module) or ("",))[0] == rule]
        if leaf is not None and applies and rule not in used:
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in applies}))
            raise ConfigError(
                f"{rule} prunes nothing: it matches {', '.join(applies[:5])} ({kinds}), where a pattern finds no "
                f'"{leaf.param_name}" to prune. Write the full name of the module, or a pattern that reaches inside it '
                f'such as "{pattern}\\..*".'
            )


def _tie(first: PrunedParameter, second: PrunedParameter) -> PrunedParameter:
    """One entry for a parameter that hangs in two places."""
    if first.config != second.config:
        raise ConfigError(
            f"{first.name} and {second.name} are one tied parameter, but {first.rule} and {second.rule} prune it "
            "differently. Give both modules the same rule."
        )
    owners = first.owners + second.owners
    return PrunedParameter(first.name, first.label, owners, first.config, first.rule, first.shape)


def _inside(name: str) -> str:
    """A pattern that reaches the modules inside a module."""
    return f"{re.escape(name)}\\..*" if name else ".*"


def _called(name: str, kind: str) -> str:
    return f'"{name}" ({kind})' if name else f"the model ({kind})"


def _is_parametrized(module: nn.Module) -> bool:
    return bool(parametrize.is_parametrized(module))


def _is_inner(name: str) -> bool:
    return "parametrizations" in name.split(".")


def uncompiled_name(name: str) -> str:
    """The name without the wrapper that torch.compile puts around a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
