"""``lightning_prune.inspection`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import Inspection, inspect_file, read_weights, report_of

__all__ = ["Inspection", "inspect_file", "read_weights", "report_of"]
