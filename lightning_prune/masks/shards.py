"""Masks of weights that several processes hold in pieces: bit for bit those that one process would compute.

Each process computes the part of the mask that belongs to its piece. Ranked are its own weights or blocks; what the
processes tell each other are counts, and the few rows of a block or an n:m group that a cut goes through.
"""

from __future__ import annotations

from math import inf, prod

import torch
from torch import Tensor

from lightning_prune.masks.blocks import TINY, block_scores, missing_blocks
from lightning_prune.masks.compute import Granularity, group_dims, mask_shape
from lightning_prune.masks.n_m import n_m_mask
from lightning_prune.masks.selection import holds_nan, keep_largest_of_shards_in_rounds, nan_error, pruned_count
from lightning_prune.sharding import Box, Rounds, Shard, Sharding, alone

__all__ = [
    "gather_state",
    "keep_shard_groups",
    "keep_shard_n_m",
    "shard_zero_groups",
    "whole_rows",
    "zero_groups",
]


def keep_shard_groups(
    values: Tensor, sparsity: float, sharding: Sharding, granularity: Granularity, block_size: int, out: Tensor
) -> Rounds[None]:
    """:func:`~lightning_prune.masks.magnitude_mask` of this process's piece; every process that holds one must run it.

    Args:
        values: This process's piece of the weight, of the shape of ``sharding.box``.
        sparsity: Fraction of groups to prune, in [0, 1].
        sharding: Who holds what.
        granularity: What is zeroed as one.
        block_size: Output channels that are pruned together.
        out: This process's part of the mask, bool, written in place.

    Raises:
        PruningError: A piece of any process holds NaN; raised in every process, and ``out`` is unchanged.
    """
    shape = mask_shape(sharding.shape, granularity=granularity)
    pruned = pruned_count(prod(shape), sparsity)
    if pruned in (0, prod(shape)):
        out.fill_(pruned == 0)
    elif block_size == 1 and prod(shape) == prod(sharding.shape):
        shard = sharding.shard(values, sharding.boxes, sharding.shape)
        yield from keep_largest_of_shards_in_rounds([shard], pruned, out=[out])
    else:
        block_size = min(block_size, sharding.shape[0])
        dims = group_dims(values.ndim, granularity)
        boxes = sharding.aligned(_multiples(sharding.shape, dims, block_size))
        piece = sharding.exchange(values, sharding.boxes, boxes)
        mask = yield from _keep_blocks(piece, boxes, sharding, block_size, dims, pruned)
        _bring_back(mask, boxes, sharding, shape, out)


def keep_shard_n_m(
    values: Tensor, num_zeros: int, group_size: int, dim: int, sharding: Sharding, out: Tensor
) -> Rounds[None]:
    """:func:`~lightning_prune.masks.n_m_mask` of this process's piece; arguments as for :func:`keep_shard_groups`."""
    multiples = tuple(group_size if place == dim else 1 for place in range(values.ndim))
    if (yield from _add_up(values, [int(holds_nan(values))]))[0]:
        raise nan_error()
    boxes = sharding.aligned(multiples)
    piece = sharding.exchange(values, sharding.boxes, boxes)
    mask = n_m_mask(piece, num_zeros, group_size, dim=dim) if piece.numel() else piece.bool()
    _bring_back(mask, boxes, sharding, sharding.shape, out)


def zero_groups(values: Tensor, *, granularity: Granularity, block_size: int) -> int:
    """Number of groups of a weight that are zero; those of a block count only where all of the block is.

    Example:
        >>> zero_groups(torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), granularity="per_scalar", block_size=2)
        4
    """
    dims = group_dims(values.ndim, granularity)
    zero = values == 0
    zero = zero.flatten(dims).all(-1) if dims < zero.ndim else zero
    if block_size == 1:
        return int(zero.count_nonzero())
    return sum(int(block.all(0).sum()) * len(block) for block in torch.split(zero, block_size) if len(block))


def shard_zero_groups(
    values: Tensor, sharding: Sharding, granularity: Granularity, block_size: int
) -> Rounds[tuple[int, int]]:
    """:func:`zero_groups` of a sharded weight, and the number of all groups; every process must run it."""
    dims = group_dims(values.ndim, granularity)
    boxes = sharding.aligned(_multiples(sharding.shape, dims, block_size))
    piece = sharding.exchange(values, sharding.boxes, boxes)
    zeros = zero_groups(piece, granularity=granularity, block_size=block_size)
    (total,) = yield from _add_up(values, [zeros])
    return total, prod(mask_shape(sharding.shape, granularity=granularity))


