"""A sparse file for users of torch: a state dict that is small because it is sparse, and bit for bit the same."""

from __future__ import annotations

from lightning_prune.export.sparse.checkpoints import Conversion, convert_sparse
from lightning_prune.export.sparse.export import SparseExport
from lightning_prune.export.sparse.files import SparseFile, is_sparse_file, load_sparse, read_sparse, save_sparse
from lightning_prune.export.sparse.layouts import View

__all__ = [
    "Conversion",
    "SparseExport",
    "SparseFile",
    "View",
    "convert_sparse",
    "is_sparse_file",
    "load_sparse",
    "read_sparse",
    "save_sparse",
]
