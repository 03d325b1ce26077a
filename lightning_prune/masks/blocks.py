"""Which blocks stay: as few whole blocks as leave the groups that are asked for, those of the largest L2 norm."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_prune.masks.norms import rank_blocks
from lightning_prune.masks.selection import mark_changed
from lightning_prune.sharding import Rounds, Shard, add_up

__all__ = ["keep_blocks"]


def keep_blocks(shard: Shard, block_size: int, pruned: int, out: Tensor, *, is_whole: bool) -> Rounds[None]:
    """Write the mask of groups that are pruned in blocks.

    Args:
        shard: The weight, ``(C_out, *groups, *inside)``, or this process's part of it, cut between blocks.
        block_size: From 1 to ``C_out``.
        pruned: Number of groups to prune, from 1 to all but one. The fewest whole blocks are kept that leave at least
            the other groups.
        out: Bool mask to write, of shape ``(C_out, *groups)``, or this process's part of it.
        is_whole: Whether no other process holds a part.

    Raises:
        PruningError: The weight holds NaN; in every process, and ``out`` is unchanged.
    """
    rows = shard.shape[0]
    keep = prod(shard.shape[: out.ndim]) - pruned
    short = rows % block_size or block_size
    count = -(-keep // block_size)
    ranking = yield from rank_blocks(shard, block_size, out.ndim, -(-keep // short), is_whole=is_whole)
    if block_size == 1:
        yield from ranking.keep(count, out)
        return
    blocks = torch.empty(-(-len(out) // block_size), *out.shape[1:], dtype=torch.bool, device=out.device)
    yield from ranking.keep(count, blocks)
    has_last = len(out) > 0 and shard.offset[0] + len(out) == rows
    while short < block_size:
        in_last = int(blocks[-1].count_nonzero()) if has_last else 0
        if not is_whole:
            (in_last,) = yield from add_up([in_last], out.device)
        more = _missing_blocks(keep, count, block_size, short, in_last)
        if not more:
            break
        count += more
        yield from ranking.keep(count, blocks)
    _repeat_rows(blocks, block_size, out)


def _missing_blocks(keep: int, count: int, block_size: int, short: int, in_last: int) -> int:
    """How many more blocks are to be kept: a block covers ``block_size`` groups, but fewer in the last row.

    Args:
        keep: Groups that are to be kept at least.
        count: Blocks that are kept so far.
        block_size: Groups in a block.
        short: Groups in a block of the last row.
        in_last: Blocks of the last row among those that are kept.

    Example:
        >>> _missing_blocks(10, 3, 4, 1, 1)
        1
    """
    return max(0, -(-(keep - count * block_size + (block_size - short) * in_last) // block_size))


def _repeat_rows(blocks: Tensor, block_size: int, out: Tensor) -> None:
    """Write each row of ``blocks`` to ``block_size`` rows of ``out``; the last to those that are left."""
    full = len(out) // block_size
    target: Any
    source: Any
    # NumPy copies many times as fast as PyTorch does.
    target, source = (out.numpy(), blocks.numpy()) if out.device.type == "cpu" else (out, blocks)
    target[: full * block_size].reshape(full, block_size, *out.shape[1:])[:] = source[:full, None]
    target[full * block_size :] = source[full:]
    mark_changed([out])
