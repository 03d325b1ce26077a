"""What the page of a run shows, gathered from its pruner and from what it has left."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

from torch import Tensor

from lightning_prune.page.contents import Curve, DenseRow, LayerRow, MaskPicture, RunPage
from lightning_prune.page.history import MOST_POINTS, History
from lightning_prune.page.pictures import draw_mask
from lightning_prune.plan import PrunedParameter, PruningPlan
from lightning_prune.pruner import SparsityReport
from lightning_prune.schedules import PruningScheduler

__all__ = ["gather_page", "layer_rows", "mask_pictures", "now", "planned_curve", "versions"]

MOST_PICTURE_BYTES = 2**19  # of all masks together; as text they are a third longer
_MOST_STEPS = 100_000  # of a schedule that are looked at
_PACKAGES = (
    "lightning-prune",
    "lightning",
    "pytorch-lightning",
    "torch",
    "numpy",
    "coremltools",
    "coreai-torch",
    "onnx",
    "safetensors",
)


def gather_page(
    *,
    title: str,
    status: str,
    is_finished: bool,
    plan: PruningPlan,
    report: SparsityReport,
    masks: Mapping[str, Tensor],
    history: History,
    **left: Any,
) -> RunPage:
    """Gather what is known of a run.

    Args:
        title: The class of the module.
        status: How the run ended, in a sentence.
        is_finished: Whether it came to its end.
        plan: What was pruned, and what not and why.
        report: How sparse it is.
        masks: Keep-masks by parameter name.
        history: What was logged.
        left: What else the run has left, by the names that :class:`RunPage` has for it.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for row in plan.skipped:
        alike.setdefault((row.kind, row.reason), []).append(row.name or "(root)")
    shapes = {planned.name: planned.shape for planned in plan}
    pictures, more = mask_pictures((name, masks[name], shape) for name, shape in shapes.items() if name in masks)
    return RunPage(
        title=title,
        status=status,
        is_finished=is_finished,
        layers=layer_rows(report),
        dense=tuple(DenseRow(tuple(names), *which) for which, names in alike.items()),
        planned=history.planned,
        actual=history.actual,
        metrics=history.metrics,
        masks=pictures,
        more_masks=more,
        versions=versions(),
        configuration=history.configuration,
        **left,
    )


def layer_rows(report: SparsityReport) -> tuple[LayerRow, ...]:
    """The layers of a report."""
    return tuple(
        LayerRow(
            layer.name or "(root)",
            layer.shape,
            layer.structure,
            layer.target_sparsity,
            layer.zeros,
            layer.weights,
            layer.channels,
            layer.zero_channels,
        )
        for layer in report.layers
    )


def mask_pictures(masks: Iterable[tuple[str, Tensor, tuple[int, ...]]]) -> tuple[tuple[MaskPicture, ...], int]:
    """Draw masks as long as there is room for them in a page.

    Args:
        masks: Name, mask, shape of the weight.

    Returns:
        The pictures, and how many masks have none.
    """
    pictures, nbytes, more = list[MaskPicture](), 0, 0
    for name, mask, shape in masks:
        if len(shape) < 2 or 0 in shape:
            continue
        if nbytes < MOST_PICTURE_BYTES:
            pictures.append(draw_mask(name, mask, shape))
            nbytes += len(pictures[-1].png)
        else:
            more += 1
    return tuple(pictures), more


def planned_curve(plan: Iterable[PrunedParameter], schedules: Mapping[str, PruningScheduler], last_step: int) -> Curve:
    """Compute the sparsity of all pruned layers that schedules ask for, at as many steps as a curve may have.

    Args:
        plan: What is pruned.
        schedules: The schedule of each parameter, in steps.
        last_step: Where the run ends.

    Example:
        >>> from torch import nn
        >>> from lightning_prune import MagnitudePrunerConfig, plan_pruning
        >>> config = MagnitudePrunerConfig({"scheduler": {"update_steps": [10, 20, 30]}, "target_sparsity": 0.8})
        >>> plan = plan_pruning(nn.Linear(8, 4), config)
        >>> planned_curve(plan, {"weight": config.global_config.schedule}, 40)
        Curve(steps=(0, 20, 30, 40), values=(0.0, 0.7, 0.8, 0.8))
    """
    members: dict[tuple[str, int], list[PrunedParameter]] = {}
    for planned in plan:
        members.setdefault((planned.rule, id(schedules[planned.name])), []).append(planned)
    curves = [(_follow(group[0], schedules[group[0].name], last_step), group) for group in members.values()]
    weights = sum(planned.numel for _, group in curves for planned in group)
    changes = sorted({step for curve, _ in curves for step in curve})
    if not weights or not changes:
        return Curve()
    now_at, whole = [0.0] * len(curves), {}
    for step in changes:
        for at, (curve, _) in enumerate(curves):
            now_at[at] = curve.get(step, now_at[at])
        zeros = sum(now_at[at] * sum(planned.numel for planned in group) for at, (_, group) in enumerate(curves))
        whole[step] = float(f"{zeros / weights:.9g}")
    whole[last_step] = whole[changes[-1]]
    kept = thinned(list(whole), MOST_POINTS)
    return Curve(tuple(kept), tuple(whole[step] for step in kept))


def _follow(planned: PrunedParameter, schedule: PruningScheduler, last_step: int) -> dict[int, float]:
    """Sparsity of one layer at step 0, and wherever it changes."""
    due = list(islice(schedule.due_steps(1, last_step), _MOST_STEPS))
    sparsity = planned.config.initial_sparsity
    curve = {0: planned.layout.reached(sparsity)}
    for step in thinned(due, MOST_POINTS - 2):
        asked = schedule.compute_sparsity(step, sparsity, planned.config)
        if asked != sparsity:
            sparsity = asked
            curve[step] = planned.layout.reached(sparsity)
    return curve


def thinned(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]


def versions() -> dict[str, str]:
    """Versions of what a run depends on, as far as it is installed."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "System": f"{platform.system()} {platform.machine()}"}


def now() -> str:
    """The time of day, as a page says it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
