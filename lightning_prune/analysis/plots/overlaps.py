"""Curves of a figure that lie upon each other: where they do, each is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "shared_parts", "show_overlaps"]

_DASH = 7.0  # points
_NEAR = 0.004  # of the height of the figure: about the width of a line

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line of a figure, by its corners.

    Args:
        x: Where its points are, in increasing or decreasing order.
        y: How high they are.
        color: Of the line.
        width: Of the line, in points.
        is_step: Each value holds until the next point, as with ``drawstyle="steps-post"``.
    """

    x: Sequence[float]
    y: Sequence[float]
    color: str
    width: float = 2.0
    is_step: bool = False


def show_overlaps(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw curves over each other in dashes that take turns, wherever some of them are the same; call it last.

    Args:
        axes: Where the curves are drawn already, with the limits that it will keep.
        curves: In the order in which they were drawn.
    """
    low, high = axes.get_ylim()
    is_log = axes.get_xscale() == "log"  # what is straight there is not straight in numbers
    seen = [replace(curve, x=np.log(curve.x).tolist()) if is_log else curve for curve in curves]
    for corners, place, together in shared_parts(seen, _NEAR * abs(high - low)):
        curve = curves[together[place]]
        xs, ys = np.array(corners).T
        xs = np.exp(xs) if is_log else xs
        dash = _DASH / curve.width  # matplotlib counts in widths of the line
        pattern: Any = (place * dash, (dash, (len(together) - 1) * dash))
        axes.plot(xs, ys, color=curve.color, linewidth=curve.width, linestyle=pattern, dash_capstyle="butt")


def shared_parts(curves: Sequence[Curve], near: float) -> Iterator[tuple[list[Point], int, tuple[int, ...]]]:
    """Find the parts in which curves are the same.

    Args:
        curves: The curves.
        near: Values that differ by no more are the same.

    Yields:
        For each part of each curve: its corners, the curve's place among those that share it, and their numbers.

    Example:
        >>> flat, steep = Curve([0, 1, 2], [5, 5, 5], "red"), Curve([0, 2], [5, 5], "blue")
        >>> [(corners, place, together) for corners, place, together in shared_parts([flat, steep], 0.1)]
        [([(0.0, 5.0), (1.0, 5.0), (2.0, 5.0)], 0, (0, 1)), ([(0.0, 5.0), (1.0, 5.0), (2.0, 5.0)], 1, (0, 1))]
    """
    if not curves:
        return
    grid = np.unique(np.concatenate([np.asarray(curve.x, float) for curve in curves]))
    lines = [_corners(curve, grid) for curve in curves]
    for number, line in enumerate(lines):
        part: list[Point] = []
        sharing: tuple[int, ...] = ()
        for index, (start, stop) in enumerate(pairwise(line)):
            here = tuple(at for at, other in enumerate(lines) if _is_same(other, line, index, near))
            if here != sharing and len(part) > 1:
                yield part, sharing.index(number), sharing
            if len(here) < 2:
                part, sharing = [], ()
            else:
                part = [*part, stop] if here == sharing else [start, stop]
                sharing = here
        if len(part) > 1:
            yield part, sharing.index(number), sharing


def _corners(curve: Curve, grid: NDArray[Any]) -> list[Point]:
    """The curve at all places of the grid, twice at each so that steps have both of their ends; NaN beside its ends."""
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    if not len(x):
        return [(float(place), float("nan")) for place in grid for _ in range(1 + curve.is_step)]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if not curve.is_step:
        values = np.interp(grid, x, y, left=np.nan, right=np.nan)
        return [(float(place), float(value)) for place, value in zip(grid, values, strict=True)]
    corners: list[Point] = []
    before = np.searchsorted(x, grid, side="left") - 1  # the point that holds just before
    after = np.searchsorted(x, grid, side="right") - 1
    for place, old, new in zip(grid, before, after, strict=True):
        inside = x[0] <= place <= x[-1]
        corners.append((float(place), float(y[old]) if inside and old >= 0 else float("nan")))
        corners.append((float(place), float(y[new]) if inside else float("nan")))
    return corners


def _is_same(points: list[Point], other: list[Point], index: int, near: float) -> bool:
    """Whether the piece from one corner to the next is that of another curve."""
    if len(points) != len(other):  # steps are not compared with slopes
        return False
    return all(abs(points[at][1] - other[at][1]) <= near for at in (index, index + 1))
