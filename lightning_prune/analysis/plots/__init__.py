"""Figures: schedules, layers, weights, masks and trade-offs, as matplotlib figures that the caller saves or shows.

No figure belongs to a window: call ``savefig``, or return it as the last value of a notebook cell. Colours are those of
Okabe and Ito, which colour-blind readers can tell apart; lines differ in their markers too, and lines that lie upon
each other are drawn in dashes of all their colours.
"""

from __future__ import annotations

from lightning_prune.analysis.plots.masks import plot_mask
from lightning_prune.analysis.plots.schedules import plan_curves, plot_plan, plot_sparsity
from lightning_prune.analysis.plots.scores import plot_sensitivity, plot_tradeoff
from lightning_prune.analysis.plots.slimming import plot_slim
from lightning_prune.analysis.plots.weights import plot_layers, plot_weights

__all__ = [
    "plan_curves",
    "plot_layers",
    "plot_mask",
    "plot_plan",
    "plot_sensitivity",
    "plot_slim",
    "plot_sparsity",
    "plot_tradeoff",
    "plot_weights",
]
