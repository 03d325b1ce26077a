"""Sparsity, structure and bytes of each tensor of a file, and of the file as a whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor

from lightning_prune.basics import DottedText, new_table
from lightning_prune.masks import count_zeros, zero_channels
from lightning_prune.pruner import describe_structure, stored_bytes

__all__ = ["Inspection", "TensorSummary", "summarize", "summarize_zeros"]


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a file.

    Attributes:
        name: Its name there.
        shape: Its shape.
        dtype: Its type, such as ``"float32"``.
        stored: How it is stored: ``"dense"``, or an encoding such as ``"sparse"``.
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
        return sum(tensor.zeros for tensor in self.tensors) / max(sum(tensor.weights for tensor in self.tensors), 1)

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a tensor."""
        return [{**asdict(tensor), "shape": list(tensor.shape), "sparsity": tensor.sparsity} for tensor in self.tensors]

    def __rich__(self) -> Table:
        """Table for a terminal."""
        table = new_table(f"{self.kind} {self.path.name}")
        is_package = any(tensor.stored != "dense" for tensor in self.tensors)
        table.add_column("tensor")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("sparsity", "bytes"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("stored" if is_package else "sparse", justify="left" if is_package else "right")
        for tensor in self.tensors:
            table.add_row(
                DottedText(tensor.name),
                "x".join(map(str, tensor.shape)),
                tensor.structure,
                f"{tensor.sparsity:.2%}",
                f"{tensor.nbytes:,}",
                tensor.stored if is_package else f"{tensor.sparse_bytes:,}",
            )
        zeros, weights = sum(tensor.zeros for tensor in self.tensors), sum(tensor.weights for tensor in self.tensors)
        lines = [f"{zeros:,} of {weights:,} weights are zero ({self.sparsity:.2%})."]
        lines += [f"{self.others:,} more numbers are biases, norms and the like."] if self.others else []
        if not is_package:
            sparse = sum(tensor.sparse_bytes for tensor in self.tensors)
            lines.append(f"Stored sparse in half precision, the weights would take {sparse:,} bytes.")
        lines.append(f"The file has {self.file_bytes:,} bytes.")
        table.caption = "\n".join([*lines, *self.notes])
        return table


def summarize(
    name: str, tensor: Tensor, *, dtype: str | None = None, stored: str = "dense", nbytes: int | None = None
) -> TensorSummary:
    """What a summary says of a tensor.

    Args:
        name: Its name in the file.
        tensor: Its values, or others that are zero where they are.
        dtype: Its type in the file. Default: that of the values.
        stored: How it is stored.
        nbytes: Bytes that it takes in the file. Default: those of the values.
    """
    tensor = tensor.detach()
    zeros = count_zeros(tensor)
    return TensorSummary(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch.") if dtype is None else dtype,
        stored=stored,
        weights=tensor.numel(),
        zeros=zeros,
        zero_channels=zero_channels(tensor) if tensor.ndim else 0,
        structure=describe_structure(tensor),
        nbytes=tensor.numel() * tensor.element_size() if nbytes is None else nbytes,
        sparse_bytes=stored_bytes(tensor.numel(), zeros if tensor.ndim > 1 else 0),
    )


def summarize_zeros(
    name: str, is_zero: npt.NDArray[np.bool_] | np.bool_, dtype: str, stored: str, nbytes: int
) -> TensorSummary:
    """What a summary says of an array of any type, of which only the zeros matter."""
    kept = torch.from_numpy(np.asarray(~is_zero, dtype="uint8"))
    return summarize(name, kept, dtype=dtype, stored=stored, nbytes=nbytes)
