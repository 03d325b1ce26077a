"""Which weights stay: a mask from a weight and a sparsity.

Every function here is pure. A group is what is zeroed as one: a scalar, a kernel, a channel, or a block of
``block_size`` of them that follow each other along the output channels. Groups are ranked by their L2 norm, and the
smallest are pruned. In n:m sparsity the ranking is within every ``group_size`` channels instead, and ``num_zeros`` of
them are pruned.
"""

from math import inf, prod
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.magnitudes import mark_changed, mask_to_write
from lightning_prune.n_m import n_m_mask
from lightning_prune.selection import keep_largest, pruned_count

__all__ = [
    "TINY",
    "Granularity",
    "block_scores",
    "compute_mask",
    "group_dims",
    "magnitude_mask",
    "mask_shape",
    "n_m_mask",
]

Granularity: TypeAlias = Literal["per_scalar", "per_kernel", "per_channel"]

# Weights converted to another dtype at a time.
_CHUNK = 2**17
# A sum of squares below this has lost bits to underflow, in float32.
TINY = 2.0**-100


def mask_shape(shape: tuple[int, ...], *, granularity: Granularity = "per_scalar") -> tuple[int, ...]:
    """The smallest shape of a mask that broadcasts over a weight.

    Args:
        shape: Shape of the weight, ``(C_out, C_in, *K)``.
        granularity: What is zeroed as one.

    Returns:
        ``shape``, ``(C_out, C_in, 1, ...)`` or ``(C_out, 1, 1, ...)``.

    Raises:
        ConfigError: The weight has no such groups: kernels and channels take at least two dimensions.

    Example:
        >>> mask_shape((64, 32, 3, 3), granularity="per_kernel")
        (64, 32, 1, 1)
    """
    dims = group_dims(len(shape), granularity)
    return tuple(shape[:dims]) + (1,) * (len(shape) - dims)


