"""A mask as a small picture: a PNG of four colours, a pixel a weight."""

from __future__ import annotations

import struct
import zlib
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_prune.page.contents import MaskPicture

__all__ = ["draw_mask"]

MOST_PIXELS = 72  # along a side
# pruned, kept, and what lies between kernels: red, green, blue, and how far each covers what is behind it
_COLORS = ((128, 138, 150, 46), (0, 128, 200, 255), (0, 0, 0, 0))
_LINE = 2


def draw_mask(name: str, mask: Tensor, shape: tuple[int, ...]) -> MaskPicture:
    """Draw which weights of a layer are kept; a large mask is cut to its first channels.

    Args:
        name: The name of the parameter.
        mask: Keep-mask that broadcasts over the weight, rank 2 or more.
        shape: Shape of the weight.
    """
    rows, columns = (prod(shape[2:-1]), shape[-1]) if len(shape) > 2 else (1, 1)
    gap = 1 if rows * columns > 1 else 0
    outputs, inputs = (
        min(count, max(1, (MOST_PIXELS + gap) // (size + gap)))
        for count, size in zip(shape[:2], (rows, columns), strict=True)
    )
    part = mask.expand(shape)[:outputs, :inputs].detach().cpu() != 0
    kernels = part.reshape(outputs, inputs, rows, columns)[:, :, :MOST_PIXELS, :MOST_PIXELS].numpy()
    image = _tile(kernels, gap)
    return MaskPicture(name, tuple(shape), png_of(image), (image.shape[1], image.shape[0]), (outputs, inputs))


def _tile(kernels: NDArray[Any], gap: int) -> NDArray[np.uint8]:
    """One image of (outputs, inputs, rows, columns): 0 pruned, 1 kept, 2 the lines between kernels."""
    outputs, inputs, rows, columns = kernels.shape
    image = np.full((outputs, rows + gap, inputs, columns + gap), _LINE, np.uint8)
    image[:, :rows, :, :columns] = kernels.transpose(0, 2, 1, 3)
    whole = image.reshape(outputs * (rows + gap), inputs * (columns + gap))  # (height, width)
    return whole[: whole.shape[0] - gap, : whole.shape[1] - gap]


def png_of(image: NDArray[np.uint8]) -> bytes:
    """A PNG of two bits a pixel, whose values are the numbers of colours.

    References:
        Portable Network Graphics, third edition, https://www.w3.org/TR/png-3/
    """
    height, width = image.shape
    padded = np.zeros((height, -(-width // 4) * 4), np.uint8)
    padded[:, :width] = image
    fours = padded.reshape(height, -1, 4)
    packed = (fours[..., 0] << 6) | (fours[..., 1] << 4) | (fours[..., 2] << 2) | fours[..., 3]
    lines = np.hstack([np.zeros((height, 1), np.uint8), packed.astype(np.uint8)])  # each begins with its filter: none
    palette = bytes(value for color in _COLORS for value in color[:3])
    covers = bytes(color[3] for color in _COLORS)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 2, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", covers),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
