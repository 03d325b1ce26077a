"""Which weights stay: a mask from a weight and a sparsity.

Every function here is pure. A group is what is zeroed as one: a scalar, a kernel, a channel, or a block of
``block_size`` of them that follow each other along the output channels. Groups are ranked by their L2 norm, and the
smallest are pruned. In n:m sparsity the ranking is within every ``group_size`` channels instead, and ``num_zeros`` of
them are pruned.
"""

from __future__ import annotations

from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_prune.basics import as_fraction, as_whole
from lightning_prune.errors import ConfigError
from lightning_prune.masks.blocks import keep_blocks
from lightning_prune.masks.selection import (
    keep_largest,
    keep_largest_of_shards_in_rounds,
    mask_to_write,
    pruned_count,
)
from lightning_prune.masks.shards import bring_back, part_for
from lightning_prune.sharding import Rounds, Sharding, add_up, alone

__all__ = [
    "Granularity",
    "keep_groups",
    "magnitude_mask",
    "mask_shape",
    "zero_groups",
]

Granularity: TypeAlias = Literal["per_scalar", "per_kernel", "per_channel"]


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
    dims = _group_dims(len(shape), granularity)
    return tuple(shape[:dims]) + (1,) * (len(shape) - dims)


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
        out: Bool mask of shape :func:`mask_shape` to write in place. If not given, a new mask.

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
        >>> import torch
        >>> magnitude_mask(torch.tensor([[0.3, -0.2], [-0.01, 0.05]]), 0.75).int().tolist()
        [[1, 0], [0, 0]]
    """
    weight = weight.detach()
    block_size, sparsity = as_whole("block_size", block_size, least=1), as_fraction("sparsity", sparsity)
    out = mask_to_write(weight, mask_shape(tuple(weight.shape), granularity=granularity), out)
    alone(keep_groups(weight, sparsity, Sharding.of_one(weight.shape), granularity, block_size, out))
    return out


def keep_groups(
    values: Tensor, sparsity: float, sharding: Sharding, granularity: Granularity, block_size: int, out: Tensor
) -> Rounds[None]:
    """Write the mask that :func:`magnitude_mask` gives, or this process's part of it.

    Args:
        values: The weight, or this process's piece of it, of the shape of ``sharding.box``.
        sparsity: Fraction of groups to prune, in [0, 1].
        sharding: Who holds what; every process that holds a piece must run this.
        granularity: What is zeroed as one.
        block_size: Output channels that are pruned together.
        out: The mask, or this process's part of it, bool, written in place.

    Raises:
        PruningError: A piece of any process holds NaN; raised in every process, and ``out`` is unchanged.
    """
    shape = mask_shape(sharding.shape, granularity=granularity)
    groups, weights = prod(shape), prod(sharding.shape)
    pruned = pruned_count(groups, sparsity)
    if pruned in (0, groups) or not weights:
        out.fill_(pruned < groups)
    elif block_size == 1 and groups == weights:
        if sharding.is_whole:
            keep_largest(values, pruned, out=out)
        else:
            shard = sharding.shard(values, sharding.boxes, sharding.shape)
            yield from keep_largest_of_shards_in_rounds([shard], pruned, out=[out])
    else:
        block_size = min(block_size, sharding.shape[0])
        dims = _group_dims(values.ndim, granularity)
        boxes = sharding.aligned(_multiples(sharding.shape, dims, block_size))
        shard = sharding.shard(sharding.exchange(values, sharding.boxes, boxes), boxes, sharding.shape)
        mask = part_for(out, boxes, sharding, shape)
        lengths = shard.values.shape[:dims]
        yield from keep_blocks(shard, block_size, pruned, mask.view(lengths), is_whole=sharding.is_whole)
        bring_back(mask, boxes, sharding, shape, out)


def zero_groups(
    values: Tensor, sharding: Sharding, granularity: Granularity, block_size: int
) -> Rounds[tuple[int, int]]:
    """Count the groups of a weight that are zero, and all of them; arguments as for :func:`keep_groups`.

    The groups of a block count only where all of the block is zero.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
        >>> alone(zero_groups(weight, Sharding.of_one(weight.shape), "per_scalar", 2))
        (4, 6)
    """
    dims = _group_dims(values.ndim, granularity)
    piece = sharding.exchange(values, sharding.boxes, sharding.aligned(_multiples(sharding.shape, dims, block_size)))
    is_zero = piece == 0
    is_zero = is_zero.flatten(dims).all(-1) if dims < is_zero.ndim else is_zero
    if block_size == 1:
        zeros = int(is_zero.count_nonzero())
    else:
        blocks = torch.split(is_zero, block_size) if len(is_zero) else ()
        zeros = sum(int(block.all(0).sum()) * len(block) for block in blocks)
    (total,) = yield from add_up([zeros], values.device)
    return total, prod(mask_shape(sharding.shape, granularity=granularity))


def _group_dims(rank: int, granularity: Granularity) -> int:
    """How many leading dimensions tell the groups apart; the others lie within a group."""
    dims = {"per_scalar": rank, "per_kernel": 2, "per_channel": 1}.get(granularity)
    if dims is None:
        raise ConfigError(f"granularity must be per_scalar, per_kernel or per_channel, got {granularity!r}.")
    if granularity != "per_scalar" and rank < 2:
        raise ConfigError(f"granularity {granularity} needs a weight of shape (C_out, C_in, *K), got rank {rank}.")
    return dims


def _multiples(shape: tuple[int, ...], dims: int, block_size: int) -> tuple[int, ...]:
    """Where a weight may be cut: between blocks of rows, and not within a group."""
    return (block_size, *(size if place >= dims else 1 for place, size in enumerate(shape) if place))
