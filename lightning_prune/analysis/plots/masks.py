"""A mask as an image: which weights of a layer are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_prune.analysis.plots.figures import BLUE, GREY, ORANGE, PALE, new_figure, shorten
from lightning_prune.errors import ConfigError
from lightning_prune.pruner import describe_structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_mask"]

_MOST_WEIGHTS = 72  # of a mask image along one side; more would be finer than the eye can tell
_WEIGHT_PIXELS, _GAP_PIXELS = 4, 3


def plot_mask(tensor: Tensor, *, name: str = "", shape: tuple[int, ...] | None = None) -> Figure:
    """Draw which weights of a layer are kept: output channels downwards, input channels to the right.

    Kernels of a convolution are drawn as small tiles. Lines separate the blocks or the n:m groups that are found.

    Args:
        tensor: A mask (True is keep) or weights, rank 2 or more. A large tensor is cut to its first channels.
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
    figure, axes = new_figure(width=6.4, height=max(2.6, min(7.0, 1.5 + 5.0 * image.shape[0] / image.shape[1])))
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes.imshow(image, cmap=ListedColormap([PALE, BLUE, "white"]), vmin=0, vmax=2, interpolation="nearest")
    _draw_groups(axes, structure, cells, gap, limits)
    for set_ticks, cell, count, pixels in zip(
        (axes.set_yticks, axes.set_xticks), cells, limits, image.shape, strict=True
    ):
        _label_channels(set_ticks, cell, gap, count, most=max(2, 12 * pixels // max(image.shape)))
    axes.tick_params(labelsize=8)
    cut = "" if shown.shape == tiles.shape else f"; the first {shown.shape[0]} x {shown.shape[1]} channels"
    dimensions = " x ".join(map(str, full.shape))
    axes.set_title(
        f"{shorten(name, 48)}\n{structure}, {1 - float(full.float().mean()):.1%} zero", loc="left", fontsize=11
    )
    axes.set(xlabel="input channel", ylabel="output channel")
    figure.supxlabel(f"shape {dimensions}{cut}", fontsize=8, color="#555555", x=0.01, ha="left")
    figure.legend(
        handles=[Patch(color=BLUE, label="kept"), Patch(facecolor=PALE, edgecolor=GREY, label="pruned")],
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure


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
        draw(channel * cells[is_input] - (1 + gap) / 2, color=ORANGE, linewidth=1.2)


def _label_channels(set_ticks: Callable[..., Any], cell: int, gap: int, count: int, *, most: int) -> None:
    """Numbers of channels at the middle of their cells."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if count / step <= most)
    channels = range(0, count, step)
    set_ticks([channel * cell + (cell - gap - 1) / 2 for channel in channels], list(map(str, channels)))
