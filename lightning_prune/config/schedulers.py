"""Schedules in a configuration: built from a dict of their arguments, and written as such a dict again."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lightning_prune.basics import plain_list, plain_number, plain_text
from lightning_prune.config.keys import check_keys
from lightning_prune.errors import ConfigError, one_line, shown
from lightning_prune.schedules import (
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    GeometricDecayScheduler,
    PolynomialDecayScheduler,
    PruningScheduler,
)

__all__ = ["build_scheduler", "describe_scheduler"]

_HOME = "lightning_prune.schedules"
_OURS: dict[str, type[PruningScheduler]] = {
    cls.__name__: cls
    for cls in (ConstantSparsityScheduler, CosineDecayScheduler, GeometricDecayScheduler, PolynomialDecayScheduler)
}


def build_scheduler(values: Mapping[str, Any]) -> PruningScheduler:
    """Build a schedule from a dict of its arguments, or of ``class_path`` and ``init_args``.

    Raises:
        ConfigError: There is no such schedule, or it does not take the arguments; the message starts with its path.
    """
    try:
        if "class_path" in values:
            check_keys(values, ("class_path", "init_args"))
            return _import_scheduler(values["class_path"])(**(values.get("init_args") or {}))
        cls = ConstantSparsityScheduler if "begin_step" in values else PolynomialDecayScheduler
        check_keys(values, (entry.name for entry in fields(cls)))
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
    if name in _OURS and module_name in ("", "lightning_prune", _HOME):
        return _OURS[name]
    try:
        found = getattr(importlib.import_module(module_name or _HOME), name)
    except Exception as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"class_path must be an importable schedule such as my.module.Schedule: {one_line(error)}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, PruningScheduler)):
        raise ConfigError(f"class_path must name a subclass of PruningScheduler, got {shown(class_path)}.")
    return found


def describe_scheduler(scheduler: PruningScheduler) -> dict[str, Any]:
    """Give a schedule as plain values, from which :func:`build_scheduler` builds an equal one."""
    arguments = (
        {entry.name: getattr(scheduler, entry.name) for entry in fields(scheduler) if entry.init}
        if is_dataclass(scheduler)
        else dict(vars(scheduler))
    )
    values = {name: _plain(value) for name, value in arguments.items() if value is not None}
    cls = type(scheduler)
    if cls in (ConstantSparsityScheduler, PolynomialDecayScheduler):
        return values
    is_ours = _OURS.get(cls.__name__) is cls
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
