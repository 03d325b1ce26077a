"""What pruning left: a bar for each layer, and histograms of weights before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_prune.analysis.metrics import weights_of
from lightning_prune.analysis.plots.figures import (
    BLUE,
    GREY,
    ORANGE,
    new_figure,
    new_grid,
    percent_ticks,
    short_numbers,
    shorten,
)
from lightning_prune.errors import ConfigError, first_names, shown
from lightning_prune.pruner import SparsityReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_layers", "plot_weights"]

_MOST_PANELS = 12


def plot_layers(report: SparsityReport) -> Figure:
    """Draw one bar a layer: how sparse it is, beside its target and that of the whole.

    Args:
        report: What ``pruner.report()`` or ``callback.report()`` gives.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers = report.layers
    figure, axes = new_figure(height=1.6 + 0.28 * len(layers), width=8)
    places = np.arange(len(layers))
    axes.barh(places, [layer.sparsity for layer in layers], height=0.72, color=BLUE, zorder=2)
    targets = [
        (place, layer.target_sparsity) for place, layer in enumerate(layers) if layer.target_sparsity is not None
    ]
    if targets:
        rows, values = zip(*targets, strict=True)
        axes.plot(values, rows, "|", color="black", markersize=13, markeredgewidth=1.6, label="target", zorder=4)
    axes.axvline(report.sparsity, color=ORANGE, linestyle="--", label=f"all layers {report.sparsity:.1%}", zorder=3)
    axes.set_yticks(places, [shorten(layer.name or "(root)") for layer in layers])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(
        places, [f"{layer.sparsity:.1%}, {layer.weights - layer.zeros:,} weights left" for layer in layers]
    )
    counts.tick_params(length=0, labelsize=8)
    counts.spines["right"].set_visible(False)
    axes.set(xlabel="sparsity (fraction of zeros)", xlim=(0, 1.0), ylim=(len(layers) - 0.4, -0.6))
    axes.set_title("Sparsity by layer", loc="left")
    axes.xaxis.set_major_formatter(percent_ticks())
    axes.grid(axis="x", alpha=0.3, zorder=0)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_weights(
    before: nn.Module | Mapping[str, Tensor],
    after: nn.Module | Mapping[str, Tensor],
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw histograms of the weights of each layer before and after pruning.

    Args:
        before: A model, or weights by name.
        after: The same after pruning, with the same names. Zeros are not drawn, they are counted in the title.
        names: Parameters to draw. Default: the first twelve that have zeros ``after``, or any if none has.

    Raises:
        ConfigError: A name is not in both.
        ImportError: matplotlib is not installed.
    """
    old, new = _by_name(before), _by_name(after)
    if names is None:
        common = [name for name in new if name in old]
        names = [name for name in common if bool((new[name] == 0).any())][:_MOST_PANELS] or common[:_MOST_PANELS]
    for name in names:
        if name not in old or name not in new:
            raise ConfigError(f"names: {shown(name)} must be a weight before and after. There are {first_names(new)}.")
    if not names:
        raise ConfigError("before and after must have weights of the same names, got none.")
    columns = min(3, len(names))
    figure, grid = new_grid(ceil(len(names) / columns), columns)
    for axes, name in zip(grid, names, strict=False):
        dense, sparse = _flat(old[name]), _flat(new[name])
        kept = sparse[sparse != 0]
        limit = float(np.quantile(np.abs(np.concatenate([dense, kept])), 0.999)) or 1.0
        bins = np.linspace(-limit, limit, 61)
        axes.hist(dense, bins=bins.tolist(), color=GREY, alpha=0.55, label="before")
        axes.hist(kept, bins=bins.tolist(), color=BLUE, histtype="step", linewidth=1.6, label="after, without zeros")
        axes.set_title(f"{shorten(name, 30)}\n{1 - len(kept) / len(sparse):.1%} zero", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_formatter(short_numbers())
    for axes in grid[len(names) :]:
        axes.remove()
    figure.supxlabel("weight", fontsize=10)
    figure.supylabel("weights per bin", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def _by_name(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(weights, Mapping):
        return dict(weights)
    return {name: weight for name, weight in weights_of(weights) if weight.ndim > 1}


def _flat(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().to("cpu", torch.float32).flatten().numpy()
