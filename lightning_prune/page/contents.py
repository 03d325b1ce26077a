"""What the page of a run shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_prune.export import ExportResult
from lightning_prune.slim import SlimResult

__all__ = ["Curve", "DenseRow", "LayerRow", "MaskPicture", "RunPage"]


@dataclass(frozen=True)
class Curve:
    """A number over optimizer steps.

    Attributes:
        steps: Optimizer steps, in order.
        values: The number at each of them.
    """

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerRow:
    """One pruned weight.

    Attributes:
        name: What the layer is called.
        shape: Shape of the weight.
        structure: The structure of its zeros, in words.
        target: Fraction of zeros that its rule asks for; None where it has no target of its own.
        zeros: Weights that are zero.
        weights: Number of weights.
        channels: Number of output channels.
        zero_channels: Output channels that are all zero.
    """

    name: str
    shape: tuple[int, ...]
    structure: str
    target: float | None
    zeros: int
    weights: int
    channels: int
    zero_channels: int

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class DenseRow:
    """Modules that stay dense for the same reason.

    Attributes:
        names: Their names.
        kind: Their class.
        reason: Why they stay dense.
    """

    names: tuple[str, ...]
    kind: str
    reason: str


@dataclass(frozen=True)
class MaskPicture:
    """A mask as a picture, output channels downwards, input channels to the right.

    Attributes:
        name: The name of the parameter.
        shape: Shape of the weight.
        png: The picture: kept, pruned, and the lines between kernels.
        size: Width and height in pixels, of which a weight takes one.
        channels: Output and input channels that are drawn; the first of each.
    """

    name: str
    shape: tuple[int, ...]
    png: bytes = field(repr=False)
    size: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True)
class RunPage:
    """All that the page of a run shows; what is not known is left out of the page.

    Attributes:
        title: What was pruned: the class of the module, or the name of a file.
        status: How the run ended and when, in a sentence.
        is_finished: Whether the run came to its end.
        layers: Pruned weights.
        dense: Modules that stay dense, and why.
        planned: Sparsity of all pruned layers as the schedule asks for it.
        actual: The same as it was after each update.
        metrics: What else was logged, by name.
        masks: Pictures of masks.
        more_masks: How many masks have no picture here.
        slim: The slim network, with its proof.
        exports: Files for other runtimes, with their proofs.
        failures: What went wrong after the training, in sentences.
        notes: What else to know, in sentences.
        versions: Versions of packages by name.
        configuration: The configuration as YAML; empty where it is not known.
    """

    title: str
    status: str
    is_finished: bool = True
    layers: tuple[LayerRow, ...] = ()
    dense: tuple[DenseRow, ...] = ()
    planned: Curve = Curve()
    actual: Curve = Curve()
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    masks: tuple[MaskPicture, ...] = ()
    more_masks: int = 0
    slim: SlimResult | None = None
    exports: tuple[ExportResult, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""

    @property
    def zeros(self) -> int:
        """Weights of pruned layers that are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of weights of pruned layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of pruned layers that are zero."""
        return self.zeros / self.weights if self.weights else 0.0
