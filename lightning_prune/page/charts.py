"""Where the lines, ticks and labels of a chart lie; the page draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.page.contents import Curve

__all__ = ["Chart", "Line", "Tick", "chart_of"]

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 34  # margins, for labels
_MOST_DOTS = 40  # of a line; more would run together


@dataclass(frozen=True)
class Tick:
    """A label of an axis: where it lies in the chart, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve: its path, and its points with what each says; none where they would run together."""

    name: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Chart:
    """A chart in units of its own, ``WIDTH`` wide and ``HEIGHT`` high."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    mark: Tick | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart_of(
    title: str,
    curves: Mapping[str, Curve],
    *,
    last_step: int,
    is_fraction: bool = False,
    is_stepped: bool = False,
    mark: tuple[int, str] | None = None,
) -> Chart | None:
    """Lay out curves over optimizer steps.

    Args:
        title: What the chart shows.
        curves: What is drawn, by name; curves without points are left out.
        last_step: Where the axis of steps ends.
        is_fraction: The values are fractions in [0, 1], shown as percent from 0 to 100.
        is_stepped: A value holds until the next.
        mark: A step to mark, and what to write there.

    Returns:
        The chart; None if there is no point to draw.
    """
    curves = {name: curve for name, curve in curves.items() if curve.steps}
    if not curves:
        return None
    last_step = max([last_step, 1, *(curve.steps[-1] for curve in curves.values())])
    values = [value for curve in curves.values() for value in curve.values]
    ups = [0.0, 0.25, 0.5, 0.75, 1.0] if is_fraction else round_numbers(min(values), max(values))
    low, high = ups[0], ups[-1]

    def x(step: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * step / last_step, 1)

    def y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low)), 1)

    def say(value: float) -> str:
        return f"{value:.1%}" if is_fraction else f"{value:.4g}"

    lines = []
    for name, curve in curves.items():
        points = [(x(step), y(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
        joined = [f"H{to[0]}V{to[1]}" if is_stepped else f"L{to[0]} {to[1]}" for to in points[1:]]
        dots = tuple(
            (*point, f"{name}: {say(value)} at step {step:,}")
            for point, step, value in zip(points, curve.steps, curve.values, strict=True)
        )
        path = f"M{points[0][0]} {points[0][1]}{''.join(joined)}"
        lines.append(Line(name, path, dots if len(dots) <= _MOST_DOTS else ()))
    across = [step for step in round_numbers(0, last_step, most=7) if step <= last_step and step == int(step)]
    digits = max(0, -math.floor(math.log10(ups[1] - ups[0]) + 1e-9))
    return Chart(
        title,
        tuple(lines),
        tuple(Tick(x(step), f"{int(step):,}") for step in across),
        tuple(Tick(y(up), f"{up:.0%}" if is_fraction else _short(up, digits)) for up in ups),
        None if mark is None or not 0 < mark[0] <= last_step else Tick(x(mark[0]), mark[1]),
    )


def round_numbers(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers in equal steps, the first at most ``low`` and the last at least ``high``.

    Example:
        >>> round_numbers(0.13, 0.9)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        reach = abs(high) / 2 or 1.0
        low, high = low - reach, high + reach
    exponent = math.floor(math.log10((high - low) / most))
    steps = (factor * 10.0 ** (exponent + power) for power in (0, 1, 2) for factor in (1, 2, 5))
    ends = ((math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9), step) for step in steps)
    first, last, step = next((first, last, step) for first, last, step in ends if last - first < most)
    return [float(f"{count * step:.12g}") for count in range(first, last + 1)]


def _short(value: float, digits: int) -> str:
    """A number at an axis, in few letters."""
    if value == 0:
        return "0"
    return f"{value:.{digits}f}" if abs(value) < 1e5 and digits < 5 else f"{value:.1e}"
