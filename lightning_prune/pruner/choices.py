"""What a user chooses for a whole model: how masks are held, and what is ranked together."""

from __future__ import annotations

from typing import Literal, get_args

from lightning_prune.errors import ConfigError, shown
from lightning_prune.masking import Masking
from lightning_prune.slim import Slim

__all__ = ["Scope", "check_choices", "check_slim"]

Scope = Literal["layer", "global"]


def check_choices(masking: str, scope: str) -> None:
    """Refuse what is neither a way to hold masks nor a scope of ranking."""
    for name, value, known in (("masking", masking, Masking), ("scope", scope, Scope)):
        if value not in get_args(known):
            allowed = " or ".join(f'"{choice}"' for choice in get_args(known))
            raise ConfigError(f"{name} must be {allowed}, got {shown(value)}.")


def check_slim(slim: object, masking: Masking, scope: Scope) -> Slim | None:
    """Read what a user wrote for ``slim``, and refuse what it does not go with."""
    settings = Slim.of(slim)
    if settings is not None and masking != "resident":
        raise ConfigError(f'slim needs masking="resident", got {shown(masking)}: norms and biases are pruned too.')
    if settings is not None and scope != "layer":
        raise ConfigError(f'slim needs scope="layer", got {shown(scope)}: it ranks channels, not single weights.')
    return settings
