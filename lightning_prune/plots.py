"""Figures: schedules and sparsity, as matplotlib figures that the caller saves or shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_sparsity"]


def plot_sparsity(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], *, target: float | None = None
) -> Figure:
    """Draw sparsity over optimizer steps.

    Args:
        steps: Optimizer steps at which sparsity was measured or planned.
        curves: Fractions in [0, 1], one sequence of the length of ``steps`` per label; each holds until the next step.
        target: Fraction to mark with a line.

    Returns:
        A figure that belongs to no window: call ``savefig``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _new_figure()
    axes = figure.add_subplot()
    for label, values in curves.items():
        axes.step(steps, values, where="post", label=label, linewidth=2)
    if target is not None:
        axes.axhline(target, color="black", linestyle="--", linewidth=1, label=f"target {target:.0%}")
    axes.set(xlabel="optimizer step", ylabel="sparsity (fraction of zeros)", ylim=(0, 1), title="Sparsity over steps")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "lightning-prune[plot]"') from error
    return Figure(figsize=(7, 4), layout="constrained")
