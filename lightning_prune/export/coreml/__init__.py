"""Core ML: a package is written, read back and compared with the model."""

from __future__ import annotations

from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil import read_functions

__all__ = [
    "CoreMLExport",
    "read_functions",
]
