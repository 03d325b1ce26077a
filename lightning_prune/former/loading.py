"""``lightning_prune.loading`` as it was; import from ``lightning_prune.cli``."""

from __future__ import annotations

from lightning_prune.cli import load_model

__all__ = ["load_model"]
