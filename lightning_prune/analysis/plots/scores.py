"""What pruning costs: accuracy against sparsity, of the whole network and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_prune.analysis.plots.figures import (
    COLORS,
    MARKERS,
    MOST_LINES,
    cycle,
    new_figure,
    scale_by_density,
    shorten,
)
from lightning_prune.analysis.plots.overlaps import Curve, show_overlaps
from lightning_prune.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_sensitivity", "plot_tradeoff"]


def plot_tradeoff(
    curves: Mapping[str, Mapping[float, float | Sequence[float]]],
    *,
    dense: float | None = None,
    metric: str = "accuracy",
) -> Figure:
    """Draw accuracy, or whatever was measured, against sparsity.

    Equal distances to the right are equal factors of weights saved: 50 to 75 % is as far as 90 to 95 %.

    Args:
        curves: What was measured by sparsity (a fraction in [0, 1)), by label. Several values, from several seeds, are
            drawn as their mean within a bar from the least to the largest.
        dense: What the dense network reaches, drawn as a line.
        metric: Name of what was measured, for the axis.

    Raises:
        ConfigError: A sparsity is outside [0, 1).
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    ticks = sorted({sparsity for curve in curves.values() for sparsity in curve})
    if any(not 0 <= sparsity < 1 for sparsity in ticks):
        raise ConfigError(f"sparsities must be fractions in [0, 1) to be drawn, got {ticks}.")
    if dense is not None:
        axes.axhline(dense, color="black", linestyle="--", linewidth=1, label=f"dense, {dense:.4g}")
    drawn = []
    for color, marker, (label, curve) in zip(cycle(COLORS), cycle(MARKERS), curves.items(), strict=False):
        points = sorted((1 - sparsity, np.atleast_1d(np.asarray(values, float))) for sparsity, values in curve.items())
        density, means = [x for x, _ in points], [float(values.mean()) for _, values in points]
        axes.plot(density, means, marker=marker, color=color, label=label, linewidth=2, markersize=6)
        drawn.append(Curve(density, means, color))
        for x, values in points:
            if values.size > 1:
                axes.plot([x, x], [values.min(), values.max()], "_-", color=color, linewidth=1.2, markersize=9)
    scale_by_density(axes, ticks)
    axes.set(xlabel="sparsity (fraction of zeros)", ylabel=metric)
    axes.set_title(f"{metric[:1].upper()}{metric[1:]} against sparsity", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    show_overlaps(axes, drawn)
    return figure


def plot_sensitivity(
    sparsities: Sequence[float], scores: Mapping[str, Sequence[float]], *, baseline: float, metric: str = "score"
) -> Figure:
    """Draw how the score of a model falls as one layer at a time is pruned.

    Up to seven layers are drawn as lines, more as a table of colours. As in :func:`plot_tradeoff`, equal distances to
    the right are equal factors of weights saved, unless all weights of a layer are pruned.

    Args:
        sparsities: Fractions in [0, 1].
        scores: By layer, one score a sparsity.
        baseline: The score of the model as it is.
        metric: Name of the score, for the axis.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if len(scores) > MOST_LINES:
        return _plot_heat(sparsities, scores, baseline, metric)
    figure, axes = new_figure()
    axes.axhline(baseline, color="black", linestyle="--", linewidth=1, label=f"unchanged, {baseline:.4g}")
    is_log = max(sparsities) < 1
    places = [1 - sparsity for sparsity in sparsities] if is_log else sparsities
    drawn = []
    for color, marker, (label, values) in zip(COLORS, MARKERS, scores.items(), strict=False):
        label = shorten(label or "(root)")
        axes.plot(places, values, marker=marker, color=color, label=label, linewidth=2, markersize=6)
        drawn.append(Curve(places, values, color))
    axes.set(xlabel="sparsity of the one layer that is pruned", ylabel=metric)
    axes.set_title("Sensitivity to pruning, layer by layer", loc="left")
    if is_log:
        scale_by_density(axes, sorted(sparsities))
    else:
        axes.set_xticks(sparsities, [f"{100 * sparsity:g}%" for sparsity in sparsities])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    show_overlaps(axes, drawn)
    return figure


def _plot_heat(
    sparsities: Sequence[float], scores: Mapping[str, Sequence[float]], baseline: float, metric: str
) -> Figure:
    """The change of the score by layer and sparsity, as colours with numbers."""
    change = np.array([[value - baseline for value in values] for values in scores.values()], float)
    figure, axes = new_figure(width=2.6 + 0.85 * len(sparsities) + 1.6, height=1.5 + 0.27 * len(scores))
    largest = float(np.nanmax(np.abs(change))) or 1.0
    drops = np.nansum(change) <= 0
    bounds = (-largest, 0.0) if drops else (0.0, largest)
    image = axes.imshow(change, cmap="cividis" if drops else "cividis_r", vmin=bounds[0], vmax=bounds[1], aspect="auto")
    for (row, column), value in np.ndenumerate(change):
        dark = (value - bounds[0]) / largest < 0.5
        color = "white" if dark == drops else "black"
        axes.text(column, row, _signed(value, largest), ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(scores)), [shorten(name or "(root)") for name in scores])
    axes.set_xticks(range(len(sparsities)), [f"{100 * sparsity:g}%" for sparsity in sparsities])
    axes.tick_params(length=0)
    axes.set_xlabel("sparsity of the one layer that is pruned")
    axes.set_title("Sensitivity to pruning, layer by layer", loc="left")
    figure.colorbar(image, ax=axes, label=f"change of {metric} from {baseline:.4g}", pad=0.02)
    return figure


def _signed(value: float, largest: float) -> str:
    digits = 3 if largest < 1 else 1 if largest < 100 else 0
    return f"{value:+.{digits}f}"
