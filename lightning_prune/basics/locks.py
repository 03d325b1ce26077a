"""Locks: a configuration that cannot be changed for a while, because what reads it has taken its copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning_prune.errors import ConfigError

__all__ = ["check_lock", "lock", "unlock", "unlocked_state"]

_LOCK = "_lock"
_LEVELS = ("module_type_configs", "module_name_configs")


class _LockedRules(dict[Any, Any]):
    """The rules of one level, read-only."""

    def __init__(self, rules: Mapping[Any, Any], reason: str) -> None:
        super().__init__(rules)
        self._reason = reason

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ConfigError(f"The rules cannot be changed now: {self._reason}")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse


def lock(config: Any, reason: str) -> None:
    """Refuse every change of a configuration and of its rules, until :func:`unlock`; copies of it can be changed.

    Args:
        config: A :class:`~lightning_prune.config.MagnitudePrunerConfig`.
        reason: Why it cannot be changed, and what to do instead.
    """
    unlock(config)
    for part in _parts(config):
        part.__dict__[_LOCK] = reason
    for level in _LEVELS:
        config.__dict__[level] = _LockedRules(config.__dict__[level], reason)


def unlock(config: Any) -> None:
    """Allow changes again."""
    for part in _parts(config):
        part.__dict__.pop(_LOCK, None)
    for level in _LEVELS:
        config.__dict__[level] = dict(config.__dict__[level])


def check_lock(part: object, name: str) -> None:
    """Call before a value of a configuration or of a rule is set.

    Raises:
        ConfigError: It is locked.
    """
    reason = part.__dict__.get(_LOCK)
    if reason is not None:
        raise ConfigError(f"{name} cannot be changed now: {reason}")


def unlocked_state(part: object) -> dict[str, Any]:
    """What a copy and a pickle of a configuration or of a rule get: all but its lock."""
    return {
        name: dict(value) if isinstance(value, _LockedRules) else value
        for name, value in part.__dict__.items()
        if name != _LOCK
    }


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for rule in (config.global_config, *(rule for level in _LEVELS for rule in getattr(config, level).values())):
        if rule is not None:
            yield rule
