"""The constants of programs for other runtimes: Core ML packages, Core AI assets and ONNX models."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from lightning_prune.analysis.inspection.checkpoints import existing
from lightning_prune.analysis.inspection.summary import Inspection, summarize_zeros
from lightning_prune.basics import recover
from lightning_prune.errors import CheckpointError, ExportError, PruningError, first_names, one_line

__all__ = ["inspect_asset", "inspect_onnx", "inspect_package"]


def inspect_package(path: Path, all_tensors: bool) -> Inspection:
    """The constants of a Core ML package, as they are stored."""
    from lightning_prune.export import read_functions

    recover(path)
    try:
        functions = read_functions(existing(path))
    except ExportError as error:
        raise CheckpointError(str(error)) from error
    tensors, others, seen = [], 0, set[int]()
    names = Counter(name for package in functions.values() for name in package.constants)
    for function, package in functions.items():
        for name, constant in package.constants.items():
            # What several functions share lies in the file once, and is read as one array.
            if constant.values.size == 0 or constant.values.dtype.kind not in "fiu" or id(constant.values) in seen:
                continue
            seen.add(id(constant.values))
            is_weight = constant.values.ndim > 1 and prod(constant.values.shape) > 1
            if is_weight or all_tensors:
                whole = f"{function}/{name}" if names[name] > 1 and len(functions) > 1 else name
                tensors.append(
                    summarize_zeros(whole, constant.values == 0, constant.dtype, constant.encoding, constant.nbytes)
                )
            else:
                others += constant.values.size
    notes = []
    if len(functions) > 1:
        notes.append(f"Has the functions {', '.join(functions)}; a weight that several share is listed once.")
    file_bytes = next(iter(functions.values())).nbytes
    return Inspection(path, "Core ML package", file_bytes, tuple(tensors), others, tuple(notes))


def inspect_asset(path: Path, all_tensors: bool) -> Inspection:
    """The constants of a Core AI asset, as they are stored; names are those that this library left in it."""
    from lightning_prune.export.coreai import import_coreai, read_foreign_asset

    recover(path)
    try:
        import_coreai()
    except ExportError as error:
        raise ImportError(str(error)) from error
    try:
        asset = read_foreign_asset(existing(path))
    except PruningError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # of Apple's reader, or of what it reads
        raise CheckpointError(f"{path} cannot be read as a Core AI asset: {one_line(error)}") from error
    tensors, others = [], 0
    for at, sparse in enumerate(asset.sparse):
        name = ", ".join(asset.parameters.get(sparse.fingerprint, [f"sparse_{at}"]))
        tensors.append(summarize_zeros(name, ~sparse.mask, sparse.dtype, "sparse", sparse.nbytes))
    for dense in asset.dense:
        if dense.is_zero is None or dense.is_zero.size == 0:
            continue
        if all_tensors or (dense.is_zero.ndim > 1 and dense.is_zero.size > 1):
            name = f"dense_{len(tensors)}"
            tensors.append(summarize_zeros(name, dense.is_zero, dense.dtype, "dense", dense.nbytes))
        else:
            others += dense.is_zero.size
    return Inspection(path, "Core AI asset", asset.nbytes, tuple(tensors), others)


def inspect_onnx(path: Path, all_tensors: bool) -> Inspection:
    """The initializers of an ONNX model, which are all dense."""
    from lightning_prune.export import read_initializers

    try:
        initializers, elsewhere = read_initializers(existing(path))
    except ExportError as error:  # a package is missing
        raise ImportError(str(error)) from error
    tensors, others = [], 0
    for initializer in initializers:
        name, dtype, values = initializer.name, initializer.dtype, initializer.values
        is_float = "float" in dtype  # also those that NumPy itself has not
        if values.size == 0 or not (is_float or values.dtype.kind in "iu"):
            continue
        if all_tensors or (values.ndim > 1 and is_float):
            tensors.append(summarize_zeros(name, values == 0, dtype, "dense", values.nbytes))
        elif is_float:
            others += values.size
    notes = [f"Not looked into: {first_names(elsewhere)} (in another file)."] if elsewhere else []
    return Inspection(path, "ONNX model", path.stat().st_size, tuple(tensors), others, tuple(notes))
