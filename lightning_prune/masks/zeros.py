"""Counts of zeros in a tensor, and of the structures that are all zero.

Each function takes weights or a mask (zero, or False, is pruned). A mask may be smaller than the weight that it
broadcasts over; ``shape`` then is the shape of the weight, ``(C_out, C_in, *K)``, and counts are those of the weight.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ZeroCounts",
    "count_zeros",
    "n_m_groups",
    "zero_blocks",
    "zero_channels",
    "zero_counts",
    "zero_kernels",
]

# Mask bytes that are looked at several times while they are in the cache.
_CHUNK = 2**19


class ZeroCounts(NamedTuple):
    """What is zero in one tensor.

    Attributes:
        weights: Zero weights.
        channels: Output channels that are all zero.
        pairs: Pairs of weights, at one position in output channels ``2 * k`` and ``2 * k + 1``, that are both zero;
            None where the number of channels is odd.
    """

    weights: int
    channels: int
    pairs: int | None


def zero_counts(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> ZeroCounts:
    """All that a report counts, in one sweep over memory, since it is memory that the time goes to.

    Example:
        >>> import torch
        >>> zero_counts(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]))
        ZeroCounts(weights=9, channels=1, pairs=3)
    """
    flags = _flags(_full(tensor, shape, 1))
    rows = flags.reshape(flags.shape[0], -1)
    length = max(1, rows.shape[1])
    is_paired = rows.shape[0] % 2 == 0
    weights = channels = pairs = 0
    step = max(2, rows.shape[0] if isinstance(rows, Tensor) else _CHUNK // length // 2 * 2)
    for start in range(0, rows.shape[0], step):
        piece = rows[start : start + step]
        weights += piece.shape[0] * length - _count(piece)
        channels += piece.shape[0] - _count(piece.any(1))
        if is_paired:
            pairs += piece.shape[0] // 2 * length - _count(piece[::2] | piece[1::2])
    repeats = 1 if shape is None else prod(shape) // max(rows.shape[0] * length, 1)
    return ZeroCounts(weights * repeats, channels, pairs * repeats if is_paired else None)


def count_zeros(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int:
    """Number of zero weights.

    Example:
        >>> import torch
        >>> count_zeros(torch.tensor([[True], [False]]), shape=(2, 3))
        3
    """
    repeats = 1 if shape is None else prod(shape) // max(tensor.numel(), 1)
    return (tensor.numel() - _count(_flags(tensor))) * repeats


def zero_channels(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int:
    """Number of output channels (dim 0) that are all zero."""
    flags = _flags(_full(tensor, shape, 1))
    return int(flags.shape[0]) - _count(flags.reshape(flags.shape[0], -1).any(1))


def zero_kernels(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int | None:
    """Number of all-zero kernels, one for each pair of channels; None below rank 3, where there are none."""
    if tensor.ndim < 3:
        return None
    flags = _flags(_full(tensor, shape, 2))
    kernels = flags.reshape(flags.shape[0] * flags.shape[1], -1).any(1)
    return int(kernels.shape[0]) - _count(kernels)


def zero_blocks(tensor: Tensor, block_size: int, *, shape: tuple[int, ...] | None = None) -> int | None:
    """Number of all-zero blocks: weights at one position in ``block_size`` consecutive output channels.

    Args:
        tensor: Weights or mask. A weight has ``numel / block_size`` blocks.
        block_size: Output channels of a block; channels ``0 ... block_size - 1`` are the first.
        shape: Shape of the weight.

    Returns:
        The number; None where ``C_out`` is no multiple of ``block_size``.

    Example:
        >>> import torch
        >>> zero_blocks(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), 2)
        1
    """
    full = _full(tensor, shape, 1)
    if full.shape[0] % block_size:
        return None
    repeats = 1 if shape is None else prod(shape) // max(full.numel(), 1)
    rows = _nonzero(full).reshape(full.shape[0] // block_size, block_size, -1)
    blocks = rows[:, 0]
    for place in range(1, block_size):
        blocks = blocks | rows[:, place]
    return (blocks.numel() - _count(_flags(blocks))) * repeats


def n_m_groups(
    tensor: Tensor, num_zeros: int, group_size: int, *, dim: int = 1, shape: tuple[int, ...] | None = None
) -> tuple[int, int]:
    """Groups of ``group_size`` weights along ``dim`` with at least ``num_zeros`` zeros, and groups in all.

    A short last group counts as if it were filled up with zeros.

    Example:
        >>> import torch
        >>> n_m_groups(torch.tensor([[0.0, 1.0, 0.0, 2.0, 3.0, 4.0, 0.0, 5.0]]), 2, 4)
        (1, 2)
    """
    tensor = tensor if shape is None else tensor.expand(shape)
    zeros = (tensor == 0).movedim(dim, -1)
    pad = -zeros.shape[-1] % group_size
    padded = zeros.new_ones((*zeros.shape[:-1], zeros.shape[-1] + pad))
    padded[..., : zeros.shape[-1]] = zeros
    adherent = padded.unflatten(-1, (-1, group_size)).sum(-1) >= num_zeros  # type: ignore[no-untyped-call]
    return _count(_flags(adherent)), adherent.numel()


def _full(tensor: Tensor, shape: tuple[int, ...] | None, rank: int) -> Tensor:
    """The tensor at full size in its first ``rank`` dimensions; the others may stay 1."""
    if shape is None or tensor.shape[:rank] == shape[:rank]:
        return tensor
    return tensor.expand(shape[:rank] + tuple(tensor.shape[rank:]))


def _nonzero(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dtype is torch.bool else tensor.detach() != 0


def _flags(tensor: Tensor) -> Any:
    """Which elements are not zero; on the CPU as a NumPy array, which is counted several times as fast."""
    flags = _nonzero(tensor)
    return flags.numpy() if flags.device.type == "cpu" else flags


def _count(flags: Any) -> int:
    return int(flags.count_nonzero()) if isinstance(flags, Tensor) else int(np.count_nonzero(flags))
