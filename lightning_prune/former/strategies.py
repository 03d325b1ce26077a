"""``lightning_prune.strategies`` as it was; import from ``lightning_prune.callback``."""

from __future__ import annotations

from lightning_prune.callback import TESTED_STRATEGIES

__all__ = ["TESTED_STRATEGIES"]
