"""Configuration: what is pruned, how, and by which schedule. Every value is checked when it is set.

Three levels, the nearer wins: ``module_name_configs`` (regular expressions that match whole names) over
``module_type_configs`` over ``global_config``. ``None`` at any level leaves what it matches dense.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import IO, Any, TypeVar, cast, get_args

from torch import nn

from lightning_prune.basics import (
    as_fraction,
    check_lock,
    check_pattern,
    fullmatch,
    plain_list,
    plain_number,
    plain_text,
    unlocked_state,
    yaml_hint,
)
from lightning_prune.errors import ConfigError, did_you_mean, one_line, shown
from lightning_prune.masks import Granularity, Structure, pruned_count, structure_of
from lightning_prune.schedules import (
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    PolynomialDecayScheduler,
    PruningScheduler,
)

__all__ = ["MagnitudePrunerConfig", "ModuleMagnitudePrunerConfig", "load_config"]

_RATIO = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*")
_Leaf = TypeVar("_Leaf", bound="ModuleMagnitudePrunerConfig")


@dataclass
class ModuleMagnitudePrunerConfig:
    """How the weights that one rule matches are pruned.

    Args:
        scheduler: When and how far. A :class:`~lightning_prune.schedules.PruningScheduler`, or a dict of its arguments:
            ``{"update_steps": [3, 5, 7], "power": 3}``, ``{"begin": 0.1, "end": 0.6}``,
            ``{"begin_step": 100}``, ``{"class_path": "my.Schedule", "init_args": {...}}``. A ``class_path`` that is not
            one of :mod:`lightning_prune.schedules` is imported before anything is known of it: trust a configuration as
            you trust code.
        initial_sparsity: Fraction of zeros in [0, 1] that holds from ``prepare`` on.
        target_sparsity: Fraction of zeros in [0, 1] at the end of the schedule. With ``n_m_ratio`` it is ``n / m``.
        granularity: What is zeroed as one: ``"per_scalar"``, ``"per_kernel"`` (rank 3 and more: one input channel of
            one output channel) or ``"per_channel"`` (rank 2 and more: one output channel, which is a row of Linear).
        block_size: Consecutive output channels zeroed together; at most half of them. 1 is no blocks.
        n_m_ratio: ``(n, m)``: of every ``m`` weights along ``dim``, **n are zero**. Excludes blocks, other
            granularities and an initial sparsity.
        dim: Dimension of the groups of ``m``: 1 (input channels) or 0 (output channels).
        param_name: The parameter of the module that is pruned; a regular expression may match several whole names
            (``"weight_.*"`` of an LSTM, ``"weight|bias"``).

    Raises:
        ConfigError: A value, or two values together, cannot work. Raised by a later assignment too.

    Example:
        >>> config = ModuleMagnitudePrunerConfig({"update_steps": "range(100, 500, 100)"}, target_sparsity=0.75)
        >>> config.scheduler.update_steps
        (100, 200, 300, 400)
    """

    scheduler: PruningScheduler | Mapping[str, Any] = field(default_factory=lambda: ConstantSparsityScheduler(0))
    initial_sparsity: float = 0.0
    target_sparsity: float = 0.5
    granularity: Granularity = "per_scalar"
    block_size: int = 1
    n_m_ratio: tuple[int, int] | None = None
    dim: int = 1
    param_name: str = "weight"

    def __post_init__(self) -> None:
        """Check and settle the values, then watch over later assignments."""
        settle = self.__dict__
        if isinstance(self.scheduler, Mapping):
            settle["scheduler"] = _build_scheduler(self.scheduler)
        if self.n_m_ratio is not None:
            settle["n_m_ratio"] = _pair(self.n_m_ratio)
        for name in ("initial_sparsity", "target_sparsity"):
            settle[name] = as_fraction(name, getattr(self, name))
        for name in ("block_size", "dim"):
            settle[name] = plain_number(getattr(self, name))
        for name in ("granularity", "param_name"):
            settle[name] = plain_text(getattr(self, name))
        self._check_values()
        self._check_together()
        if self.n_m_ratio is not None:
            settle["target_sparsity"] = self.n_m_ratio[0] / self.n_m_ratio[1]
        settle["_is_checked"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        check_lock(self, name)
        if self.__dict__.get("_is_checked"):
            if name not in self.__dataclass_fields__:
                raise ConfigError(f"{name} is not a setting.{did_you_mean(name, self.__dataclass_fields__)}")
            changed = {name: value}
            if name == "n_m_ratio" and self.n_m_ratio is not None:
                changed["target_sparsity"] = _DEFAULT_TARGET  # the one that it gave is not the user's
            self.__dict__.update(vars(replace(self, **changed)))  # the constructor checks, and derives the target
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return unlocked_state(self)

    def _check_values(self) -> None:
        if not isinstance(self.scheduler, PruningScheduler):
            raise ConfigError(
                f"scheduler must be a PruningScheduler or a dict of its arguments, got {shown(self.scheduler)}. "
                "Write PolynomialDecayScheduler(update_steps=[...])."
            )
        allowed = get_args(Granularity)
        if self.granularity not in allowed:
            raise ConfigError(f"granularity must be one of {', '.join(allowed)}, got {shown(self.granularity)}.")
        if type(self.block_size) is not int or self.block_size < 1:
            raise ConfigError(
                f"block_size must be a whole number of output channels of at least 1, got {shown(self.block_size)}. "
                f"Write 1 for no blocks.{yaml_hint(self.block_size)}"
            )
        if type(self.dim) is not int or self.dim not in (0, 1):
            raise ConfigError(
                f"dim must be 0 (output channels) or 1 (input channels), a whole number, got {shown(self.dim)}."
                f"{yaml_hint(self.dim)}"
            )
        _check_pattern(self.param_name, 'param_name must be the name of a parameter such as "weight"')

    def _check_together(self) -> None:
        if self.n_m_ratio is None:
            return
        ratio = f"n_m_ratio={self.n_m_ratio}"
        if self.block_size > 1:
            raise ConfigError(f"block_size must be 1 with {ratio}, got {self.block_size}. Leave one of the two out.")
        if self.granularity != "per_scalar":
            raise ConfigError(f'granularity must be "per_scalar" with {ratio}, got {shown(self.granularity)}.')
        if self.initial_sparsity != 0.0:
            raise ConfigError(f"initial_sparsity must be 0.0 with {ratio}, got {self.initial_sparsity}.")
        n, m = self.n_m_ratio
        if self.target_sparsity not in (_DEFAULT_TARGET, n / m):
            raise ConfigError(
                f"target_sparsity is {n / m:g} by {ratio}, got {self.target_sparsity}. Leave one of the two out."
            )

    @property
    def structure(self) -> Structure:
        """What is zeroed together, as one value: ``granularity`` and ``block_size``, or ``n_m_ratio`` and ``dim``."""
        return structure_of(
            granularity=self.granularity, block_size=self.block_size, n_m_ratio=self.n_m_ratio, dim=self.dim
        )

    def with_target(self: _Leaf, target: float) -> _Leaf | None:
        """The same rule with another target; None, which is dense, where that prunes nothing.

        Example:
            >>> ModuleMagnitudePrunerConfig(n_m_ratio=(2, 4)).with_target(0.8).n_m_ratio
            (3, 4)
        """
        if self.n_m_ratio is None:
            initial = min(self.initial_sparsity, target)
            return replace(self, target_sparsity=target, initial_sparsity=initial) if target else None
        group_size = self.n_m_ratio[1]
        num_zeros = min(pruned_count(group_size, target), group_size - 1)
        ratio = (num_zeros, group_size)
        return replace(self, n_m_ratio=ratio, target_sparsity=num_zeros / group_size) if num_zeros else None

    @property
    def schedule(self) -> PruningScheduler:
        """The scheduler, by its type: a dict was turned into one when the configuration was built."""
        return cast(PruningScheduler, self.scheduler)

    @classmethod
    def from_dict(cls: type[_Leaf], data_dict: Mapping[str, Any]) -> _Leaf:
        """Build from plain values; an unknown key is a ConfigError."""
        if not isinstance(data_dict, Mapping):
            raise ConfigError(f"A rule must be a dict of its values, got {shown(data_dict)}.")
        _check_keys(data_dict, (entry.name for entry in fields(cls)))
        return cls(**data_dict)

    @classmethod
    def from_yaml(cls: type[_Leaf], yml: str | os.PathLike[str] | IO[str]) -> _Leaf:
        """Build from YAML: a path, a text, or an open file."""
        return cls.from_dict(_read_yaml(yml))

    def as_dict(self) -> dict[str, Any]:
        """Give plain numbers, texts, lists and dicts, from which :meth:`from_dict` builds an equal one."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["scheduler"] = _describe_scheduler(self.schedule)
        if self.n_m_ratio is not None:
            values["n_m_ratio"] = list(self.n_m_ratio)
        return values


