"""What leaves the library: files for other runtimes, read back and proven."""

from __future__ import annotations

from lightning_prune.export.coreml import CoreMLExport, ExportResult, read_functions
from lightning_prune.export.sparse import load_sparse, save_sparse

__all__ = [
    "CoreMLExport",
    "ExportResult",
    "load_sparse",
    "read_functions",
    "save_sparse",
]
