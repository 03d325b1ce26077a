"""What slimming left: a bar for each weight, of the channels that stay, that had to stay, and that went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_prune.analysis.plots.figures import BLUE, ORANGE, PALE, new_figure, percent_ticks, shorten
from lightning_prune.slim import SlimResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_slim"]


def plot_slim(result: SlimResult) -> Figure:
    """Draw one bar a weight: which share of its output channels stays, and of these which were pinned.

    Args:
        result: What :func:`~lightning_prune.slim.slim` gives, or ``callback.slim_result``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers = result.layers
    figure, axes = new_figure(height=1.7 + 0.28 * len(layers), width=8)
    places = np.arange(len(layers))
    kept = np.array([layer.slim_channels / layer.channels for layer in layers])
    pinned = np.array([sum(layer.pinned.values()) / layer.channels for layer in layers])
    axes.barh(places, np.ones(len(layers)), height=0.72, color=PALE, label="cut out", zorder=1)
    axes.barh(places, kept, height=0.72, color=BLUE, label="kept", zorder=2)
    axes.barh(places, pinned, height=0.72, color=ORANGE, label="kept whatever their values are (pinned)", zorder=3)
    axes.set_yticks(places, [shorten(layer.name) for layer in layers])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(places, [f"{layer.slim_channels:,} of {layer.channels:,}" for layer in layers])
    counts.tick_params(length=0, labelsize=8)
    counts.spines["right"].set_visible(False)
    axes.set(xlabel="output channels", xlim=(0, 1.0), ylim=(len(layers) - 0.4, -0.6))
    axes.set_title(f"{result.slim_parameters:,} of {result.parameters:,} parameters left", loc="left")
    axes.xaxis.set_major_formatter(percent_ticks())
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    return figure
