"""Curves that lie upon each other."""

import io

import numpy as np
import pytest

from lightning_prune.analysis import plots
from lightning_prune.analysis.plots.overlaps import Curve, shared_parts

pytest.importorskip("matplotlib")
STEPS = [0, 10, 20, 30]


def parts(*curves: Curve) -> dict[int, list[tuple[list, tuple]]]:
    """Corners and sharers by curve."""
    found: dict[int, list] = {}
    for corners, place, together in shared_parts(curves, 0.01):
        found.setdefault(together[place], []).append((corners, together))
    return found


def colors_at(figure, x: float, y: float, dpi: int = 200) -> set[tuple[int, ...]]:
    """Strong colours of the picture along a horizontal line that starts at a point."""
    figure.set_dpi(dpi)
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="raw")
    width, height = (int(size * dpi) for size in figure.get_size_inches())
    pixels = np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]
    column, row = figure.axes[0].transData.transform((x, y))
    line = pixels[height - 1 - round(row), round(column) : round(column) + 120].astype(int)
    return {tuple(color) for color in line if (line == color).all(axis=1).sum() >= 5}


def test_curves_that_are_the_same_share_all_of_them():
    steps = [Curve(STEPS, [0.0, 0.4, 0.5, 0.5], color, is_step=True) for color in ("red", "blue", "green")]
    found = parts(*steps)
    assert set(found) == {0, 1, 2}
    for number in range(3):
        ((corners, together),) = found[number]
        assert together == (0, 1, 2)
        assert (corners[0], corners[-1]) == ((0.0, 0.0), (30.0, 0.5))


def test_only_the_part_that_is_the_same_is_shared():
    one, other = Curve(STEPS, [0.0, 0.4, 0.5, 0.5], "red"), Curve(STEPS, [0.0, 0.4, 0.6, 0.6], "blue")
    assert parts(one, other) == {number: [([(0.0, 0.0), (10.0, 0.4)], (0, 1))] for number in (0, 1)}
    third = Curve([20, 30], [0.6, 0.6], "green")
    assert parts(one, other, third)[1] == [
        ([(0.0, 0.0), (10.0, 0.4)], (0, 1)),
        ([(20.0, 0.6), (30.0, 0.6)], (1, 2)),
    ]


def test_curves_that_cross_or_lie_apart_share_nothing():
    assert parts(Curve(STEPS, [0, 1, 2, 3], "red"), Curve(STEPS, [3, 2, 1, 0], "blue")) == {}
    assert parts(Curve(STEPS, [0, 1, 2, 3], "red"), Curve(STEPS, [0.02, 1.02, 2.02, 3.02], "blue")) == {}
    assert parts(Curve([], [], "red"), Curve(STEPS, [0, 1, 2, 3], "blue")) == {}
    assert parts() == {}


def test_both_colors_are_seen_where_two_curves_are_the_same():
    same = plots.plot_sparsity(STEPS, {"a": [0.0, 0.4, 0.5, 0.5], "b": [0.0, 0.4, 0.5, 0.5]})
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert {blue, orange} <= colors_at(same, 21, 0.5)
    apart = plots.plot_sparsity(STEPS, {"a": [0.0, 0.4, 0.5, 0.5], "b": [0.0, 0.4, 0.6, 0.6]})
    assert blue in colors_at(apart, 21, 0.5)
    assert orange not in colors_at(apart, 21, 0.5)


@pytest.mark.parametrize("kind", ["tradeoff", "sensitivity"])
def test_curves_of_scores_mark_it_too(kind):
    scores = {0.5: 0.9, 0.75: 0.8, 0.9: 0.8}
    if kind == "tradeoff":
        figure = plots.plot_tradeoff({"a": scores, "b": {0.5: 0.9, 0.75: 0.8, 0.8: 0.8, 0.9: 0.8}}, dense=0.95)
    else:
        figure = plots.plot_sensitivity(list(scores), {one: [*scores.values()] for one in "ab"}, baseline=0.95)
    assert {(0, 114, 178), (213, 94, 0)} <= colors_at(figure, 0.24, 0.8)
    limits = figure.axes[0].get_ylim()
    assert limits[0] < 0.8 < 0.95 < limits[1]
