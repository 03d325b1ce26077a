"""Figures: schedules, layers, weights, masks and trade-offs, as matplotlib figures that the caller saves or shows.

No figure belongs to a window: call ``savefig``, or return it as the last value of a notebook cell. Colours are those of
Okabe and Ito, which colour-blind readers can tell apart; lines differ in their markers too, and lines that lie upon
each other are drawn in dashes of all their colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_prune.analysis.overlaps import Curve, show_overlaps
from lightning_prune.basics import printable
from lightning_prune.errors import ConfigError, first_names, shown
from lightning_prune.plan import PrunedParameter, PruningPlan
from lightning_prune.pruner import SparsityReport, describe_structure
from lightning_prune.schedules import TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_BLUE, _ORANGE, _GREY, _PALE = "#0072B2", "#D55E00", "#9A9A9A", "#E7E2D6"
_MOST_LINES = len(_COLORS)
_MOST_PANELS = 12
_MOST_WEIGHTS = 72  # of a mask image along one side; more would be finer than the eye can tell
_WEIGHT_PIXELS, _GAP_PIXELS = 4, 3


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
    figure, axes = _new_figure()
    layers = [label for label in curves if label != "global"] if len(curves) > _MOST_LINES else []
    for label in layers:
        axes.step(steps, curves[label], where="post", linewidth=0.8, color="0.65")
    if layers:
        axes.plot([], [], linewidth=0.8, color="0.65", label=f"{len(layers)} layers")
    lines = [(label, values) for label, values in curves.items() if label not in layers]
    drawn = []
    for color, marker, (label, values) in zip(_cycle(_COLORS), _cycle(_MARKERS), lines, strict=False):
        axes.step(steps, values, where="post", label=_letters(label), linewidth=2, color=color)
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
    figure, axes = _new_figure()
    whole = curves.pop("all layers")
    drawn = []
    if 1 < len(curves) < _MOST_LINES:
        for color, (label, curve) in zip(_COLORS[1:], curves.items(), strict=False):
            axes.step([*curve], [*curve.values()], where="post", label=_letters(label), linewidth=1.6, color=color)
            drawn.append(Curve([*curve], [*curve.values()], color, 1.6, is_step=True))
    axes.step([*whole], [*whole.values()], where="post", label="all layers, planned", linewidth=2.5, color=_BLUE)
    drawn.append(Curve([*whole], [*whole.values()], _BLUE, 2.5, is_step=True))
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
        >>> from lightning_prune import plan_pruning, MagnitudePrunerConfig
        >>> config = MagnitudePrunerConfig({"scheduler": {"update_steps": [10, 20, 30]}, "target_sparsity": 0.8})
        >>> curves = plan_curves(plan_pruning(nn.Linear(8, 4), config), 40)
        >>> {step: round(sparsity, 3) for step, sparsity in curves["all layers"].items()}
        {0: 0.0, 20: 0.7, 30: 0.8, 40: 0.8}
    """
    run = run if isinstance(run, TrainingRun) else TrainingRun(run)
    if run.total_steps is None:
        raise ConfigError("run must have a known length to draw it. Write TrainingRun(total_steps=1000).")
    layers: dict[str, list[PrunedParameter]] = {}
    for one in plan:
        layers.setdefault(one.rule, []).append(one)
    # layers of one rule share schedule and targets, so each rule is followed once
    by_rule = {rule: _follow(members[0], run, run.total_steps) for rule, members in layers.items()}
    weights = {rule: sum(one.numel for one in members) for rule, members in layers.items()}
    changes = sorted({step for curve in by_rule.values() for step in curve})
    current, whole = dict.fromkeys(by_rule, 0.0), {}
    for step in changes:
        current |= {rule: curve[step] for rule, curve in by_rule.items() if step in curve}
        whole[step] = sum(current[rule] * weights[rule] for rule in by_rule) / sum(weights.values())
    return {"all layers": whole, **by_rule}


