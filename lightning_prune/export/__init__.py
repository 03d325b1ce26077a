"""What leaves the library: files for other runtimes, read back and proven."""

from __future__ import annotations

from lightning_prune.export.coreml import CoreMLExport, read_functions
from lightning_prune.export.protocol import Export
from lightning_prune.export.result import ExportedLayer, ExportResult
from lightning_prune.export.sparse import load_sparse, read_sparse, save_sparse

__all__ = [
    "CoreMLExport",
    "Export",
    "ExportResult",
    "ExportedLayer",
    "load_sparse",
    "read_functions",
    "read_sparse",
    "save_sparse",
]
