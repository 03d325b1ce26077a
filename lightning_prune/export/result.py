"""What an export wrote, and what was found when it was read back: numbers, a table, a line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_prune.basics import DottedText, literal, new_table

__all__ = ["ExportResult", "ExportedLayer"]


@dataclass(frozen=True)
class ExportedLayer:
    """A pruned parameter as it lies in the file.

    Attributes:
        name: The parameter's name in the model.
        shape: The parameter's shape.
        zeros: How many of its values the mask prunes.
        total: How many values it has.
        stored: The encoding (``"sparse"``, ``"sparse, int8"``), or ``"dense"`` and why.
        nbytes: Bytes of it in the file, with records and bit masks; of a constant that several parameters share,
            once in full.
        dense_nbytes: Bytes that it would take without sparse storage.
        scaled: Whether a batch norm was folded in: the stored values are the weight times one factor per output
            channel.
        rounded_away: Kept weights that are too small for the precision of the file, and became zero or the smallest
            number that it has.
        max_error: Largest difference between a stored value and the model's (times its factor), as a fraction of the
            largest value of the weight.
        constants: The names of the constants that hold it.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    total: int
    stored: str
    nbytes: int
    dense_nbytes: int
    scaled: bool = False
    rounded_away: int = 0
    max_error: float = 0.0
    constants: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]."""
        return self.zeros / self.total

    @property
    def ratio(self) -> float:
        """How many times smaller it is than stored densely."""
        return self.dense_nbytes / self.nbytes if self.nbytes else 1.0


@dataclass(frozen=True)
class ExportResult:
    """A verified file, or folder of files, of any format.

    Attributes:
        path: Where it lies.
        package_bytes: Bytes of it, of a folder those of all its files.
        dense_package_bytes: Bytes that it would take with every weight stored densely, in the precision that it has.
        layers: The pruned parameters, in the model's order.
        frontend: How the network was captured; empty for a format that captures none.
        checks: What was verified, in sentences.
        not_checked: What could not be verified, and why. Empty if everything was.
        notes: Warnings that do not make the file wrong.
        max_error: Largest error of an output on any fresh input, as a fraction of the output's largest value; None if
            no output could be computed. The larger of ``near_error`` and ``far_error``.
        compression_error: ``near_error`` of the file with compressed weights, on a single input; None without
            compression.
        near_error: The same on inputs like the example: of its mean and scale, within what was declared of them, of
            other allowed shapes. What to look at first.
        far_error: The same on inputs far from the example in mean and scale, which find what capturing fixed. Where
            they are outside of what the network is made for, rounding may move it as far; None if there were none.
        attempts: What was tried before and failed, and why each did, in sentences.
        format: What sort of file it is, in words, the last of which is a noun: ``"Core ML package"``, ``"Core AI
            asset"``, ``"ONNX model"``, ``"safetensors file"``.
    """

    path: Path
    package_bytes: int
    dense_package_bytes: int
    layers: tuple[ExportedLayer, ...]
    frontend: str = ""
    checks: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_error: float | None = None
    compression_error: float | None = None
    near_error: float | None = None
    far_error: float | None = None
    attempts: tuple[str, ...] = ()
    format: str = "Core ML package"

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than with dense weights."""
        return self.dense_package_bytes / self.package_bytes

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned parameters, in [0, 1]."""
        total = sum(layer.total for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / total if total else 0.0

    def at(self, path: Path) -> ExportResult:
        """The same result for the file at another path."""
        return replace(self, path=path)

    @property
    def noun(self) -> str:
        """What the file is called: the last word of its format."""
        return self.format.split()[-1]

    @property
    def prefix(self) -> str:
        """What the names of its numbers begin with in a log: the name of the format, such as ``"coreml/"``."""
        return "".join(self.format.lower().split()[:-1]) + "/"

    def as_dict(self, prefix: str | None = None) -> dict[str, float]:
        """Flat numbers for a logger; what is not known is left out.

        Args:
            prefix: What their names begin with. Default: the name of the format, such as ``"coreml/"``.
        """
        prefix = self.prefix if prefix is None else prefix
        numbers = {
            "bytes": float(self.package_bytes),
            "dense_bytes": float(self.dense_package_bytes),
            "ratio": self.ratio,
            "sparsity": self.sparsity,
            "not_checked": float(len(self.not_checked)),
        }
        errors = {name: getattr(self, name) for name in ("max_error", "near_error", "far_error", "compression_error")}
        numbers |= {name: error for name, error in errors.items() if error is not None}
        for layer in self.layers:
            numbers[f"layer_ratio/{layer.name}"] = layer.ratio
        return {prefix + name: value for name, value in numbers.items()}

    def table(self) -> Table:
        """A row for each pruned parameter, and one for the whole file."""
        table = new_table(f"{self.format} {self.path.name}")
        table.caption = str(self.path)
        table.add_column("parameter")
        table.add_column("shape", no_wrap=True)
        for column in ("sparsity", "bytes", "dense", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("stored")
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape))
            stored = layer.stored + (", scaled" if layer.scaled else "")
            sizes = f"{layer.nbytes:,}", f"{layer.dense_nbytes:,}", f"{layer.ratio:.2f}x"
            table.add_row(DottedText(layer.name), shape, f"{layer.sparsity:.1%}", *sizes, stored)
        table.add_section()
        sizes = f"{self.package_bytes:,}", f"{self.dense_package_bytes:,}", f"{self.ratio:.2f}x"
        captured = f"by {self.frontend}" if self.frontend else ""
        table.add_row(f"whole {self.noun}", "", f"{self.sparsity:.1%}", *sizes, captured)
        return table

    def lines(self) -> Iterable[str]:
        """What was verified, what was not, what to know, and what was tried in vain: a sentence a line."""
        yield from (f"verified: {text}" for text in self.checks)
        yield from (f"not checked: {text}" for text in self.not_checked)
        yield from (f"note: {text}" for text in self.notes)
        yield from (f"tried in vain: {text}" for text in self.attempts)

    def __str__(self) -> str:
        error = "" if self.near_error is None else f"; largest error {self.near_error:.1e}"
        doubt = f"; {len(self.not_checked)} things not checked" if self.not_checked else ""
        size, dense = f"{self.package_bytes:,} bytes", f"{self.dense_package_bytes:,} bytes"
        return f"{self.path}: {size}, {self.ratio:.2f}x smaller than dense ({dense}){error}{doubt}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield from map(literal, self.lines())
