"""What is in a file: sparsity, structure and bytes of every weight of a checkpoint or a Core ML package."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from lightning_prune.basics import DottedText, check_claims, home, is_plain, load_tensors, new_table, recover
from lightning_prune.errors import CheckpointError, ExportError, first_names, one_line, shown
from lightning_prune.masking import plain_state_dict
from lightning_prune.masks import count_zeros, zero_channels, zero_counts
from lightning_prune.plan import computed_weights
from lightning_prune.pruner import LayerSparsity, SparsityReport, describe_structure, stored_bytes

__all__ = [
    "Inspection",
    "TensorSummary",
    "inspect_file",
    "read_checkpoint",
    "read_tensors",
    "read_weights",
    "report_of",
]

_NAMES_OF_STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a file.

    Attributes:
        name: Its name there.
        shape: Its shape.
        dtype: Its type, such as ``"float32"``.
        stored: How it is stored: ``"dense"``, or an encoding of Core ML such as ``"sparse"``.
        weights: Number of elements.
        zeros: How many of them are zero.
        zero_channels: Output channels that are all zero.
        structure: The structure of the zeros, in words; see :func:`~lightning_prune.pruner.describe_structure`.
        nbytes: Bytes that it takes in the file.
        sparse_bytes: Bytes that it would take as a bit mask and nonzero values in half precision, or dense if smaller.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    weights: int
    zeros: int
    zero_channels: int
    structure: str
    nbytes: int
    sparse_bytes: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Inspection:
    """What is in a file. Prints as a table.

    Attributes:
        path: The file.
        kind: What sort of file it is, in words.
        file_bytes: Bytes of the file, or of all files of a package.
        tensors: Weights of rank 2 and more; all tensors where all were asked for.
        others: Number of elements in floating tensors that are not listed: biases and norms.
        notes: What else is worth knowing.
    """

    path: Path
    kind: str
    file_bytes: int
    tensors: tuple[TensorSummary, ...]
    others: int
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the listed weights; 0 where there are none."""
        return sum(one.zeros for one in self.tensors) / max(sum(one.weights for one in self.tensors), 1)

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a tensor."""
        return [{**asdict(one), "shape": list(one.shape), "sparsity": one.sparsity} for one in self.tensors]

    def __rich__(self) -> Table:
        """Table for a terminal."""
        table = new_table(f"{self.kind} {self.path.name}")
        is_package = any(one.stored != "dense" for one in self.tensors)
        table.add_column("tensor")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("sparsity", "bytes"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("stored" if is_package else "sparse", justify="left" if is_package else "right")
        for one in self.tensors:
            table.add_row(
                DottedText(one.name),
                "x".join(map(str, one.shape)),
                one.structure,
                f"{one.sparsity:.2%}",
                f"{one.nbytes:,}",
                one.stored if is_package else f"{one.sparse_bytes:,}",
            )
        zeros, weights = sum(one.zeros for one in self.tensors), sum(one.weights for one in self.tensors)
        lines = [f"{zeros:,} of {weights:,} weights are zero ({self.sparsity:.2%})."]
        lines += [f"{self.others:,} more numbers are biases, norms and the like."] if self.others else []
        if not is_package:
            sparse = sum(one.sparse_bytes for one in self.tensors)
            lines.append(f"Stored sparse in half precision, the weights would take {sparse:,} bytes.")
        lines.append(f"The file has {self.file_bytes:,} bytes.")
        table.caption = "\n".join([*lines, *self.notes])
        return table


def inspect_file(path: str | os.PathLike[str], *, all_tensors: bool = False) -> Inspection:
    """Look into a file of weights; nothing in it is executed.

    A weight behind a weight norm is listed as it is computed, in place of its ``g`` and ``v``.

    Args:
        path: A Lightning checkpoint, a state dict, ``.safetensors``, or an ``.mlpackage``.
        all_tensors: List vectors and integers too, not only floating weights of rank 2 and more.

    Raises:
        CheckpointError: There is no such file, or it holds no weights that can be read.
        ImportError: ``.safetensors`` is to be read, and the package safetensors is not installed.
    """
    path = home(path)
    if path.suffix in _READERS:
        return _READERS[path.suffix](path, all_tensors)
    kind, stored, notes = read_tensors(path)
    tensors = computed_weights(stored)
    if len(tensors) < len(stored):
        notes.append(
            f"{len(stored) - len(tensors)} weights are computed by a weight norm from the g and v in the file."
        )
    listed = {name: one for name, one in tensors.items() if all_tensors or _is_weight(one)}
    others = sum(one.numel() for name, one in tensors.items() if name not in listed and one.is_floating_point())
    summaries = tuple(_summarize(name, one) for name, one in listed.items() if one.numel())
    return Inspection(path, kind, path.stat().st_size, summaries, others, tuple(notes))


def report_of(path: str | os.PathLike[str]) -> SparsityReport:
    """The weights of a checkpoint as a report, which can be drawn.

    Raises:
        CheckpointError: As :func:`read_weights`.
    """
    return SparsityReport([_as_layer(name, one) for name, one in read_weights(path).items()])


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The floating tensors of rank 2 and more of a checkpoint, by name; those behind a weight norm as it computes them.

    Raises:
        CheckpointError: As :func:`read_tensors`; or there are none.
    """
    tensors = computed_weights(read_tensors(path)[1])
    weights = {name: one for name, one in tensors.items() if _is_weight(one) and one.numel()}
    if not weights:
        raise CheckpointError(f"{path} holds no weights of rank 2 or more.")
    return weights


