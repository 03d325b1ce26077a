"""``lightning_prune.sensitivity`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import Sensitivity, sensitivity

__all__ = ["Sensitivity", "sensitivity"]
