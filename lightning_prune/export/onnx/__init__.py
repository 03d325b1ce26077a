"""ONNX: a model is written, run by onnxruntime and compared with the network."""

from __future__ import annotations

from lightning_prune.export.onnx.export import ONNXExport
from lightning_prune.export.onnx.model import Initializer, read_initializers

__all__ = [
    "Initializer",
    "ONNXExport",
    "read_initializers",
]
