"""Reports: how sparse each layer is, read from the masks, so that they are true right after a step."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_prune.plan import PrunedParameter
from lightning_prune.sparsity import count_zeros, zero_blocks, zero_channels

__all__ = ["LayerSparsity", "SparsityReport", "measure_layer"]


@dataclass(frozen=True)
class LayerSparsity:
    """Counts of one layer, or of all of them.

    Attributes:
        name: What the layer is called; ``"global"`` for the sum.
        shape: Shape of the weight; empty for the sum.
        structure: Structure of the zeros, in words.
        target_sparsity: Fraction in [0, 1] that the rule asks for; None for the sum.
        weights: Number of weights.
        zeros: Weights that are zero.
        channels: Number of output channels.
        zero_channels: Output channels that are all zero.
        pairs: Pairs of weights of two neighbouring output channels; None where their number is odd.
        zero_pairs: Pairs that are both zero; None likewise.
    """

    name: str
    shape: tuple[int, ...]
    structure: str
    target_sparsity: float | None
    weights: int
    zeros: int
    channels: int
    zero_channels: int
    pairs: int | None
    zero_pairs: int | None

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return self.zeros / self.weights

    @property
    def structured_sparsity(self) -> float:
        """Fraction of output channels that are all zero."""
        return self.zero_channels / self.channels

    @property
    def block2_sparsity(self) -> float | None:
        """Fraction of pairs of weights of neighbouring output channels that are both zero; None if not applicable."""
        return None if self.pairs is None or self.zero_pairs is None else self.zero_pairs / self.pairs


def measure_layer(one: PrunedParameter, mask: Tensor) -> LayerSparsity:
    """Count the zeros of a mask, bytes or bool, that broadcasts over the weight of ``one``."""
    is_even = one.shape[0] % 2 == 0
    return LayerSparsity(
        name=one.label,
        shape=one.shape,
        structure=one.structure,
        target_sparsity=one.config.target_sparsity,
        weights=one.numel,
        zeros=count_zeros(mask, shape=one.shape),
        channels=one.shape[0],
        zero_channels=zero_channels(mask, shape=one.shape),
        pairs=one.numel // 2 if is_even else None,
        zero_pairs=zero_blocks(mask, 2, shape=one.shape) if is_even else None,
    )


class SparsityReport(Mapping[str, dict[str, Any]]):
    """How sparse a model is.

    As a mapping it has the keys that Core ML Tools reports: a dict per layer and one under ``"global"``, with
    ``#params``, ``structured_weight_sparsity``, ``unstructured_weight_sparsity`` and ``block2_weight_sparsity`` (-1
    where it does not apply). ``layers`` and ``total`` hold the counts themselves, with None where something does not apply.

    Args:
        layers: Counts of each layer.
    """

    def __init__(self, layers: Sequence[LayerSparsity]) -> None:
        self.layers = tuple(layers)

    @property
    def total(self) -> LayerSparsity:
        """Counts of all layers together; channels and pairs weigh as many weights as they have."""
        paired = [one for one in self.layers if one.pairs is not None]
        weights = sum(one.weights for one in self.layers)
        # a channel counts by its weights, as Core ML Tools averages layers by their number of weights
        in_zero_channels = sum(one.zero_channels * (one.weights // one.channels) for one in self.layers)
        return LayerSparsity(
            name="global",
            shape=(),
            structure="",
            target_sparsity=None,
            weights=weights,
            zeros=sum(one.zeros for one in self.layers),
            channels=weights,
            zero_channels=in_zero_channels,
            pairs=sum(one.pairs or 0 for one in paired) if paired else None,
            zero_pairs=sum(one.zero_pairs or 0 for one in paired) if paired else None,
        )

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among all weights of the pruned layers."""
        return self.total.sparsity

    def __getitem__(self, name: str) -> dict[str, Any]:
        for one in (*self.layers, self.total):
            if one.name == name:
                return {
                    "#params": one.weights,
                    "structured_weight_sparsity": one.structured_sparsity,
                    "unstructured_weight_sparsity": one.sparsity,
                    "block2_weight_sparsity": -1 if one.block2_sparsity is None else one.block2_sparsity,
                }
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from (one.name for one in self.layers)
        yield "global"

    def __len__(self) -> int:
        return len(self.layers) + 1

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a layer, the sum last; None where a value does not apply."""
        return [
            {
                **asdict(one),
                "shape": list(one.shape),
                "sparsity": one.sparsity,
                "structured_sparsity": one.structured_sparsity,
                "block2_sparsity": one.block2_sparsity,
            }
            for one in (*self.layers, self.total)
        ]

    def to_csv(self) -> str:
        """The records as CSV text with a header."""
        records = self.records()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**one, "shape": "x".join(map(str, one["shape"]))} for one in records)
        return text.getvalue()

    def __rich__(self) -> Table:
        """Table for a terminal or a notebook."""
        table = Table(title="Sparsity", title_justify="left")
        for heading in ("layer", "shape", "structure"):
            table.add_column(heading)
        for heading in ("target", "sparsity", "zeros / weights"):
            table.add_column(heading, justify="right")
        for one in self.layers:
            table.add_row(
                one.name or "(root)",
                "x".join(map(str, one.shape)),
                one.structure,
                f"{one.target_sparsity:.1%}",
                f"{one.sparsity:.2%}",
                f"{one.zeros:,} / {one.weights:,}",
            )
        total = self.total
        table.add_section()
        table.add_row("global", "", "", "", f"{total.sparsity:.2%}", f"{total.zeros:,} / {total.weights:,}")
        return table

    def __repr__(self) -> str:
        console = Console(width=140, file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.__rich__())
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        """Table for a notebook."""
        console = Console(width=140, file=io.StringIO(), record=True)
        console.print(self.__rich__())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
