"""``lightning_prune.macs`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import MACCount, count_macs

__all__ = ["MACCount", "count_macs"]
