"""Figures and axes that belong to no window, their colours, and names and numbers as axes show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_prune.basics import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLORS",
    "GREY",
    "MARKERS",
    "MOST_LINES",
    "ORANGE",
    "PALE",
    "cycle",
    "letters",
    "new_figure",
    "new_grid",
    "no_ticks",
    "percent_ticks",
    "scale_by_density",
    "short_numbers",
    "shorten",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BLUE, ORANGE, GREY, PALE = "#0072B2", "#D55E00", "#9A9A9A", "#E7E2D6"
MOST_LINES = len(COLORS)  # of a figure; more could not be told apart


def new_figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; sizes in inches."""
    figure, (axes,) = new_grid(1, 1, width, height)
    return figure, axes


def new_grid(
    rows: int, columns: int, width: float | None = None, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in rows and columns, row by row; sizes in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
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


def scale_by_density(axes: Axes, sparsities: Sequence[float]) -> None:
    """An axis of densities, a logarithm, sparser to the right, with the sparsities written at it."""
    axes.set_xscale("log")
    axes.set_xlim(1.15 * (1 - sparsities[0]), 0.87 * (1 - sparsities[-1]))
    axes.set_xticks([1 - sparsity for sparsity in sparsities], [f"{100 * sparsity:g}%" for sparsity in sparsities])
    axes.xaxis.set_minor_locator(no_ticks())


def shorten(name: str, length: int = 34) -> str:
    """The end of a long name, which tells layers apart."""
    return letters(name if len(name) <= length else "…" + name[1 - length :])


def letters(name: str) -> str:
    """A name so that its letters are drawn: a $ would begin a formula, a leading _ keep it out of the legend."""
    text = printable(name).replace("\n", "\\n").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def cycle(values: Sequence[str]) -> Sequence[str]:
    """The values over and over, for more lines than a figure has."""
    return tuple(values) * 100


def percent_ticks() -> Any:
    """Ticks of fractions, written as percent."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def short_numbers() -> Any:
    """Ticks of counts, thousands as k."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")


def no_ticks() -> Any:
    """No ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()
