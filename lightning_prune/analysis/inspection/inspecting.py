"""What is in a file: of a checkpoint or a program for another runtime, whichever its ending says it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_prune.analysis.inspection.checkpoints import (
    SPARSE,
    countable,
    find_sparse,
    is_weight,
    read_tensors,
    read_weights,
)
from lightning_prune.analysis.inspection.programs import inspect_asset, inspect_onnx, inspect_package
from lightning_prune.analysis.inspection.summary import Inspection, summarize
from lightning_prune.basics import home
from lightning_prune.masks import zero_counts
from lightning_prune.plan import computed_weights
from lightning_prune.pruner import LayerSparsity, SparsityReport, describe_structure

__all__ = ["inspect_file", "report_of"]

# Files that are no tensors by name, by their ending; all others are read as checkpoints.
READERS = {
    ".aimodel": inspect_asset,
    ".mlpackage": inspect_package,
    ".onnx": inspect_onnx,
}


def inspect_file(path: str | os.PathLike[str], *, all_tensors: bool = False) -> Inspection:
    """Look into a file of weights; nothing in it is executed.

    A weight behind a weight norm is listed as it is computed, in place of its ``g`` and ``v``.

    Args:
        path: A Lightning checkpoint, a state dict, ``.safetensors``, an ``.mlpackage``, an ``.aimodel`` or an
            ``.onnx``.
        all_tensors: List vectors and integers too, not only floating weights of rank 2 and more.

    Raises:
        CheckpointError: There is no such file, or it holds no weights that can be read.
        ImportError: The package that reads ``.safetensors``, ``.aimodel`` or ``.onnx`` is not installed.
    """
    path = home(path)
    if path.suffix in READERS:
        return READERS[path.suffix](path, all_tensors)
    found = find_sparse(path)
    kind, stored, notes = read_tensors(path) if found is None else (SPARSE, *countable(found.tensors, path))
    tensors = computed_weights(stored)
    if len(tensors) < len(stored):
        notes.append(
            f"{len(stored) - len(tensors)} weights are computed by a weight norm from the g and v in the file."
        )
    listed = {name: tensor for name, tensor in tensors.items() if all_tensors or is_weight(tensor)}
    others = sum(
        tensor.numel() for name, tensor in tensors.items() if name not in listed and tensor.is_floating_point()
    )
    summaries = tuple(summarize(name, tensor) for name, tensor in listed.items() if tensor.numel())
    if found is not None:
        summaries = tuple(
            replace(summary, stored=found.describe(summary.name), nbytes=found.nbytes[summary.name])
            if summary.name in found.nbytes
            else summary
            for summary in summaries
        )
    return Inspection(path, kind, path.stat().st_size, summaries, others, tuple(notes))


def report_of(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> SparsityReport:
    """The weights of a checkpoint as a report, which can be drawn.

    Args:
        source: Where the checkpoint lies, or weights of rank 2 and more by name, as :func:`read_weights` gives them.

    Raises:
        CheckpointError: As :func:`read_weights`.
    """
    weights = source if isinstance(source, Mapping) else read_weights(source)
    return SparsityReport([_as_layer(name, weight) for name, weight in weights.items()])


def _as_layer(name: str, tensor: Tensor) -> LayerSparsity:
    zero, channels = zero_counts(tensor), tensor.shape[0]
    return LayerSparsity(
        name=name,
        shape=tuple(tensor.shape),
        structure=describe_structure(tensor),
        target_sparsity=None,
        weights=tensor.numel(),
        zeros=zero.weights,
        channels=channels,
        zero_channels=zero.channels,
        zero_channel_weights=zero.channels * (tensor.numel() // channels),
        pairs=None if zero.pairs is None else tensor.numel() // 2,
        zero_pairs=zero.pairs,
    )
