"""``lightning_prune.metadata`` as it was; import from ``lightning_prune.masking``."""

from __future__ import annotations

from lightning_prune.masking import register_coreml_metadata

__all__ = ["register_coreml_metadata"]
