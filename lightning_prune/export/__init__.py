"""What leaves the library: files for other runtimes, read back and proven."""

from __future__ import annotations

from lightning_prune.export.coreml import CoreMLExport, ExportResult, read_functions

__all__ = [
    "CoreMLExport",
    "ExportResult",
    "read_functions",
]