_DEFAULT_TARGET = 0.5
_OURS: dict[str, type[PruningScheduler]] = {
    cls.__name__: cls for cls in (ConstantSparsityScheduler, CosineDecayScheduler, PolynomialDecayScheduler)
}
_Rule = ModuleMagnitudePrunerConfig | None


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
    under a global rule or one by type, with the reason in the plan; a rule by name that cannot prune it is refused.

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

    global_config: _Rule = None
    module_type_configs: dict[type[nn.Module] | str, _Rule] = field(default_factory=dict)
    module_name_configs: dict[str, _Rule] = field(default_factory=dict)

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

    def set_global(self, global_config: _Rule | Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Set the rule for supported modules that no other rule matches; returns self."""
        self.global_config = cast(_Rule, global_config)
        return self

    def set_module_type(
        self, object_type: type[nn.Module] | str, opt_config: _Rule | Mapping[str, Any]
    ) -> MagnitudePrunerConfig:
        """Set the rule for a class of modules, or for the name of one; returns self."""
        self.module_type_configs = {**self.module_type_configs, object_type: cast(_Rule, opt_config)}
        return self

    def set_module_name(self, module_name: str, opt_config: _Rule | Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Set the rule for modules whose whole name matches a regular expression; returns self."""
        self.module_name_configs = {**self.module_name_configs, module_name: cast(_Rule, opt_config)}
        return self

    def match(self, name: str, module: nn.Module) -> tuple[str, _Rule] | None:
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

    def get_module_config(self, name: str, module: nn.Module) -> _Rule:
        """Give what the nearest rule says of a module; None is dense."""
        found = self.match(name, module)
        return None if found is None else found[1]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> MagnitudePrunerConfig:
        """Build from nested plain values; an unknown key is a ConfigError that names the nearest known one."""
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"A configuration must be a dict, got {shown(config_dict)}.")
        _check_keys(config_dict, (entry.name for entry in fields(cls)))
        return cls(**config_dict)

    def as_dict(self) -> dict[str, Any]:
        """Give nested plain values, from which :meth:`from_dict` builds an equal configuration."""
        return {
            "global_config": _describe_rule(self.global_config),
            "module_type_configs": {
                _type_name(key): _describe_rule(rule) for key, rule in self.module_type_configs.items()
            },
            "module_name_configs": {key: _describe_rule(rule) for key, rule in self.module_name_configs.items()},
        }

    @classmethod
    def from_yaml(cls, yml: str | os.PathLike[str] | IO[str]) -> MagnitudePrunerConfig:
        """Build from YAML: a path, a text, or an open file."""
        return cls.from_dict(_read_yaml(yml))

    def as_yaml(self) -> str:
        """Give the configuration as YAML text, from which :meth:`from_yaml` builds an equal one."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def __eq__(self, other: object) -> bool:
        """Equal rules; a class and its name are the same rule."""
        return self.as_dict() == other.as_dict() if isinstance(other, MagnitudePrunerConfig) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change


def load_config(source: object) -> MagnitudePrunerConfig:
    """Read a configuration in any form that a user may hold.

    A schedule in it may name a class of the user's own, which is imported: unlike a checkpoint, a configuration is to
    be trusted as code is.

    Args:
        source: A :class:`MagnitudePrunerConfig`, one :class:`ModuleMagnitudePrunerConfig` for the whole model, a nested
            dict, a path of a YAML file or its text, None for the default, or the configuration object of the same name
            of Core ML Tools.

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
    if isinstance(source, Mapping):
        return MagnitudePrunerConfig.from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        return MagnitudePrunerConfig.from_yaml(source)
    if type(source).__module__.startswith("jsonargparse.") and hasattr(source, "as_dict"):
        return load_config(source.as_dict())  # what LightningCLI could not build: the error says why
    if type(source).__module__.startswith("coremltools."):
        return _from_coremltools(source)
    raise ConfigError(
        f"config must be a MagnitudePrunerConfig, a dict or the path of a YAML file, got {type(source).__name__}."
    )


