"""``lightning_prune.report`` as it was; import from ``lightning_prune.pruner``."""

from __future__ import annotations

from lightning_prune.pruner import LayerSparsity, MaskChanges, SparsityReport, describe_structure, stored_bytes

__all__ = ["LayerSparsity", "MaskChanges", "SparsityReport", "describe_structure", "stored_bytes"]
