"""``lightning_prune.plots`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import (
    plan_curves,
    plot_layers,
    plot_mask,
    plot_plan,
    plot_sensitivity,
    plot_sparsity,
    plot_tradeoff,
    plot_weights,
)

__all__ = [
    "plan_curves",
    "plot_layers",
    "plot_mask",
    "plot_plan",
    "plot_sensitivity",
    "plot_sparsity",
    "plot_tradeoff",
    "plot_weights",
]
