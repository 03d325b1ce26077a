"""Keys and names that a user writes: refused with what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning_prune.basics import check_pattern
from lightning_prune.errors import ConfigError, did_you_mean, shown

__all__ = ["check_keys", "check_name_pattern", "shown_key"]


def check_keys(config: Mapping[str, Any], known: Iterable[str], *, of_rules: Collection[str] = ()) -> None:
    """Refuse a key that is not known, with the nearest that is.

    Args:
        config: Values by key.
        known: The keys that may be there.
        of_rules: Keys that may not be there, but in a rule; the error says so.

    Raises:
        ConfigError: A key is not known.
    """
    known = list(known)
    for key in config:
        if key not in known:
            hint = did_you_mean(shown_key(key), known) or f" Known are {', '.join(known)}."
            if key in of_rules:
                hint = " It belongs in a rule: put it under global_config."
            raise ConfigError(f"{shown_key(key)} is not a known key.{hint}")


def shown_key(key: object) -> str:
    """Give a key as an error shows it: as the user spells it."""
    return key if isinstance(key, str) and len(key) <= 100 else shown(key)


def check_name_pattern(value: Any, must: str) -> None:
    """Refuse what is no regular expression of names; ``must`` says which value must be it, for the error."""
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
