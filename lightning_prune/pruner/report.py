"""Reports: how sparse each layer is, read from the masks, so that they are true right after a step."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_prune.masks import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_counts, zero_kernels
from lightning_prune.plan import PrunedParameter

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LayerSparsity", "MaskChanges", "SparsityReport", "describe_structure", "measure_layer", "stored_bytes"]

_WEIGHT_BITS = 16  # Core ML stores weights in half precision unless told otherwise
_MASK_BITS = 1
_WIDE = 140


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
        zero_channel_weights: Number of weights in these.
        pairs: Pairs of weights at one position in two neighbouring output channels; None where the number of channels
            is odd.
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
    zero_channel_weights: int
    pairs: int | None
    zero_pairs: int | None

    @classmethod
    def of(cls, planned: PrunedParameter, zeros: int, zero_channels: int, zero_pairs: int | None) -> LayerSparsity:
        """Give the counts of one parameter their place beside what its plan says."""
        is_paired = planned.shape[0] % 2 == 0
        return cls(
            name=planned.label,
            shape=planned.shape,
            structure=planned.structure,
            target_sparsity=planned.config.target_sparsity,
            weights=planned.numel,
            zeros=zeros,
            channels=planned.shape[0],
            zero_channels=zero_channels,
            zero_channel_weights=zero_channels * (planned.numel // planned.shape[0]),
            pairs=planned.numel // 2 if is_paired else None,
            zero_pairs=zero_pairs if is_paired else None,
        )

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def structured_sparsity(self) -> float:
        """Fraction of output channels that are all zero; a channel counts by its weights where layers are summed."""
        return self.zero_channel_weights / self.weights if self.weights else 0.0

    @property
    def block2_sparsity(self) -> float | None:
        """Fraction of pairs of weights of neighbouring output channels that are both zero; None if not applicable."""
        return None if self.pairs is None or self.zero_pairs is None else self.zero_pairs / self.pairs

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weights in half precision."""
        return stored_bytes(self.weights)

    @property
    def sparse_bytes(self) -> int:
        """Bytes of the weights stored as a bit mask and their nonzero values; never more than dense."""
        return stored_bytes(self.weights, self.zeros)


@dataclass(frozen=True)
class MaskChanges:
    """What an update did to the masks.

    Attributes:
        pruned: Weights that were kept before, and are pruned now.
        returned: Weights that were pruned before, and are kept now.
        weights: Number of weights of all pruned layers.
    """

    pruned: int
    returned: int
    weights: int

    @property
    def churn(self) -> float:
        """Fraction of weights whose mask changed."""
        return (self.pruned + self.returned) / self.weights

    def metrics(self, *, prefix: str = "sparsity") -> dict[str, float]:
        """Flat numbers for a logger.

        Returns:
            ``sparsity_churn/global``: fraction of weights whose mask changed. ``sparsity_returned/global``: number of
            weights that returned.

        Example:
            >>> MaskChanges(pruned=3, returned=1, weights=40).metrics()
            {'sparsity_churn/global': 0.1, 'sparsity_returned/global': 1.0}
        """
        return {f"{prefix}_churn/global": self.churn, f"{prefix}_returned/global": float(self.returned)}