def read_tensors(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor], list[str]]:
    """Read the weights of a file, with masks that are held apart applied.

    Args:
        path: A Lightning checkpoint, a state dict, or ``.safetensors``.

    Returns:
        What sort of file it is, the tensors by plain name on the CPU, and notes on what was found.

    Raises:
        CheckpointError: There is no such file, or it holds no weights that can be read.
        ImportError: The package safetensors is needed and not installed.
    """
    path = home(path)
    if path.suffix == ".safetensors":
        tensors, notes = _countable(_read_safetensors(path), path)
        return "safetensors file", tensors, notes
    content = read_checkpoint(path)
    kind, state = _find_state(path, content)
    check_claims(state.values(), path)
    plain = plain_state_dict(state)
    tensors, left = _countable(plain, path)
    notes = [*_notes(content), *left]
    if len(held := [name for name in state if str(name).endswith("_orig") and name not in plain]):
        notes.append(
            f"{len(held)} weights are held apart from their masks (such as {held[0]}); "
            "lightning-prune convert puts them together."
        )
    return kind, tensors, notes


def _countable(found: Mapping[Any, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors whose zeros can be counted, by name, and a note on the others."""
    tensors = {name if isinstance(name, str) else shown(name): one for name, one in found.items()}
    tensors = {name: one for name, one in tensors.items() if isinstance(one, Tensor)}
    check_claims(tensors.values(), path)
    left = [name for name, one in tensors.items() if not (is_plain(one) and _has_zeros(one.dtype))]
    why = "sparse, quantized, without values or of a type that torch cannot compare"
    notes = [f"Not looked into: {first_names(left)} ({why})."] if left else []
    # as plain numbers: a tensor may say that its numbers are to be read with the other sign, or conjugate
    return {name: one.resolve_conj().resolve_neg() for name, one in tensors.items() if name not in left}, notes


def _has_zeros(dtype: torch.dtype) -> bool:
    """Whether torch can say which numbers of a type are zero."""
    try:
        return bool((torch.empty(1, dtype=dtype) != 0).numel())
    except (RuntimeError, NotImplementedError):
        return False


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Load a file of torch with ``weights_only=True``: no code in it runs.

    Raises:
        CheckpointError: There is no such file, or it needs code to be loaded.
    """
    path = _existing(home(path))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Give a file, or a Core ML package that ends in .mlpackage.")
    try:
        return load_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} cannot be read with weights_only=True, and nothing here runs code from a file. "
            f"Save its state_dict() alone, and inspect that. ({error})"
        ) from error


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError as error:
        raise ImportError("Files of safetensors need a package of that name: pip install safetensors") from error
    try:
        return dict(load_file(_existing(path)))
    except Exception as error:  # the package has an exception type of its own, for damaged files
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as safetensors: {one_line(error)}") from error