def _build_class(class_path: Any, init_args: Mapping[str, Any]) -> object:
    known = {cls.__name__: cls for cls in (MagnitudePrunerConfig, ModuleMagnitudePrunerConfig)}
    cls = known.get(str(class_path).rpartition(".")[2])
    if cls is None:
        raise ConfigError(f"class_path of a configuration must be one of {', '.join(known)}, got {shown(class_path)}.")
    return cls.from_dict(init_args)


def _check_keys(config: Mapping[str, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in config:
        if key not in known:
            hint = did_you_mean(_key(key), known) or f" Known are {', '.join(known)}."
            if "global_config" in known and key in ModuleMagnitudePrunerConfig.__dataclass_fields__:
                hint = " It belongs in a rule: put it under global_config."
            raise ConfigError(f"{_key(key)} is not a known key.{hint}")


def _key(key: object) -> str:
    """A key as an error shows it: as the user spells it."""
    return key if isinstance(key, str) and len(key) <= 100 else shown(key)


def _check_pattern(value: Any, must: str) -> None:
    """Refuse what is no regular expression of names."""
    if not isinstance(value, str):
        raise ConfigError(f"{must}, a text, got {shown(value)}. {_quoted(value)}")
    try:
        check_pattern(value)
    except ConfigError as error:
        raise ConfigError(f"{must}, got {shown(value)}: {error}.") from error


def _quoted(value: object) -> str:
    """How to write as a text what YAML has made something else of."""
    if isinstance(value, bool):
        made = "yes, on and true" if value else "no, off and false"
        return f'YAML makes {value} of {made}: write it in quotes, "{made.partition(",")[0]}".'
    if isinstance(value, (int, float)):
        return f'Write it in quotes, "{value}".'
    return 'Write it in quotes, such as "fc1".'


def _pair(ratio: Any) -> tuple[int, int]:
    pair = plain_list(ratio)
    if not isinstance(pair, list) or len(pair) != 2 or any(type(number) is not int for number in pair):
        raise ConfigError(f"n_m_ratio must be two whole numbers (n, m), got {shown(ratio)}. {_ratio_hint(ratio)}")
    n, m = pair
    if not 1 <= n < m:
        raise ConfigError(
            f"n_m_ratio must have 1 <= n < m, where n of every m weights are zero, got {shown((n, m))}. Write (2, 4)."
        )
    return n, m


def _ratio_hint(ratio: object) -> str:
    """What to write for a ratio that was not written as a list."""
    written = _RATIO.fullmatch(ratio) if isinstance(ratio, str) else None
    n, m = divmod(ratio, 60) if type(ratio) is int else (0, 0)
    if written:
        n, m = int(written.group(1)), int(written.group(2))
    if not 1 <= n < m:
        return "Write (2, 4)."
    in_yaml = f"YAML makes {60 * n + m} of {n}:{m}, a number in base 60: write" if m < 60 else "Write"
    return f"{in_yaml} [{n}, {m}]."


def _build_rule(rule: Any, path: str) -> _Rule:
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


def _type_rules(rules: Any, level: str) -> dict[type[nn.Module] | str, _Rule]:
    """Rules by type; of one type that is spelled in two ways the later rule holds."""
    built: dict[type[nn.Module] | str, _Rule] = {}
    for key, rule in _as_mapping(rules, level).items():
        if not isinstance(key, (str, type)):
            raise ConfigError(f"{level} is keyed by classes or their names, got {shown(key)}.")
        name = _type_name(key)
        built = {other: held for other, held in built.items() if other == key or _type_name(other) != name}
        built[key] = _build_rule(rule, f'{level}["{name}"]')
    return built


def _name_rules(rules: Any, level: str) -> dict[str, _Rule]:
    """Rules by regular expressions of names."""
    built: dict[str, _Rule] = {}
    for key, rule in _as_mapping(rules, level).items():
        path = f'{level}["{_key(key)}"]'
        _check_pattern(key, f"{path}: the name must be a regular expression")
        built[plain_text(key)] = _build_rule(rule, path)
    return built


def _as_mapping(rules: Any, level: str) -> Mapping[Any, Any]:
    if not isinstance(rules, Mapping | None):
        raise ConfigError(f"{level} must be a dict of rules, got {shown(rules)}.")
    return rules or {}


def _describe_rule(rule: _Rule) -> dict[str, Any] | None:
    return None if rule is None else rule.as_dict()


def _type_name(key: type | str) -> str:
    if isinstance(key, str):
        return key
    return key.__name__ if key.__module__.startswith("torch.") else f"{key.__module__}.{key.__qualname__}"


def _build_scheduler(values: Mapping[str, Any]) -> PruningScheduler:
    try:
        if "class_path" in values:
            _check_keys(values, ("class_path", "init_args"))
            return _import_scheduler(values["class_path"])(**(values.get("init_args") or {}))
        cls = ConstantSparsityScheduler if "begin_step" in values else PolynomialDecayScheduler
        _check_keys(values, (entry.name for entry in fields(cls)))
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"scheduler.{error}") from error
    except TypeError as error:
        raise ConfigError(f"scheduler cannot be built from {shown(dict(values))}: {one_line(error)}.") from error


def _import_scheduler(class_path: Any) -> type[PruningScheduler]:
    if not isinstance(class_path, str) or not all(map(str.isidentifier, class_path.split("."))):
        raise ConfigError(
            f"class_path must be the name of a schedule such as my.module.Schedule, got {shown(class_path)}."
        )
    module_name, _, name = class_path.rpartition(".")
    if name in _OURS and module_name in ("", "lightning_prune", PruningScheduler.__module__):
        return _OURS[name]
    try:
        found = getattr(importlib.import_module(module_name or PruningScheduler.__module__), name)
    except Exception as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"class_path must be an importable schedule such as my.module.Schedule: {one_line(error)}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, PruningScheduler)):
        raise ConfigError(f"class_path must name a subclass of PruningScheduler, got {shown(class_path)}.")
    return found


def _describe_scheduler(scheduler: PruningScheduler) -> dict[str, Any]:
    arguments = (
        {entry.name: getattr(scheduler, entry.name) for entry in fields(scheduler) if entry.init}
        if is_dataclass(scheduler)
        else dict(vars(scheduler))
    )
    values = {name: _plain(value) for name, value in arguments.items() if value is not None}
    cls = type(scheduler)
    if cls in (ConstantSparsityScheduler, PolynomialDecayScheduler):
        return values
    is_ours = cls.__module__ == PruningScheduler.__module__
    return {"class_path": cls.__name__ if is_ours else f"{cls.__module__}.{cls.__qualname__}", "init_args": values}


def _plain(value: Any) -> Any:
    """A value as YAML can write it; a long regular tuple of steps as the text of a range."""
    value = plain_text(plain_number(value))
    if isinstance(value, Mapping):
        return {plain_text(plain_number(key)): _plain(item) for key, item in value.items()}
    if not isinstance(value, tuple):
        items = plain_list(value)
        return [_plain(item) for item in items] if isinstance(items, list) else value
    if len(value) > 3 and all(isinstance(number, int) for number in value):
        steps = range(value[0], value[-1] + 1, max(1, value[1] - value[0]))
        if tuple(steps) == value:
            return f"range({steps.start}, {steps.stop}, {steps.step})"
    return list(value)


def _read_yaml(source: str | os.PathLike[str] | IO[str]) -> Any:
    from lightning_prune.basics import load_yaml

    values = load_yaml(source)
    if values is None:
        raise ConfigError("The YAML configuration is empty. Write {} to prune every supported module by half.")
    return values


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


def _rule_from_coremltools(rule: Any) -> _Rule:
    if rule is None:
        return None
    values = {entry.name: getattr(rule, entry.name) for entry in fields(ModuleMagnitudePrunerConfig)}
    schedule = rule.scheduler
    names = ("begin_step",) if hasattr(schedule, "begin_step") else ("update_steps", "power")
    values["scheduler"] = {name: getattr(schedule, name) for name in names}
    if values["n_m_ratio"] is not None:
        values["target_sparsity"] = _DEFAULT_TARGET  # Core ML Tools ignores it there
    return ModuleMagnitudePrunerConfig.from_dict(values)
