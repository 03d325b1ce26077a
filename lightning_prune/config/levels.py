"""Three levels of rules, the nearer wins: by name, by type, for all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import IO, Any, cast

from torch import nn

from lightning_prune.basics import check_lock, fullmatch, plain_text, unlocked_state
from lightning_prune.config.keys import check_keys, check_name_pattern, shown_key
from lightning_prune.config.rules import ModuleMagnitudePrunerConfig
from lightning_prune.config.yaml_files import read_yaml
from lightning_prune.errors import ConfigError, did_you_mean, shown

__all__ = ["MagnitudePrunerConfig", "Rule"]

Rule = ModuleMagnitudePrunerConfig | None
"""What a level says of a module; None leaves it dense."""


@dataclass(eq=False)
class MagnitudePrunerConfig:
    """What of a model is pruned, and how.

    Args:
        global_config: For every Linear, Conv1d, Conv2d and Conv3d that no other rule matches. None leaves them dense.
        module_type_configs: By class, or by name of a class (``"Conv2d"``, ``"my.package.Layer"``); subclasses match
            too, the nearest class first. None leaves the type dense.
        module_name_configs: By regular expression that matches the whole name of a module. None leaves it dense.

    With no rule at all, ``global_config`` is a default :class:`ModuleMagnitudePrunerConfig`. Values may be dicts.

    A weight that a rule does not fit (n:m without one whole group, blocks of more than half the channels) stays dense
    under a global rule or a rule by type, with the reason in the plan; a rule by name that cannot prune it is refused.

    Raises:
        ConfigError: A key or a value cannot work; the message starts with its path.

    Example:
        >>> config = MagnitudePrunerConfig.from_dict({
        ...     "global_config": {"scheduler": {"update_steps": [3, 5, 7]}, "target_sparsity": 0.75},
        ...     "module_name_configs": {"head": None},
        ... })
        >>> config.get_module_config("head", nn.Linear(4, 2)) is None
        True
        >>> config.get_module_config("body.0", nn.Linear(4, 2)).target_sparsity
        0.75
    """

    global_config: Rule = None
    module_type_configs: dict[type[nn.Module] | str, Rule] = field(default_factory=dict)
    module_name_configs: dict[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prune everything that is supported, if there is no rule."""
        if self.global_config is None and not self.module_type_configs and not self.module_name_configs:
            self.global_config = ModuleMagnitudePrunerConfig()

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a level whenever it is set."""
        check_lock(self, name)
        check = {"global_config": _build_rule, "module_type_configs": _type_rules, "module_name_configs": _name_rules}
        if name in check:
            value = check[name](value, name)
        elif type(self) is MagnitudePrunerConfig:
            raise ConfigError(f"{name} is not a level.{did_you_mean(name, check)}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return unlocked_state(self)

    def set_global(self, global_config: Rule | Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Set the rule for supported modules that no other rule matches; returns self."""
        self.global_config = cast(Rule, global_config)
        return self

    def set_module_type(
        self, object_type: type[nn.Module] | str, opt_config: Rule | Mapping[str, Any]
    ) -> MagnitudePrunerConfig:
        """Set the rule for a class of modules, or for the name of a class; returns self."""
        self.module_type_configs = {**self.module_type_configs, object_type: cast(Rule, opt_config)}
        return self

    def set_module_name(self, module_name: str, opt_config: Rule | Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Set the rule for modules whose whole name matches a regular expression; returns self."""
        self.module_name_configs = {**self.module_name_configs, module_name: cast(Rule, opt_config)}
        return self

    def match(self, name: str, module: nn.Module) -> tuple[str, Rule] | None:
        """Find the rule for a module.

        Returns:
            The path of the rule (``'module_name_configs["head"]'``, ``"global_config"``) and what it says;
            None where no rule by name or type matches and ``global_config`` is not set.
        """
        for pattern, rule in self.module_name_configs.items():
            if fullmatch(pattern, name):
                return f'module_name_configs["{pattern}"]', rule
        for cls in type(module).__mro__:
            for key in (cls, cls.__name__, f"{cls.__module__}.{cls.__qualname__}"):
                if key in self.module_type_configs:
                    return f'module_type_configs["{_type_name(key)}"]', self.module_type_configs[key]
        return None if self.global_config is None else ("global_config", self.global_config)

    def rules(self) -> dict[str, Rule]:
        """Give all rules by their paths, such as ``'module_name_configs["head"]'``."""
        found: dict[str, Rule] = {"global_config": self.global_config}
        found |= {f'module_type_configs["{_type_name(key)}"]': rule for key, rule in self.module_type_configs.items()}
        return found | {f'module_name_configs["{key}"]': rule for key, rule in self.module_name_configs.items()}

    def get_module_config(self, name: str, module: nn.Module) -> Rule:
        """Give what the nearest rule says of a module; None is dense."""
        found = self.match(name, module)
        return None if found is None else found[1]

    @property
    def rule_names(self) -> list[str]:
        """What each rule is for: ``"global"``, the names of classes, the patterns of names."""
        rules = ["global"] if self.global_config is not None else []
        rules += [key if isinstance(key, str) else key.__name__ for key in self.module_type_configs]
        return rules + list(self.module_name_configs)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Build from nested plain values; an unknown key is a ConfigError that names the nearest known one."""
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"A configuration must be a dict, got {shown(config_dict)}.")
        known = (entry.name for entry in fields(cls))
        check_keys(config_dict, known, of_rules=ModuleMagnitudePrunerConfig.__dataclass_fields__)
        return cls(**config_dict)

    def as_dict(self) -> dict[str, Any]:
        """Give nested plain values, from which :meth:`from_dict` builds an equal configuration."""
        rules = {path: _describe_rule(rule, path) for path, rule in self.rules().items()}
        by_type = {
            _type_name(key): rules[f'module_type_configs["{_type_name(key)}"]'] for key in self.module_type_configs
        }
        by_name = {key: rules[f'module_name_configs["{key}"]'] for key in self.module_name_configs}
        return {
            "global_config": rules["global_config"],
            "module_type_configs": by_type,
            "module_name_configs": by_name,
        }

    @classmethod
    def from_yaml(cls, yml: str | os.PathLike[str] | IO[str]) -> MagnitudePrunerConfig:
        """Build from YAML: a path, a text, or an open file."""
        return cls.from_dict(read_yaml(yml))

    def as_yaml(self) -> str:
        """Give the configuration as YAML text, from which :meth:`from_yaml` builds an equal one."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def __eq__(self, other: object) -> bool:
        """Equal rules; a class and its name are the same rule."""
        return self._compared() == other._compared() if isinstance(other, MagnitudePrunerConfig) else NotImplemented

    def _compared(self) -> dict[str, Any]:
        """The rules by their paths, each with its score; the order of names tells which rule holds."""
        rules = {path: rule and (rule.described(), rule.score) for path, rule in self.rules().items()}
        return {"names": list(self.module_name_configs), **rules}

    __hash__ = None  # type: ignore[assignment]  # it can change


def _build_rule(rule: Any, path: str) -> Rule:
    if rule is None or isinstance(rule, ModuleMagnitudePrunerConfig):
        return rule
    if not isinstance(rule, Mapping):
        raise ConfigError(
            f"{path} must be a ModuleMagnitudePrunerConfig, a dict of its values or None, got {shown(rule)}."
        )
    try:
        return ModuleMagnitudePrunerConfig.from_dict(rule)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error


def _type_rules(rules: Any, level: str) -> dict[type[nn.Module] | str, Rule]:
    """Rules by type; where a type is spelled in two ways, as a class and by its name, the later rule holds."""
    built: dict[type[nn.Module] | str, Rule] = {}
    for key, rule in _as_mapping(rules, level).items():
        if not isinstance(key, (str, type)):
            raise ConfigError(f"{level} is keyed by classes or their names, got {shown(key)}.")
        name = _type_name(key)
        built = {other: held for other, held in built.items() if other == key or _type_name(other) != name}
        built[key] = _build_rule(rule, f'{level}["{name}"]')
    return built


def _name_rules(rules: Any, level: str) -> dict[str, Rule]:
    """Rules by regular expressions of names."""
    built: dict[str, Rule] = {}
    for key, rule in _as_mapping(rules, level).items():
        path = f'{level}["{shown_key(key)}"]'
        check_name_pattern(key, f"{path}: the name must be a regular expression")
        built[plain_text(key)] = _build_rule(rule, path)
    return built


def _as_mapping(rules: Any, level: str) -> Mapping[Any, Any]:
    if not isinstance(rules, Mapping | None):
        raise ConfigError(f"{level} must be a dict of rules, got {shown(rules)}.")
    return rules or {}


def _describe_rule(rule: Rule, path: str) -> dict[str, Any] | None:
    try:
        return None if rule is None else rule.as_dict()
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error


def _type_name(key: type | str) -> str:
    if isinstance(key, str):
        return key
    return key.__name__ if key.__module__.startswith("torch.") else f"{key.__module__}.{key.__qualname__}"