def _find_state(path: Path, content: Any) -> tuple[str, Mapping[str, Any]]:
    """The state dict within what a file holds."""
    if isinstance(content, Tensor):
        return "tensor", {path.stem: content}
    if isinstance(content, Mapping):
        is_lightning = "pytorch-lightning_version" in content
        if content and all(isinstance(one, Tensor) for one in content.values()):
            return "state dict", content
        for name in _NAMES_OF_STATES:
            state = content.get(name)
            if isinstance(state, Mapping) and any(isinstance(one, Tensor) for one in state.values()):
                return "Lightning checkpoint" if is_lightning else f"checkpoint ({name})", state
        if any(isinstance(one, Tensor) for one in content.values()):
            return "state dict", content
        keys = [key if isinstance(key, str) else shown(key) for key in islice(content, 8)]
        found = f"a dict with {first_names(keys) or 'nothing in it'}"
    else:
        found = type(content).__name__
    raise CheckpointError(f"{path} must hold a state dict or a checkpoint with one, got {found}.")


def _notes(content: Any) -> Iterator[str]:
    """What a Lightning checkpoint says about pruning."""
    callbacks = content.get("callbacks") if isinstance(content, Mapping) else None
    if not isinstance(callbacks, Mapping):
        return
    if "epoch" in content and "global_step" in content:
        yield f"Saved at epoch {shown(content['epoch'])}, optimizer step {shown(content['global_step'])}."
    for key, state in callbacks.items():
        if "Pruning" in str(key) and isinstance(state, Mapping) and "step_count" in state:
            name, steps = first_names([str(key)]), shown(state["step_count"])
            yield f"Holds the pruning state of {name} after {steps} steps: a fit can be resumed from it."


def _is_weight(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point()


def _summarize(name: str, tensor: Tensor) -> TensorSummary:
    return _summary(
        name, tensor, str(tensor.dtype).removeprefix("torch."), "dense", tensor.numel() * tensor.element_size()
    )


def _summary(name: str, tensor: Tensor, dtype: str, stored: str, nbytes: int) -> TensorSummary:
    tensor = tensor.detach()
    zeros = count_zeros(tensor)
    return TensorSummary(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype,
        stored=stored,
        weights=tensor.numel(),
        zeros=zeros,
        zero_channels=zero_channels(tensor) if tensor.ndim else 0,
        structure=describe_structure(tensor),
        nbytes=nbytes,
        sparse_bytes=stored_bytes(tensor.numel(), zeros if tensor.ndim > 1 else 0),
    )


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


def _inspect_package(path: Path, all_tensors: bool) -> Inspection:
    """The constants of a Core ML package, as they are stored."""
    from lightning_prune.export import read_functions

    recover(path)
    try:
        functions = read_functions(_existing(path))
    except ExportError as error:
        raise CheckpointError(str(error)) from error
    tensors, others, seen = [], 0, set[int]()
    names = Counter(name for package in functions.values() for name in package.constants)
    for function, package in functions.items():
        for name, one in package.constants.items():
            # What several functions share lies in the file once, and is read as one array.
            if one.values.size == 0 or one.values.dtype.kind not in "fiu" or id(one.values) in seen:
                continue
            seen.add(id(one.values))
            is_weight = one.values.ndim > 1 and prod(one.values.shape) > 1
            if is_weight or all_tensors:
                values = torch.from_numpy((one.values != 0).astype("uint8"))  # only zeros matter here
                whole = f"{function}/{name}" if names[name] > 1 and len(functions) > 1 else name
                tensors.append(_summary(whole, values, one.dtype, one.encoding, one.nbytes))
            else:
                others += one.values.size
    notes = []
    if len(functions) > 1:
        notes.append(f"Has the functions {', '.join(functions)}; a weight that several share is listed once.")
    file_bytes = next(iter(functions.values())).nbytes
    return Inspection(path, "Core ML package", file_bytes, tuple(tensors), others, tuple(notes))


# Files that are no tensors by name, by their ending; all others are read as checkpoints.
_READERS = {
    ".mlpackage": _inspect_package,
}
