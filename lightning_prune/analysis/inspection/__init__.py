"""What is in a file: sparsity, structure and bytes of every weight of a checkpoint or an exported program."""

from __future__ import annotations

from lightning_prune.analysis.inspection.checkpoints import read_checkpoint, read_tensors, read_weights
from lightning_prune.analysis.inspection.inspecting import inspect_file, report_of
from lightning_prune.analysis.inspection.summary import Inspection, TensorSummary

__all__ = [
    "Inspection",
    "TensorSummary",
    "inspect_file",
    "read_checkpoint",
    "read_tensors",
    "read_weights",
    "report_of",
]