def plot_layers(report: SparsityReport) -> Figure:
    """Draw one bar a layer: how sparse it is, beside its target and that of the whole.

    Args:
        report: What ``pruner.report()`` or ``callback.report()`` gives.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers = report.layers
    figure, axes = _new_figure(height=1.6 + 0.28 * len(layers), width=8)
    places = np.arange(len(layers))
    axes.barh(places, [one.sparsity for one in layers], height=0.72, color=_BLUE, zorder=2)
    targets = [(place, one.target_sparsity) for place, one in enumerate(layers) if one.target_sparsity is not None]
    if targets:
        rows, values = zip(*targets, strict=True)
        axes.plot(values, rows, "|", color="black", markersize=13, markeredgewidth=1.6, label="target", zorder=4)
    axes.axvline(report.sparsity, color=_ORANGE, linestyle="--", label=f"all layers {report.sparsity:.1%}", zorder=3)
    axes.set_yticks(places, [_shorten(one.name or "(root)") for one in layers])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(places, [f"{one.sparsity:.1%}, {one.weights - one.zeros:,} weights left" for one in layers])
    counts.tick_params(length=0, labelsize=8)
    counts.spines["right"].set_visible(False)
    axes.set(xlabel="sparsity (fraction of zeros)", xlim=(0, 1.0), ylim=(len(layers) - 0.4, -0.6))
    axes.set_title("Sparsity by layer", loc="left")
    axes.xaxis.set_major_formatter(_percent())
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
    figure, grid = _new_grid(ceil(len(names) / columns), columns)
    for axes, name in zip(grid, names, strict=False):
        dense, sparse = _flat(old[name]), _flat(new[name])
        kept = sparse[sparse != 0]
        limit = float(np.quantile(np.abs(np.concatenate([dense, kept])), 0.999)) or 1.0
        bins = np.linspace(-limit, limit, 61)
        axes.hist(dense, bins=bins.tolist(), color=_GREY, alpha=0.55, label="before")
        axes.hist(kept, bins=bins.tolist(), color=_BLUE, histtype="step", linewidth=1.6, label="after, without zeros")
        axes.set_title(f"{_shorten(name, 30)}\n{1 - len(kept) / len(sparse):.1%} zero", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_formatter(_short_numbers())
    for axes in grid[len(names) :]:
        axes.remove()
    figure.supxlabel("weight", fontsize=10)
    figure.supylabel("weights per bin", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_mask(tensor: Tensor, *, name: str = "", shape: tuple[int, ...] | None = None) -> Figure:
    """Draw which weights of a layer are kept: output channels downwards, input channels to the right.

    Kernels of a convolution are drawn as small tiles. Lines separate the blocks or the n:m groups that are found.

    Args:
        tensor: A mask (True is keep) or weights, rank 2 or more. A large one is cut to its first channels.
        name: What the title calls it.
        shape: Shape of the weight, where a mask broadcasts over it.

    Raises:
        ConfigError: The rank is below 2.
        ImportError: matplotlib is not installed.
    """
    full = (tensor.detach() != 0).expand(tensor.shape if shape is None else shape).cpu()
    if full.ndim < 2:
        raise ConfigError(f"tensor must have rank 2 or more to be drawn as an image, got shape {tuple(full.shape)}.")
    structure = describe_structure(full)
    kernel = (prod(full.shape[2:-1]), full.shape[-1]) if full.ndim > 2 else (1, 1)
    tiles = full.reshape(full.shape[0], full.shape[1], *kernel)
    gap = _GAP_PIXELS if prod(kernel) > 1 else 0
    cells = [size * _WEIGHT_PIXELS + gap for size in kernel]
    limits = [min(count, max(8, _MOST_WEIGHTS // size)) for count, size in zip(full.shape, kernel, strict=False)]
    shown = tiles[: limits[0], : limits[1]]
    image = _tile(shown.numpy(), gap)
    figure, axes = _new_figure(width=6.4, height=max(2.6, min(7.0, 1.5 + 5.0 * image.shape[0] / image.shape[1])))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes.imshow(image, cmap=ListedColormap([_PALE, _BLUE, "white"]), vmin=0, vmax=2, interpolation="nearest")
    _draw_groups(axes, structure, cells, gap, limits)
    for set_ticks, cell, count, pixels in zip(
        (axes.set_yticks, axes.set_xticks), cells, limits, image.shape, strict=True
    ):
        _label_channels(set_ticks, cell, gap, count, most=max(2, 12 * pixels // max(image.shape)))
    axes.tick_params(labelsize=8)
    cut = "" if shown.shape == tiles.shape else f"; the first {shown.shape[0]} x {shown.shape[1]} channels"
    dimensions = " x ".join(map(str, full.shape))
    axes.set_title(
        f"{_shorten(name, 48)}\n{structure}, {1 - float(full.float().mean()):.1%} zero", loc="left", fontsize=11
    )
    axes.set(xlabel="input channel", ylabel="output channel")
    figure.supxlabel(f"shape {dimensions}{cut}", fontsize=8, color="#555555", x=0.01, ha="left")
    figure.legend(
        handles=[Patch(color=_BLUE, label="kept"), Patch(facecolor=_PALE, edgecolor=_GREY, label="pruned")],
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure


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
    figure, axes = _new_figure()
    ticks = sorted({sparsity for curve in curves.values() for sparsity in curve})
    if any(not 0 <= sparsity < 1 for sparsity in ticks):
        raise ConfigError(f"sparsities must be fractions in [0, 1) to be drawn, got {ticks}.")
    if dense is not None:
        axes.axhline(dense, color="black", linestyle="--", linewidth=1, label=f"dense, {dense:.4g}")
    drawn = []
    for color, marker, (label, curve) in zip(_cycle(_COLORS), _cycle(_MARKERS), curves.items(), strict=False):
        points = sorted((1 - sparsity, np.atleast_1d(np.asarray(values, float))) for sparsity, values in curve.items())
        density, means = [x for x, _ in points], [float(values.mean()) for _, values in points]
        axes.plot(density, means, marker=marker, color=color, label=label, linewidth=2, markersize=6)
        drawn.append(Curve(density, means, color))
        for x, values in points:
            if values.size > 1:
                axes.plot([x, x], [values.min(), values.max()], "_-", color=color, linewidth=1.2, markersize=9)
    _scale_by_density(axes, ticks)
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
    if len(scores) > _MOST_LINES:
        return _plot_heat(sparsities, scores, baseline, metric)
    figure, axes = _new_figure()
    axes.axhline(baseline, color="black", linestyle="--", linewidth=1, label=f"unchanged, {baseline:.4g}")
    is_log = max(sparsities) < 1
    places = [1 - one for one in sparsities] if is_log else sparsities
    drawn = []
    for color, marker, (label, values) in zip(_COLORS, _MARKERS, scores.items(), strict=False):
        label = _shorten(label or "(root)")
        axes.plot(places, values, marker=marker, color=color, label=label, linewidth=2, markersize=6)
        drawn.append(Curve(places, values, color))
    axes.set(xlabel="sparsity of the one layer that is pruned", ylabel=metric)
    axes.set_title("Sensitivity to pruning, layer by layer", loc="left")
    if is_log:
        _scale_by_density(axes, sorted(sparsities))
    else:
        axes.set_xticks(sparsities, [f"{100 * one:g}%" for one in sparsities])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    show_overlaps(axes, drawn)
    return figure


def _plot_heat(
    sparsities: Sequence[float], scores: Mapping[str, Sequence[float]], baseline: float, metric: str
) -> Figure:
    """The change of the score by layer and sparsity, as colours with numbers."""
    change = np.array([[value - baseline for value in values] for values in scores.values()], float)
    figure, axes = _new_figure(width=2.6 + 0.85 * len(sparsities) + 1.6, height=1.5 + 0.27 * len(scores))
    largest = float(np.nanmax(np.abs(change))) or 1.0
    drops = np.nansum(change) <= 0
    bounds = (-largest, 0.0) if drops else (0.0, largest)
    image = axes.imshow(change, cmap="cividis" if drops else "cividis_r", vmin=bounds[0], vmax=bounds[1], aspect="auto")
    for (row, column), value in np.ndenumerate(change):
        dark = (value - bounds[0]) / largest < 0.5
        color = "white" if dark == drops else "black"
        axes.text(column, row, _signed(value, largest), ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(scores)), [_shorten(name or "(root)") for name in scores])
    axes.set_xticks(range(len(sparsities)), [f"{100 * one:g}%" for one in sparsities])
    axes.tick_params(length=0)
    axes.set_xlabel("sparsity of the one layer that is pruned")
    axes.set_title("Sensitivity to pruning, layer by layer", loc="left")
    figure.colorbar(image, ax=axes, label=f"change of {metric} from {baseline:.4g}", pad=0.02)
    return figure


def _follow(one: PrunedParameter, run: TrainingRun, total_steps: int) -> dict[int, float]:
    """Sparsity of one layer at step 0, wherever it changes, and at the end."""
    try:
        schedule = one.config.schedule.resolve(run)
    except ConfigError as error:
        raise ConfigError(f"{one.rule}.scheduler.{error}") from error
    sparsity, curve = one.config.initial_sparsity, {0: one.config.initial_sparsity}
    for step in schedule.due_steps(1, total_steps):
        asked = schedule.compute_sparsity(step, sparsity, one.config)
        if asked != sparsity:
            curve[step] = sparsity = asked
    structure = one.config.structure
    curve = {step: structure.reached(value) for step, value in curve.items()}
    return {**curve, total_steps: curve[max(curve)]}


def _scale_by_density(axes: Axes, sparsities: Sequence[float]) -> None:
    """An axis of densities, a logarithm, sparser to the right, with the sparsities written at it."""
    axes.set_xscale("log")
    axes.set_xlim(1.15 * (1 - sparsities[0]), 0.87 * (1 - sparsities[-1]))
    axes.set_xticks([1 - one for one in sparsities], [f"{100 * one:g}%" for one in sparsities])
    axes.xaxis.set_minor_locator(_no_ticks())


def _finish_sparsity(axes: Axes, target: float | None) -> None:
    """Axes of sparsity over steps."""
    if target is not None:
        axes.axhline(target, color="black", linestyle="--", linewidth=1, label=f"target {target:.1%}", zorder=1)
    axes.set(xlabel="optimizer step", ylabel="sparsity (fraction of zeros)", ylim=(0, 1))
    axes.set_title("Sparsity over steps", loc="left")
    axes.yaxis.set_major_formatter(_percent())
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False, fontsize=9)


def _tile(mask: NDArray[Any], gap: int) -> NDArray[Any]:
    """One image of (outputs, inputs, rows, columns): 0 pruned, 1 kept, 2 the lines between kernels."""
    outputs, inputs, rows, columns = mask.shape
    rows, columns = rows * _WEIGHT_PIXELS, columns * _WEIGHT_PIXELS
    image = np.full((outputs, rows + gap, inputs, columns + gap), 2, np.uint8)
    pixels = mask.repeat(_WEIGHT_PIXELS, axis=2).repeat(_WEIGHT_PIXELS, axis=3)
    image[:, :rows, :, :columns] = pixels.transpose(0, 2, 1, 3)
    image = image.reshape(outputs * (rows + gap), inputs * (columns + gap))
    return image[: image.shape[0] - gap, : image.shape[1] - gap]


def _draw_groups(axes: Axes, structure: str, cells: Sequence[int], gap: int, channels: Sequence[int]) -> None:
    """Lines between blocks of output channels, or between the groups of an n:m pattern."""
    if "block" in structure:
        size = int(structure.rpartition(" ")[2])
    elif ":" in structure:
        size = int(structure.partition(":")[2].partition(" ")[0])
    else:
        return
    is_input = "dim 1" in structure
    draw = axes.axvline if is_input else axes.axhline
    for channel in range(size, channels[is_input], size):
        draw(channel * cells[is_input] - (1 + gap) / 2, color=_ORANGE, linewidth=1.2)


def _label_channels(set_ticks: Callable[..., Any], cell: int, gap: int, count: int, *, most: int) -> None:
    """Numbers of channels at the middle of their cells."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if count / step <= most)
    channels = range(0, count, step)
    set_ticks([channel * cell + (cell - gap - 1) / 2 for channel in channels], [str(one) for one in channels])


def _by_name(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(weights, Mapping):
        return dict(weights)
    from lightning_prune.analysis.metrics import weights_of

    return {name: weight for name, weight in weights_of(weights) if weight.ndim > 1}


def _flat(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().to("cpu", torch.float32).flatten().numpy()


def _shorten(name: str, length: int = 34) -> str:
    """The end of a long name, which tells layers apart."""
    return _letters(name if len(name) <= length else "…" + name[1 - length :])


def _letters(name: str) -> str:
    """A name so that its letters are drawn: a $ would begin a formula, a leading _ keep it out of the legend."""
    text = printable(name).replace("\n", "\\n").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _signed(value: float, largest: float) -> str:
    digits = 3 if largest < 1 else 1 if largest < 100 else 0
    return f"{value:+.{digits}f}"


def _cycle(values: Sequence[str]) -> Sequence[str]:
    return tuple(values) * 100


def _new_figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    figure, (axes,) = _new_grid(1, 1, width, height)
    return figure, axes


def _new_grid(
    rows: int, columns: int, width: float | None = None, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "lightning-prune[plot]"') from error
    size = (width or 1.0 + 2.7 * columns, height or 1.0 + 1.9 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid: list[Axes] = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _short_numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
