"""The program of a Core ML package, read and run by torch."""

from __future__ import annotations

from lightning_prune.export.coreml.mil.program import (
    Constant,
    Operation,
    Package,
    import_coremltools,
    read_functions,
    read_package,
)
from lightning_prune.export.coreml.mil.run import Run, run, tensors_of
from lightning_prune.export.coreml.mil.values import Array, repeat_to

__all__ = [
    "Array",
    "Constant",
    "Operation",
    "Package",
    "Run",
    "import_coremltools",
    "read_functions",
    "read_package",
    "repeat_to",
    "run",
    "tensors_of",
]
