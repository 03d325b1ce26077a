"""Sparsity over optimizer steps: as it was logged, and as a plan asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_prune.analysis.plots.figures import (
    BLUE,
    COLORS,
    MARKERS,
    MOST_LINES,
    cycle,
    letters,
    new_figure,
    percent_ticks,
)
from lightning_prune.analysis.plots.overlaps import Curve, show_overlaps
from lightning_prune.errors import ConfigError
from lightning_prune.plan import PrunedParameter, PruningPlan
from lightning_prune.schedules import TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plan_curves", "plot_plan", "plot_sparsity"]


def plot_sparsity(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], *, target: float | None = None
) -> Figure:
    """Draw sparsity over optimizer steps.

    Args:
        steps: Optimizer steps at which sparsity was measured or planned.
        curves: Fractions in [0, 1], one sequence of the length of ``steps`` per label; each holds until the next step.
            Of more than seven all but ``"global"`` are thin grey lines.
        target: Fraction to mark with a line.

    Returns:
        A figure that belongs to no window: call ``savefig``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    layers = [label for label in curves if label != "global"] if len(curves) > MOST_LINES else []
    for label in layers:
        axes.step(steps, curves[label], where="post", linewidth=0.8, color="0.65")
    if layers:
        axes.plot([], [], linewidth=0.8, color="0.65", label=f"{len(layers)} layers")
    lines = [(label, values) for label, values in curves.items() if label not in layers]
    drawn = []
    for color, marker, (label, values) in zip(cycle(COLORS), cycle(MARKERS), lines, strict=False):
        axes.step(steps, values, where="post", label=letters(label), linewidth=2, color=color)
        drawn.append(Curve(steps, values, color, is_step=True))
        if len(steps) <= 60:
            axes.plot(steps, values, marker, color=color, markersize=4)
    _finish_sparsity(axes, target)
    show_overlaps(axes, drawn)
    return figure


def plot_plan(
    plan: PruningPlan,
    run: TrainingRun | int,
    *,
    actual: Mapping[int, float] | None = None,
) -> Figure:
    """Draw the sparsity of the model as planned, and beside it as it came.

    Args:
        plan: What :func:`~lightning_prune.plan.plan_pruning` or ``pruner.plan`` gives.
        run: Length of the training run; an int is optimizer steps.
        actual: Measured sparsity of all pruned layers by optimizer step, in [0, 1].

    Raises:
        ConfigError: A schedule is in units that the run does not have.
        ImportError: matplotlib is not installed.
    """
    curves = plan_curves(plan, run)
    figure, axes = new_figure()
    whole = curves.pop("all layers")
    drawn = []
    if 1 < len(curves) < MOST_LINES:
        for color, (label, curve) in zip(COLORS[1:], curves.items(), strict=False):
            axes.step([*curve], [*curve.values()], where="post", label=letters(label), linewidth=1.6, color=color)
            drawn.append(Curve([*curve], [*curve.values()], color, 1.6, is_step=True))
    axes.step([*whole], [*whole.values()], where="post", label="all layers, planned", linewidth=2.5, color=BLUE)
    drawn.append(Curve([*whole], [*whole.values()], BLUE, 2.5, is_step=True))
    if actual:
        axes.plot(
            [*actual], [*actual.values()], "o", label="all layers, measured", markersize=5, color="black", mfc="none"
        )
    _finish_sparsity(axes, max(whole.values()))
    show_overlaps(axes, drawn)
    return figure


def plan_curves(plan: PruningPlan, run: TrainingRun | int) -> dict[str, dict[int, float]]:
    """Compute the sparsity that a plan asks for, step by step.

    Args:
        plan: What is pruned.
        run: Length of the training run; an int is optimizer steps.

    Returns:
        Sparsity by optimizer step, at step 0, wherever it changes and at the end: of ``"all layers"`` and of each rule,
        by its path in the configuration.

    Raises:
        ConfigError: The length of the run is not known, or a schedule is in units that the run does not have.

    Example:
        >>> from torch import nn
        >>> from lightning_prune import MagnitudePrunerConfig, plan_pruning
        >>> config = MagnitudePrunerConfig({"scheduler": {"update_steps": [10, 20, 30]}, "target_sparsity": 0.8})
        >>> curves = plan_curves(plan_pruning(nn.Linear(8, 4), config), 40)
        >>> {step: round(sparsity, 3) for step, sparsity in curves["all layers"].items()}
        {0: 0.0, 20: 0.7, 30: 0.8, 40: 0.8}
    """
    run = run if isinstance(run, TrainingRun) else TrainingRun(run)
    if run.total_steps is None:
        raise ConfigError("run must have a known length to draw it. Write TrainingRun(total_steps=1000).")
    layers: dict[str, list[PrunedParameter]] = {}
    for parameter in plan:
        layers.setdefault(parameter.rule, []).append(parameter)
    # layers of one rule share schedule and targets, so each rule is followed once
    by_rule = {rule: _follow(members[0], run, run.total_steps) for rule, members in layers.items()}
    weights = {rule: sum(parameter.numel for parameter in members) for rule, members in layers.items()}
    changes = sorted({step for curve in by_rule.values() for step in curve})
    current, whole = dict.fromkeys(by_rule, 0.0), {}
    for step in changes:
        current |= {rule: curve[step] for rule, curve in by_rule.items() if step in curve}
        whole[step] = sum(current[rule] * weights[rule] for rule in by_rule) / sum(weights.values())
    return {"all layers": whole, **by_rule}


def _follow(parameter: PrunedParameter, run: TrainingRun, total_steps: int) -> dict[int, float]:
    """Sparsity of one layer at step 0, wherever it changes, and at the end."""
    try:
        schedule = parameter.config.schedule.resolve(run)
    except ConfigError as error:
        raise ConfigError(f"{parameter.rule}.scheduler.{error}") from error
    sparsity, curve = parameter.config.initial_sparsity, {0: parameter.config.initial_sparsity}
    for step in schedule.due_steps(1, total_steps):
        asked = schedule.compute_sparsity(step, sparsity, parameter.config)
        if asked != sparsity:
            curve[step] = sparsity = asked
    structure = parameter.layout
    curve = {step: structure.reached(value) for step, value in curve.items()}
    return {**curve, total_steps: curve[max(curve)]}


def _finish_sparsity(axes: Axes, target: float | None) -> None:
    """Axes of sparsity over steps."""
    if target is not None:
        axes.axhline(target, color="black", linestyle="--", linewidth=1, label=f"target {target:.1%}", zorder=1)
    axes.set(xlabel="optimizer step", ylabel="sparsity (fraction of zeros)", ylim=(0, 1))
    axes.set_title("Sparsity over steps", loc="left")
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False, fontsize=9)
