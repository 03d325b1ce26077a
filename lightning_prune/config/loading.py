"""A configuration in any form that a user may hold: a dict, a file, a class, an object of Core ML Tools."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_prune.config.coreai_opt import COREAI_OPT_KEY, from_coreai_opt
from lightning_prune.config.fixed import FixedMasks
from lightning_prune.config.keys import check_keys
from lightning_prune.config.levels import MagnitudePrunerConfig, Rule
from lightning_prune.config.rules import DEFAULT_TARGET, ModuleMagnitudePrunerConfig
from lightning_prune.config.yaml_files import read_yaml
from lightning_prune.errors import ConfigError, shown

__all__ = ["load_config"]

_OURS = ("pruned_gradient", "decay", "score")  # settings of a rule that Core ML Tools does not have


def load_config(source: object) -> MagnitudePrunerConfig:
    """Read a configuration in any form that a user may hold.

    A schedule in it may name a class of the user's own, which is imported: unlike a checkpoint, a configuration is to
    be trusted as code is.

    Args:
        source: A :class:`MagnitudePrunerConfig`, one :class:`ModuleMagnitudePrunerConfig` for the whole model, a nested
            dict, a path of a YAML file or its text, None for the default, or the configuration object of the same name
            of Core ML Tools or of coreai-opt, or what a YAML file of coreai-opt holds.

    Returns:
        A configuration of its own: what the user does with the source afterwards does not change it.

    Raises:
        ConfigError: It is none of these, or does not hold together.
    """
    if source is None:
        return MagnitudePrunerConfig()
    if isinstance(source, MagnitudePrunerConfig):
        copied = copy.copy(source)
        # rules are checked already, but for those that were put into a dict past the checks
        copied.global_config = copy.copy(source.global_config)
        copied.module_type_configs = {key: copy.copy(rule) for key, rule in source.module_type_configs.items()}
        copied.module_name_configs = {key: copy.copy(rule) for key, rule in source.module_name_configs.items()}
        return copied
    if isinstance(source, ModuleMagnitudePrunerConfig):
        return MagnitudePrunerConfig(global_config=copy.copy(source))
    if isinstance(source, Mapping) and "class_path" in source and set(source) <= {"class_path", "init_args"}:
        return load_config(_build_class(source["class_path"], source.get("init_args") or {}))  # as LightningCLI writes
    if isinstance(source, (str, os.PathLike)):
        values = read_yaml(source)
        is_theirs = isinstance(values, Mapping) and COREAI_OPT_KEY in values
        return from_coreai_opt(values) if is_theirs else MagnitudePrunerConfig.from_dict(values)
    if type(source).__module__.startswith("coreai_opt.") or (isinstance(source, Mapping) and COREAI_OPT_KEY in source):
        return from_coreai_opt(source)
    if isinstance(source, Mapping):
        return MagnitudePrunerConfig.from_dict(source)
    if type(source).__module__.startswith("jsonargparse.") and hasattr(source, "as_dict"):
        return load_config(source.as_dict())  # what LightningCLI could not build: the error says why
    if type(source).__module__.startswith("coremltools."):
        return _from_coremltools(source)
    raise ConfigError(
        f"config must be a MagnitudePrunerConfig, a dict or the path of a YAML file, got {type(source).__name__}."
    )


def _build_class(class_path: Any, init_args: Mapping[str, Any]) -> object:
    known = {cls.__name__: cls for cls in (MagnitudePrunerConfig, ModuleMagnitudePrunerConfig)}
    if str(class_path).endswith("FixedMasks"):
        check_keys(init_args, ("masks",))
        return FixedMasks(init_args.get("masks", {}))
    if str(class_path).endswith("FixedMasks.from_zeros"):
        check_keys(init_args, ())
        return FixedMasks.from_zeros()
    cls = known.get(str(class_path).rpartition(".")[2])
    if cls is None:
        raise ConfigError(
            f"class_path of a configuration must be one of {', '.join(known)}, FixedMasks, got {shown(class_path)}."
        )
    return cls.from_dict(init_args)


def _from_coremltools(source: Any) -> MagnitudePrunerConfig:
    """Copy a Core ML Tools configuration value by value; it has the same names at all levels."""
    if type(source).__name__ == "ModuleMagnitudePrunerConfig":
        return MagnitudePrunerConfig(global_config=_rule_from_coremltools(source))
    if type(source).__name__ != "MagnitudePrunerConfig":
        raise ConfigError(
            f"config is a {type(source).__name__} of Core ML Tools; only its MagnitudePrunerConfig describes pruning."
        )
    return MagnitudePrunerConfig(
        _rule_from_coremltools(source.global_config),
        {key: _rule_from_coremltools(rule) for key, rule in source.module_type_configs.items()},
        {key: _rule_from_coremltools(rule) for key, rule in source.module_name_configs.items()},
    )


def _rule_from_coremltools(rule: Any) -> Rule:
    if rule is None:
        return None
    names = [entry.name for entry in fields(ModuleMagnitudePrunerConfig) if entry.name not in _OURS]
    values = {name: getattr(rule, name) for name in names}
    schedule = rule.scheduler
    arguments = ("begin_step",) if hasattr(schedule, "begin_step") else ("update_steps", "power")
    values["scheduler"] = {name: getattr(schedule, name) for name in arguments}
    if values["n_m_ratio"] is not None:
        values["target_sparsity"] = DEFAULT_TARGET  # Core ML Tools ignores it there
    return ModuleMagnitudePrunerConfig.from_dict(values)
