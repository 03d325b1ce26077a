"""What a user chooses for a whole model: how masks are held, and what is ranked together."""

from __future__ import annotations

from typing import Literal, get_args

from lightning_prune.errors import ConfigError, shown
from lightning_prune.masking import Masking

__all__ = ["Scope", "check_choices"]

Scope = Literal["layer", "global"]


def check_choices(masking: str, scope: str) -> None:
    """Refuse what is neither a way to hold masks nor a scope of ranking."""
    for name, value, known in (("masking", masking, Masking), ("scope", scope, Scope)):
        if value not in get_args(known):
            allowed = " or ".join(f'"{one}"' for one in get_args(known))
            raise ConfigError(f"{name} must be {allowed}, got {shown(value)}.")
