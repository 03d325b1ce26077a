"""An ONNX model on disk: what it holds, and how it is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_prune.basics import home
from lightning_prune.errors import CheckpointError, ExportError, one_line
from lightning_prune.export.proof import Answers, Program

__all__ = ["Initializer", "arrays_of", "import_onnx", "is_onnx", "program_of", "read_initializers", "read_model"]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Initializer:
    """A constant of an ONNX model.

    Attributes:
        name: Its name there.
        dtype: Its type, such as ``"float32"``.
        values: What it holds.
    """

    name: str
    dtype: str
    values: npt.NDArray[Any]


def import_onnx(name: str = "onnx") -> Any:
    """One of the packages that write, translate and run ONNX.

    Raises:
        ExportError: One of them is not installed.
    """
    try:
        return [importlib.import_module(package) for package in PACKAGES][PACKAGES.index(name)]
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the packages {', '.join(PACKAGES)} ({one_line(error)}). Write: pip install "
            '"lightning-prune[onnx]"'
        ) from error


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model: one that has a version and a graph with outputs."""
    onnx = import_onnx()
    if not path.is_file():
        return False
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # of the package's parser, which has a type of its own
        return False
    return model.ir_version > 0 and len(model.graph.output) > 0


def read_model(path: Path) -> Any:
    """The model in a file, as the package ``onnx`` has it; values in other files are not read.

    Raises:
        CheckpointError: It is no ONNX model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    if not is_onnx(path):
        raise CheckpointError(f"{path} must be an ONNX model, but cannot be read as one.")
    return import_onnx().load(path, load_external_data=False)


def read_initializers(path: Path) -> tuple[list[Initializer], list[str]]:
    """The constants of an ONNX model, and the names of those that lie in other files.

    Raises:
        CheckpointError: It is no ONNX model, or a constant is damaged.
        ExportError: A package that reads it is not installed.
    """
    graph = read_model(home(path)).graph
    elsewhere = [initializer.name for initializer in graph.initializer if initializer.external_data]
    try:
        return arrays_of(graph), elsewhere
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error


def arrays_of(graph: Any) -> list[Initializer]:
    """The constants of a graph that lie in the file itself."""
    helper = importlib.import_module("onnx.numpy_helper")
    arrays = {
        initializer.name: helper.to_array(initializer)
        for initializer in graph.initializer
        if not initializer.external_data
    }
    return [Initializer(name, str(values.dtype), values) for name, values in arrays.items()]


def program_of(path: Path) -> Program:
    """A model as it is read from disk, to be run by onnxruntime on the CPU."""
    runtime = import_onnx("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised too
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    taken = {value.name for value in session.get_inputs()}

    def run(inputs: Mapping[str, Tensor]) -> Answers:
        given = {name: value.numpy() for name, value in inputs.items() if name in taken}
        found = session.run(names, given)
        return Answers({name: _as_tensor(value) for name, value in zip(names, found, strict=True)})

    return Program(names, run, noun="model")


def _as_tensor(value: npt.NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    return tensor.float() if tensor.is_floating_point() else tensor
