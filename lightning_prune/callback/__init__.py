"""The callback: hooks of a Lightning Trainer, and nothing about how pruning works."""

from __future__ import annotations

from lightning_prune.callback.callback import MagnitudePruningCallback
from lightning_prune.callback.strategies import TESTED_STRATEGIES

__all__ = [
    "MagnitudePruningCallback",
    "TESTED_STRATEGIES",
]
