"""Update steps, as a user writes them: whole, increasing, and not more than there is memory for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_prune.basics import plain_list, plain_number, yaml_hint
from lightning_prune.errors import ConfigError, shown

__all__ = ["MOST_UPDATES", "parse_steps", "within_bounds"]

MOST_UPDATES = 10**6
"""Updates of a schedule, each of which is kept: more would be a slip, and may be more than there is memory for."""

_RANGE = re.compile(r"\s*range\(\s*(-?\d{1,18})\s*(?:,\s*(-?\d{1,18})\s*)?(?:,\s*(-?\d{1,18})\s*)?,?\s*\)\s*")


def parse_steps(value: Any) -> tuple[int, ...]:
    """Read the update steps of a schedule.

    Args:
        value: A sequence of whole numbers, or the text of a range: ``"range(0, 5000, 100)"``.

    Returns:
        The steps as plain numbers, strictly increasing.

    Raises:
        ConfigError: They are no whole numbers, do not increase, are too many, or would never fire.
    """
    if isinstance(value, str):
        match = _RANGE.fullmatch(value)
        if match is None:
            raise ConfigError(
                f'update_steps must be a list of steps or a text like "range(0, 5000, 100)", got {shown(value)}.'
            )
        bounds = [int(number) for number in match.groups() if number is not None]
        if len(bounds) == 3 and bounds[2] == 0:
            raise ConfigError(f"update_steps has a range whose step is 0: {shown(value)}. Write a step of at least 1.")
        value = range(*bounds)
    elif getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value[: MOST_UPDATES + 1]  # enough to see that there are too many
    value = plain_list(value)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise ConfigError(f"update_steps must be a list of optimizer steps, got {shown(value)}. Write [100, 200, 300].")
    steps = tuple(plain_number(step) for step in within_bounds(value, "update_steps"))
    for step in steps:
        is_whole = type(step) is int or (isinstance(step, float) and step.is_integer())
        if not is_whole or step < 0:
            raise ConfigError(
                f"update_steps must hold whole optimizer steps of at least 0, got {shown(step)} in {shown(value)}."
                f"{yaml_hint(step)}"
            )
    steps = tuple(int(step) for step in steps)
    if not steps:
        raise ConfigError("update_steps must not be empty: nothing would ever be pruned. Write [100, 200, 300].")
    if steps == (0,):
        raise ConfigError("update_steps=[0] would never fire: optimizer steps count from 1. Write [1].")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ConfigError(
            f"update_steps must be strictly increasing, got {shown(list(steps))}. Sort them, and name each step once."
        )
    return steps


def within_bounds(steps: Iterable[Any], name: str) -> tuple[Any, ...]:
    """Give steps as a tuple, of which not more is made than there may be; ``name`` is for the error."""
    found = tuple(itertools.islice(steps, MOST_UPDATES + 1))
    if len(found) > MOST_UPDATES:
        raise ConfigError(
            f"{name} must give at most {MOST_UPDATES:,} updates, but gives more. Write them further apart: a hundred "
            "updates are many."
        )
    return found