def compute_mask(
    weight: Tensor,
    sparsity: float,
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    n_m_ratio: tuple[int, int] | None = None,
    dim: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """The mask of one weight at one sparsity, by any of the rules.

    Args:
        weight: Shape ``(C_out, C_in, *K)``. Not modified.
        sparsity: Fraction of zeros, in ``[0, 1]``.
        granularity: As in :func:`magnitude_mask`.
        block_size: As in :func:`magnitude_mask`.
        n_m_ratio: ``(n, m)`` for n:m sparsity; only ``m`` is read. ``floor(m * sparsity)`` of every ``m`` weights are
            zero, and as long as that is none, the smallest weights of the whole tensor are pruned.
        dim: As in :func:`n_m_mask`.
        out: As in :func:`magnitude_mask`.

    Returns:
        Bool mask, ``True`` = keep.

    Example:
        >>> weight = torch.tensor([[3.0, 1.0, 2.0, 4.0]])
        >>> [compute_mask(weight, sparsity, n_m_ratio=(2, 4)).int().tolist() for sparsity in (0.2, 0.25, 0.5)]
        [[[1, 1, 1, 1]], [[1, 0, 1, 1]], [[1, 0, 0, 1]]]
    """
    if n_m_ratio is None:
        return magnitude_mask(weight, sparsity, granularity=granularity, block_size=block_size, out=out)
    group_size = n_m_ratio[1]
    num_zeros = pruned_count(group_size, _fraction(sparsity))
    if num_zeros == 0:
        return magnitude_mask(weight, sparsity, out=out)
    return n_m_mask(weight, num_zeros, group_size, dim=dim, out=out)


def magnitude_mask(
    weight: Tensor,
    sparsity: float,
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Keep the groups of weights that are largest in L2 norm.

    Single weights are compared exactly. Norms are summed in float32, in float64 where the squares would overflow or
    vanish in it, and for a float64 weight: groups whose norms differ by no more than rounding may rank either way.

    Args:
        weight: Shape ``(C_out, C_in, *K)``, any floating dtype and memory format. Not modified.
        sparsity: Fraction of groups to prune, in ``[0, 1]``.
        granularity: The group: one scalar, one ``K`` kernel, or one output channel.
        block_size: Groups, consecutive along the output channels, that are pruned together. A short last block is
            scored as it is.
        out: Bool mask of shape :func:`mask_shape` to write in place. If not given, a new one.

    Returns:
        Bool mask, ``True`` = keep, on the device of ``weight`` and broadcastable to its shape.
        Exactly ``floor(groups * sparsity)`` groups are pruned; among equal norms the first in row-major order is kept.
        With ``block_size`` above 1, the fewest whole blocks are kept that leave at least the other groups.

    Raises:
        ConfigError: ``sparsity`` is outside ``[0, 1]``, or ``block_size`` below 1.
        PruningError: ``weight`` holds NaN, and some but not all groups are to be pruned; ``out`` is then unchanged.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878

    Example:
        >>> magnitude_mask(torch.tensor([[0.3, -0.2], [-0.01, 0.05]]), 0.75).int().tolist()
        [[1, 0], [0, 0]]
    """
    weight = weight.detach()
    shape = mask_shape(tuple(weight.shape), granularity=granularity)
    if block_size < 1:
        raise ConfigError(f"block_size must be at least 1, got {block_size}.")
    pruned = pruned_count(prod(shape), _fraction(sparsity))
    out = mask_to_write(weight, shape, out)
    if pruned in (0, prod(shape)):
        return out.fill_(pruned == 0)
    if block_size == 1 and prod(shape) == weight.numel():
        return keep_largest(weight, pruned, out=out)
    dims = group_dims(weight.ndim, granularity)
    _keep_blocks(weight, min(block_size, shape[0]), pruned, out[(...,) + (0,) * (weight.ndim - dims)])
    return out


def _fraction(sparsity: float) -> float:
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(f"sparsity must be a fraction in [0, 1], got {sparsity}.")
    return sparsity


def group_dims(rank: int, granularity: Granularity) -> int:
    """How many leading dimensions tell the groups apart; the others lie within a group."""
    dims = {"per_scalar": rank, "per_kernel": 2, "per_channel": 1}.get(granularity)
    if dims is None:
        raise ConfigError(f"granularity must be per_scalar, per_kernel or per_channel, got {granularity!r}.")
    if granularity != "per_scalar" and rank < 2:
        raise ConfigError(f"granularity {granularity} needs a weight of shape (C_out, C_in, *K), got rank {rank}.")
    return dims


def _keep_blocks(weight: Tensor, block_size: int, pruned: int, out: Tensor) -> None:
    """Write the mask of groups that are pruned in blocks, to ``out`` of shape ``(C_out, *groups)``."""
    keep = out.numel() - pruned
    rows = out.shape[0]
    short = rows % block_size or block_size
    scores = block_scores(weight, block_size, out.ndim, torch.promote_types(weight.dtype, torch.float32))
    if scores.dtype is torch.float32 and _out_of_range(scores, -(-keep // short)):
        # The squares of float32 magnitudes neither overflow nor vanish in float64.
        scores = block_scores(weight, block_size, out.ndim, torch.float64)
    count = -(-keep // block_size)
    if block_size == 1:
        keep_largest(scores, scores.numel() - count, out=out)
        return
    blocks = keep_largest(scores, scores.numel() - count)
    # Each block kept covers block_size groups, but one of the last row covers fewer: then more blocks are needed.
    while short < block_size:
        missing = keep - count * block_size + (block_size - short) * int(blocks[-1].count_nonzero())
        if missing <= 0:
            break
        count += -(-missing // block_size)
        keep_largest(scores, scores.numel() - count, out=blocks)
    full = rows // block_size
    for target, source in (
        (torch.unflatten(out[: full * block_size], 0, (full, block_size)), blocks[:full].unsqueeze(1)),
        (out[full * block_size :], blocks[full:]),
    ):
        if out.device.type == "cpu":
            np.copyto(target.numpy(), source.numpy())
        else:
            target.copy_(source)
    mark_changed([out])


def _out_of_range(scores: Tensor, keep: int) -> bool:
    """Whether scores have overflowed, or the ``keep`` largest reach into those that underflow has touched."""
    # NumPy reads faster than PyTorch, and waits for no other thread.
    ends = (scores.numpy().min(), scores.numpy().max()) if scores.device.type == "cpu" else scores.aminmax()
    smallest, largest = map(float, ends)
    return largest == inf or (smallest < TINY and int((scores >= TINY).count_nonzero()) < keep)


def block_scores(weight: Tensor, block_size: int, dims: int, dtype: torch.dtype) -> Tensor:
    """Squared L2 norm of each block, ``(ceil(C_out / block_size), *groups)``, with ``dims`` dimensions."""
    rows = weight.shape[0]
    group = weight[(slice(-(-rows // block_size)), ...) + (0,) * (weight.ndim - dims)]
    scores = torch.empty_like(group, dtype=dtype)
    full = rows // block_size * block_size
    step = full
    if weight.dtype is not dtype:
        # Converted a piece at a time, so that no second copy of the weight is held.
        step = max(1, _CHUNK * rows // weight.numel() // block_size) * block_size
    for start in [*range(0, full, step or 1), *range(full, rows, block_size)]:
        piece = weight[start : min(start + step, full) if start < full else rows].to(dtype)
        members = torch.unflatten(piece, 0, (-1, min(block_size, piece.shape[0])))
        first = start // block_size
        _sum_squares(members, dims, scores[first : first + members.shape[0]])
    return scores


def _sum_squares(members: Tensor, dims: int, out: Tensor) -> None:
    """Sum squares over dimension 1 and all from ``dims + 1`` on; write to ``out``."""
    inside = (1, *range(dims + 1, members.ndim))
    if members.device.type != "cpu":
        torch.linalg.vector_norm(members, dim=inside, out=out)
        out.square_()
        return
    values = members.numpy()
    if dims == 1:
        order: list[int] = sorted(range(values.ndim), key=lambda dim: -values.strides[dim])
        rows = values.transpose(order)
        if rows.flags.c_contiguous and rows.shape[0] == len(out):
            rows = rows.reshape(len(out), -1)
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinities and NaN
                np.matmul(rows[:, None, :], rows[:, :, None], out=out.numpy()[:, None, None])  # a dot product a row
            return
    axes = list(range(members.ndim))
    # NumPy's sum takes an eighth of the time of PyTorch's where a group is not one run of memory.
    np.einsum(values, axes, values, axes, [0, *range(2, dims + 1)], out=out.numpy())
