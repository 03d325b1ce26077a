"""What leaves the library: files for other runtimes, read back and proven."""

from __future__ import annotations

from lightning_prune.export.coreai import CoreAIExport
from lightning_prune.export.coreml import CoreMLExport, read_functions
from lightning_prune.export.formats import FORMATS, Format, format_of
from lightning_prune.export.onnx import Initializer, ONNXExport, read_initializers
from lightning_prune.export.protocol import Export
from lightning_prune.export.result import ExportedLayer, ExportResult
from lightning_prune.export.sparse import (
    Conversion,
    SparseExport,
    SparseFile,
    convert_sparse,
    is_sparse_file,
    load_sparse,
    read_sparse,
    save_sparse,
)

__all__ = [
    "FORMATS",
    "Conversion",
    "CoreAIExport",
    "CoreMLExport",
    "Export",
    "ExportResult",
    "ExportedLayer",
    "Format",
    "Initializer",
    "ONNXExport",
    "SparseExport",
    "SparseFile",
    "convert_sparse",
    "format_of",
    "is_sparse_file",
    "load_sparse",
    "read_functions",
    "read_initializers",
    "read_sparse",
    "save_sparse",
]
