"""Moments of a training run: optimizer steps, fractions of the run, epochs."""

from __future__ import annotations

import re
from typing import Any

from lightning_prune.basics import plain_number, plain_text, yaml_hint
from lightning_prune.errors import ConfigError, shown

__all__ = ["Moment", "check_moment", "count_epochs"]

Moment = int | float | str
"""An int is optimizer steps, a float a fraction of the run in [0, 1], ``"3 epochs"`` epochs."""

_EPOCHS = re.compile(r"\s*(\d{1,9}(?:\.\d{1,18})?)\s*(?:ep|epochs?)\s*")


def check_moment(moment: Any, name: str) -> Moment:
    """Check a moment that a user wrote, or a distance of moments, and give it as a plain number or text.

    Args:
        moment: What was written.
        name: How the user spells the value, for the error.

    Raises:
        ConfigError: It is no moment, or lies outside of any run.
    """
    value = plain_text(plain_number(moment))
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(
            f'{name} must be steps (an int), a fraction of the run (a float) or "N epochs", got {shown(value)}.'
            f"{yaml_hint(value)}"
        )
    if isinstance(value, str):
        count_epochs(value, name)
    elif isinstance(value, float) and not 0.0 <= value <= 1.0:
        steps = int(value) if value > 1.0 and value.is_integer() else "an int"
        raise ConfigError(
            f"{name} as a float is a fraction of the run in [0, 1], got {shown(value)}. "
            f"Write {steps} for optimizer steps."
        )
    elif isinstance(value, int) and value < 0:
        least = 1 if name == "frequency" else 0
        raise ConfigError(f"{name} must be at least {least} optimizer steps, got {shown(value)}.")
    return value


def count_epochs(text: str, name: str) -> float:
    """Read the number of epochs, whole or not, from a text such as ``"3 epochs"``.

    Args:
        text: What was written.
        name: How the user spells the value, for the error.

    Raises:
        ConfigError: The text names no epochs.
    """
    match = _EPOCHS.fullmatch(text)
    if match is None:
        raise ConfigError(
            f'{name} as a text is a number of epochs such as "3 epochs", got {shown(text)}.{yaml_hint(text)}'
        )
    return float(match.group(1))
