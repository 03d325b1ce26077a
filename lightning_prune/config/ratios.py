"""The ratio n:m of a rule, as users write it."""

from __future__ import annotations

import re
from typing import Any

from lightning_prune.basics import plain_list
from lightning_prune.errors import ConfigError, shown

__all__ = ["parse_ratio"]

_RATIO = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*")


def parse_ratio(ratio: Any) -> tuple[int, int]:
    """Read ``(n, m)``: of every m weights n are zero.

    Raises:
        ConfigError: It is no pair of whole numbers, or not 1 <= n < m.
    """
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