def gather_state(
    mask: Tensor, pruned: Tensor | None, weight: Tensor, sharding: Sharding, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | None] | None:
    """Bring a mask and what it prunes to the first process, in the memory of its CPU.

    Args:
        mask: This process's part of the mask, bool.
        pruned: Dense values where it is False, in its order; None if they are forgotten or all zero.
        weight: This process's part of the weight, for its shape, dtype and device.
        sharding: Who holds what.
        shape: Shape of the whole mask.

    Returns:
        The same of the whole weight, the mask as bytes; None in all processes but the first.
    """
    rows = [one.cpu() for one in sharding.gather(mask, shape) if one is not None]
    has_values = alone(_add_up(weight, [int(pruned is not None)]), sharding.sum)[0] > 0
    stash = torch.zeros_like(weight)
    if pruned is not None:
        stash[~mask.expand(weight.shape)] = pruned
    whole = torch.cat(rows) if rows else mask
    values: list[Tensor] = []
    start = 0
    for piece in sharding.gather(stash) if has_values else ():
        if piece is not None:
            stop = start + len(piece)
            values.append(piece.cpu()[~whole[start:stop].expand(piece.shape)])
            start = stop
    if not sharding.is_first:
        return None
    return whole.view(torch.uint8), torch.cat(values) if has_values else None


def whole_rows(mask: Tensor, sharding: Sharding, shape: tuple[int, ...], multiple: int) -> Tensor:
    """This process's share of a mask, cut only between rows, and there only at multiples of ``multiple``.

    Args:
        mask: This process's part of the mask, bool.
        sharding: Who holds what of the weight.
        shape: Shape of the whole mask.
        multiple: Rows that stay together.
    """
    boxes = sharding.aligned((multiple, *sharding.shape[1:]))
    held = [box.narrowed(shape) for box in sharding.boxes]
    return sharding.exchange(mask, held, [box.narrowed(shape) for box in boxes])


def _add_up(like: Tensor, counts: list[int]) -> Rounds[list[int]]:
    sums = yield torch.tensor(counts, dtype=torch.int64, device=like.device)
    return [int(count) for count in sums]


def _multiples(shape: tuple[int, ...], dims: int, block_size: int) -> tuple[int, ...]:
    """Where a weight may be cut: between blocks of rows, and not within a group."""
    return (block_size, *(size if place >= dims else 1 for place, size in enumerate(shape) if place))


def _bring_back(mask: Tensor, boxes: tuple[Box, ...], sharding: Sharding, shape: tuple[int, ...], out: Tensor) -> None:
    """Bring the parts of a mask, computed where no group is cut, to where they belong."""
    held, wanted = ([box.narrowed(shape) for box in some] for some in (boxes, sharding.boxes))
    out.copy_(sharding.exchange(mask, held, wanted))


def _keep_blocks(
    piece: Tensor, boxes: tuple[Box, ...], sharding: Sharding, block_size: int, dims: int, pruned: int
) -> Rounds[Tensor]:
    """The mask of this process's blocks, with length 1 in the dimensions within a group."""
    rows, groups = sharding.shape[0], sharding.shape[1:dims]
    shape = (-(-rows // block_size), *groups)
    keep = rows * prod(groups) - pruned
    short = rows % block_size or block_size
    scores = _scores(piece, block_size, dims, torch.promote_types(piece.dtype, torch.float32))
    if scores.dtype is torch.float32:
        overflown, sound = yield from _add_up(piece, [int((scores == inf).sum()), int((scores >= TINY).sum())])
        if overflown or sound < min(-(-keep // short), prod(shape)):
            scores = _scores(piece, block_size, dims, torch.float64)
    start = boxes[sharding.me].start
    shard = Shard(scores, shape, (start[0] // block_size, *start[1:dims]))
    has_last = len(piece) > 0 and start[0] + len(piece) == rows
    count = -(-keep // block_size)
    while True:
        (blocks,) = yield from keep_largest_of_shards_in_rounds([shard], prod(shape) - count)
        if short == block_size:
            break
        (in_last,) = yield from _add_up(piece, [int(blocks[-1].sum()) if has_last else 0])
        more = missing_blocks(keep, count, block_size, short, in_last)
        if not more:
            break
        count += more
    mask = blocks.repeat_interleave(block_size, 0)[: len(piece)]
    return mask.reshape(*mask.shape, *(1 for _ in range(piece.ndim - dims)))


def _scores(piece: Tensor, block_size: int, dims: int, dtype: torch.dtype) -> Tensor:
    if piece.numel() == 0:
        return piece.new_empty((-(-piece.shape[0] // block_size), *piece.shape[1:dims]), dtype=dtype)
    return block_scores(piece, block_size, dims, dtype)
