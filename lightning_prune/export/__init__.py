"""What leaves the library: files for other runtimes, read back and proven."""

from __future__ import annotations

from lightning_prune.export.coreml import CoreMLExport, read_functions
from lightning_prune.export.formats import FORMATS, Format, format_of
from lightning_prune.export.protocol import Export
from lightning_prune.export.result import ExportedLayer, ExportResult

__all__ = [
    "CoreMLExport",
    "FORMATS",
    "Export",
    "ExportResult",
    "ExportedLayer",
    "Format",
    "format_of",
    "read_functions",
]
