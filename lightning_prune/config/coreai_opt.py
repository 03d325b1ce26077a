"""A configuration of coreai-opt, Apple's tools for Core AI, as one of ours.

It has the same three levels, and says other things in each rule: which parameters of an operation are pruned, how far
and in what scheme, and a schedule beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning_prune.config.levels import MagnitudePrunerConfig, Rule
from lightning_prune.config.rules import ModuleMagnitudePrunerConfig
from lightning_prune.errors import ConfigError, shown
from lightning_prune.schedules import ConstantSparsityScheduler, PolynomialDecayScheduler, PruningScheduler

__all__ = ["COREAI_OPT_KEY", "from_coreai_opt"]

COREAI_OPT_KEY = "magnitude_pruning_config"
_LEVELS = ("global_config", "module_type_configs", "module_name_configs")
# What holds the weights of the operations that coreai-opt prunes.
_TYPES = (
    "Linear",
    *(f"{kind}{dims}d" for kind in ("Conv", "ConvTranspose") for dims in (1, 2, 3)),
    "MultiheadAttention",
)
_ATTENTION, _PROJECTION = _TYPES[-1], "NonDynamicallyQuantizableLinear"
_DEFAULT_SPECS: Mapping[str, Any] = {"weight": {}, "in_proj_weight": {}}


def from_coreai_opt(source: Any) -> MagnitudePrunerConfig:
    """Read a configuration of coreai-opt.

    Three things differ. A global rule reaches Linear and convolutions, as every global rule here does: transposed
    convolutions and the packed weights of attention are pruned where a rule names their type or them, and a plan says
    so. A rule by name is for the module of that name, not for those within it; None is for both. And channels are
    ranked by their L2 norm here, by their L1 norm there; among single weights masks are equal.

    Args:
        source: Its ``MagnitudePrunerConfig`` or ``ModuleMagnitudePrunerConfig``, or the dict that its YAML files hold.

    Raises:
        ConfigError: It says something that has no counterpart.
    """
    if type(source).__name__ == "ModuleMagnitudePrunerConfig":
        source = {"global_config": source}
    elif isinstance(source, Mapping):
        if others := set(source) - {COREAI_OPT_KEY, "pruning_spec"}:
            raise ConfigError(f"{sorted(map(str, others))[0]} is not a key beside {COREAI_OPT_KEY}. Leave it out.")
        source = source[COREAI_OPT_KEY]
    elif type(source).__name__ != "MagnitudePrunerConfig":
        raise ConfigError(
            f"config is a {type(source).__name__} of coreai-opt; only its MagnitudePrunerConfig describes pruning."
        )
    if isinstance(source, Mapping) and (unknown := set(source) - set(_LEVELS)):
        raise ConfigError(
            f"{COREAI_OPT_KEY}.{sorted(map(str, unknown))[0]} is not a level. Known: {', '.join(_LEVELS)}."
        )
    types: dict[Any, Rule] = {}
    whole = _value(source, "global_config", {} if isinstance(source, Mapping) else None)
    for key, rule in (_value(source, "module_type_configs") or {}).items():
        path, kind = f'module_type_configs["{key}"]', str(key).rpartition(".")[2]
        if kind not in _TYPES:
            raise ConfigError(
                f"{path} must be a layer that coreai-opt prunes ({', '.join(_TYPES)}): of "
                "another type its rule reaches the layers within. Name them in module_name_configs."
            )
        types[kind] = _rule_of(rule, _parameter_of(kind), path)
        if kind == _ATTENTION:
            types[_PROJECTION] = _rule_of(rule, "weight", path)
    names: dict[str, Rule] = {}
    # Where several patterns match a name, the last pattern holds in coreai-opt, and the first holds here.
    for pattern, rule in reversed((_value(source, "module_name_configs") or {}).items()):
        path = f'module_name_configs["{pattern}"]'
        is_name = all(map(str.isidentifier, re.sub(r"\b\d+\b", "_", pattern).split(".")))
        named = _rule_by_name(rule, path) if is_name else _rule_of(rule, "weight", path)
        # Leaving a module dense leaves all within it dense.
        names[pattern if named is not None else rf"(?:{pattern})(?:\..*)?"] = named
    return MagnitudePrunerConfig(_rule_of(whole, "weight", "global_config"), types, names)


def _parameter_of(kind: str) -> str:
    """The parameter of a type of modules that is pruned."""
    return "in_proj_weight" if kind == _ATTENTION else "weight"


def _rule_by_name(rule: Any, path: str) -> Rule:
    """A rule for a module of any type, whose pruned parameter may have either name."""
    weight, packed = (_rule_of(rule, name, path) for name in ("weight", "in_proj_weight"))
    if weight is None or packed is None:
        return weight or packed
    if weight.as_dict() != {**packed.as_dict(), "param_name": weight.param_name}:
        raise ConfigError(
            f"{path} must prune weight and in_proj_weight alike, for a rule here says one thing. Leave out of its "
            "op_state_spec the parameter that the module does not have."
        )
    weight.param_name = "weight|in_proj_weight"
    return weight


def _rule_of(rule: Any, parameter: str, path: str) -> Rule:
    """What a rule says of a parameter."""
    if rule is None:
        return None
    for name in ("op_type_config", "op_name_config"):
        if _value(rule, name):
            raise ConfigError(
                f"{path}.{name} must be left out: rules are for modules here, not for their operations. Name the "
                "modules in module_name_configs."
            )
    specs = _value(rule, "op_state_spec", _DEFAULT_SPECS)
    specs = {"*": None} if specs is None else {**specs, **(_value(rule, "module_state_spec") or {})}
    spec = specs.get(parameter, specs.get("*"))
    if spec is None:
        return None
    scheme = _value(spec, "pruning_scheme") or {}
    axis = _value(scheme, "axis")
    is_structured = axis is not None or "channel" in str(_value(scheme, "type", type(scheme).__name__)).lower()
    if is_structured and axis not in (None, 0):
        raise ConfigError(
            f"{path}.pruning_scheme.axis must be 0, the output channels, got {shown(axis)}. Other channels are not "
            "pruned as a whole here."
        )
    algorithm = _value(spec, "pruning_algo", "default")
    if getattr(algorithm, "__name__", algorithm) not in ("default", "_MagnitudePruneImpl"):
        raise ConfigError(f'{path}.pruning_algo must be "default", which ranks by magnitude, got {shown(algorithm)}.')
    target = _value(spec, "target_sparsity", 0.5)
    schedule, initial = _schedule_of(_value(rule, "sparsity_schedule"), target, path)
    return ModuleMagnitudePrunerConfig(
        schedule,
        initial_sparsity=initial,
        target_sparsity=target,
        granularity="per_channel" if is_structured else "per_scalar",
        param_name=parameter,
    )


def _schedule_of(schedule: Any, target: float, path: str) -> tuple[PruningScheduler, float]:
    """A schedule, and the sparsity that holds before it."""
    if schedule is None:
        return ConstantSparsityScheduler(0), target  # from the first forward on
    total, begin = _value(schedule, "total_iters"), _value(schedule, "begin_step")
    if total is None and begin is None:
        raise ConfigError(
            f"{path}.sparsity_schedule must say begin_step or total_iters, got {shown(schedule)}. The to_dict() of "
            "coreai-opt leaves out what its schedules hold: pass the configuration itself, or write the values in."
        )
    begin = begin or 0
    if total is None:
        return ConstantSparsityScheduler(begin), 0.0 if begin else target
    # A single update comes at the end there, for until then the sparsity is the initial one.
    steps = range(begin, begin + total, _value(schedule, "update_frequency", 1))
    updates = tuple(steps) if len(steps) > 1 else (begin + total,)
    power = _value(schedule, "power", 3.0)
    return PolynomialDecayScheduler(updates, power=power), _value(schedule, "initial_sparsity", 0.0)


def _value(holder: Any, name: str, default: Any = None) -> Any:
    """A value of an object, or of a dict that stands for it."""
    return holder.get(name, default) if isinstance(holder, Mapping) else getattr(holder, name, default)