def stored_bytes(weights: int, zeros: int = 0) -> int:
    """Bytes of weights in half precision, as a bit mask and the nonzero values where that is smaller than all values.

    Sparse storage takes ``16 * (1 - sparsity) + 1`` bits a weight, so it pays from 6.25 % zeros on. That is how Core ML
    stores sparse weights; names and alignment in the file come on top.

    Args:
        weights: Number of weights.
        zeros: How many of them are zero.

    Example:
        >>> stored_bytes(1024), stored_bytes(1024, zeros=768)
        (2048, 640)
    """
    sparse_bits = _WEIGHT_BITS * (weights - zeros) + _MASK_BITS * weights
    return -(-min(sparse_bits, _WEIGHT_BITS * weights) // 8)


def describe_structure(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> str:
    """Name the coarsest structure that accounts for all zeros of a tensor.

    Args:
        tensor: Weights or a mask, rank 2 or more; of lower rank there is no structure to find.
        shape: Shape of the weight, where ``tensor`` is a mask that broadcasts over it.

    Returns:
        ``"dense"``, ``"all zero"``, ``"per_channel"``, ``"per_kernel"``, ``"block 4"`` (``"per_kernel, block 4"``),
        ``"2:4 zeros, dim 1"`` or ``"per_scalar"``. Blocks of up to 64 output channels and groups of 4, 8 and 16 are
        looked for. Zeros that form a structure by chance, as in a tensor of a few weights, are named by it too.

    Example:
        >>> describe_structure(torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]]))
        '2:4 zeros, dim 1'
    """
    mask = (tensor != 0).expand(tensor.shape if shape is None else shape)
    zeros, numel = count_zeros(mask), mask.numel()
    if zeros in (0, numel):
        return "all zero" if zeros and numel else "dense"
    if mask.ndim < 2:
        return "per_scalar"
    if zero_channels(mask) * (numel // mask.shape[0]) == zeros:
        return _with_block("per_channel", mask, zeros)
    has_kernels = prod(mask.shape[2:]) > 1
    if has_kernels and (zero_kernels(mask) or 0) * (numel // (mask.shape[0] * mask.shape[1])) == zeros:
        return _with_block("per_kernel", mask, zeros)
    return _find_n_m(mask, zeros) or _with_block("per_scalar", mask, zeros)


def _with_block(granularity: str, mask: Tensor, zeros: int) -> str:
    """The granularity, or the largest blocks of output channels that account for all zeros."""
    for size in (64, 32, 16, 8, 4, 2):
        if size <= mask.shape[0] // 2 and (zero_blocks(mask, size) or 0) * size == zeros:
            return f"block {size}" if granularity == "per_scalar" else f"{granularity}, block {size}"
    return granularity


def _find_n_m(mask: Tensor, zeros: int) -> str | None:
    """The n:m pattern whose groups hold exactly n zeros each, if there is one."""
    for dim in (1, 0):
        for size in (4, 8, 16):
            num_zeros, rest = divmod(zeros * size, mask.numel())
            if rest or mask.shape[dim] % size:
                continue
            adherent, groups = n_m_groups(mask, num_zeros, size, dim=dim)
            if adherent == groups:  # at least n each, and n on average: exactly n each
                return f"{num_zeros}:{size} zeros, dim {dim}"
    return None


def measure_layer(planned: PrunedParameter, mask: Tensor) -> LayerSparsity:
    """Count the zeros of a mask, bytes 0 and 1 or bool, that broadcasts over the weight of ``planned``."""
    mask = mask.view(torch.bool) if mask.dtype == torch.uint8 else mask
    return LayerSparsity.of(planned, *zero_counts(mask, shape=planned.shape))


class SparsityReport(Mapping[str, dict[str, Any]]):
    """How sparse a model is.

    As a mapping it has the keys that Core ML Tools reports: a dict per layer and one under ``"global"``, with
    ``#params``, ``structured_weight_sparsity``, ``unstructured_weight_sparsity`` and ``block2_weight_sparsity`` (-1
    where it does not apply). ``layers`` and ``total`` hold the counts themselves, with None in such places.

    Args:
        layers: Counts of each layer.
    """

    def __init__(self, layers: Sequence[LayerSparsity]) -> None:
        self.layers = tuple(layers)

    @property
    def total(self) -> LayerSparsity:
        """Counts of all layers together."""
        paired = [layer for layer in self.layers if layer.pairs is not None]
        return LayerSparsity(
            name="global",
            shape=(),
            structure="",
            target_sparsity=None,
            weights=sum(layer.weights for layer in self.layers),
            zeros=sum(layer.zeros for layer in self.layers),
            channels=sum(layer.channels for layer in self.layers),
            zero_channels=sum(layer.zero_channels for layer in self.layers),
            zero_channel_weights=sum(layer.zero_channel_weights for layer in self.layers),
            pairs=sum(layer.pairs or 0 for layer in paired) if paired else None,
            zero_pairs=sum(layer.zero_pairs or 0 for layer in paired) if paired else None,
        )

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among all weights of the pruned layers."""
        return self.total.sparsity

    def __getitem__(self, name: str) -> dict[str, Any]:
        for layer in (*self.layers, self.total):
            if layer.name == name:
                return {
                    "#params": layer.weights,
                    "structured_weight_sparsity": layer.structured_sparsity,
                    "unstructured_weight_sparsity": layer.sparsity,
                    "block2_weight_sparsity": -1 if layer.block2_sparsity is None else layer.block2_sparsity,
                }
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from (layer.name for layer in self.layers)
        yield "global"

    def __len__(self) -> int:
        return len(self.layers) + 1

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a layer, the sum last; None where a value does not apply."""
        return [
            {
                **asdict(layer),
                "shape": list(layer.shape),
                "sparsity": layer.sparsity,
                "structured_sparsity": layer.structured_sparsity,
                "block2_sparsity": layer.block2_sparsity,
                "dense_bytes": layer.dense_bytes,
                "sparse_bytes": layer.sparse_bytes,
            }
            for layer in (*self.layers, self.total)
        ]

    def to_csv(self) -> str:
        """The records as CSV text with a header."""
        records = self.records()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**layer, "shape": "x".join(map(str, layer["shape"]))} for layer in records)
        return text.getvalue()

    def metrics(self, *, prefix: str = "sparsity", layers: bool = True) -> dict[str, float]:
        """Flat numbers for a logger, of pruned layers only; the names stay as they are from version to version.

        Args:
            prefix: What all names begin with.
            layers: Whether to give the sparsity of each layer too.

        Returns:
            ``sparsity/global``, ``sparsity/<layer>``: fraction of zeros. ``sparsity_channels/global``: fraction of
            weights in output channels that are all zero. ``sparsity_block2/global``: fraction of all-zero pairs, left
            out where it does not apply. ``sparsity_weights/effective``: number of weights that are not zero.
            ``sparsity_bytes/compressed``: see :func:`stored_bytes`, summed over layers.
        """
        total = self.total
        numbers = {
            f"{prefix}/global": total.sparsity,
            f"{prefix}_channels/global": total.structured_sparsity,
            f"{prefix}_weights/effective": float(total.weights - total.zeros),
            f"{prefix}_bytes/compressed": float(sum(layer.sparse_bytes for layer in self.layers)),
        }
        if total.block2_sparsity is not None:
            numbers[f"{prefix}_block2/global"] = total.block2_sparsity
        if layers:
            numbers |= {f"{prefix}/{layer.name or '(root)'}": layer.sparsity for layer in self.layers}
        return numbers

    def __rich__(self) -> Table:
        """Table for a terminal or a notebook; 80 columns are enough."""
        from lightning_prune.basics import DottedText, new_table

        table = new_table("Sparsity")
        table.add_column("layer")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("target", "sparsity", "zeros / weights"):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                DottedText(layer.name or "(root)"),
                "x".join(map(str, layer.shape)),
                layer.structure,
                "" if layer.target_sparsity is None else f"{layer.target_sparsity:.1%}",
                f"{layer.sparsity:.2%}",
                f"{layer.zeros:,} / {layer.weights:,}",
            )
        total = self.total
        table.add_section()
        table.add_row("global", "", "", "", f"{total.sparsity:.2%}", f"{total.zeros:,} / {total.weights:,}")
        dense, sparse = total.dense_bytes, sum(layer.sparse_bytes for layer in self.layers)
        table.caption = f"{sparse:,} bytes stored sparse, {dense:,} dense ({dense / max(sparse, 1):.2f}x)."
        return table

    def __repr__(self) -> str:
        from lightning_prune.basics import as_text

        return as_text(self.__rich__(), width=_WIDE)

    def _repr_html_(self) -> str:
        """Table for a notebook."""
        from rich.console import Console

        console = Console(width=_WIDE, file=io.StringIO(), record=True, force_jupyter=False)
        console.print(self.__rich__())
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
