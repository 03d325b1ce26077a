"""``lightning_prune.starter`` as it was; import from ``lightning_prune.cli``."""

from __future__ import annotations

from lightning_prune.cli import starter_yaml

__all__ = ["starter_yaml"]
