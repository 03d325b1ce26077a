"""Norms of blocks, and which of them are the largest.

A block is a group of weights, or ``block_size`` groups that follow each other along the output channels. Where norms
would take more memory than a byte a weight, only the first half of the bits of each is held. That ranks all but the
few that share it with the smallest that stays, and the norms of these are summed again; where these are not few, those
of all blocks are. Of a weight that several processes hold, each ranks the blocks that lie in it, and they tell each
other counts.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import inf, isnan, prod

import numpy as np
import torch
from torch import Tensor

from lightning_prune.masks.selection import (
    FEW,
    Array,
    keep_largest,
    keep_largest_of_shards_in_rounds,
    kth_largest,
    largest_of_few,
    mark_changed,
    nan_error,
)
from lightning_prune.sharding import Rounds, Shard, add_up

__all__ = ["Ranking", "block_scores", "rank_blocks"]

# Weights handled at a time where they are converted, or their norms are shortened.
_CHUNK = 2**19
# Whole norms are kept if they take no more than this and a byte a weight.
_SPARE_BYTES = 2**20
# OpenBLAS shares longer dot products out to threads, and waits for each: up to a second where cores are busy.
_DOT = 2**13
# A sum of squares below this has lost bits to underflow, in float32.
_TINY = 2.0**-100


class Ranking(ABC):
    """Blocks of a weight, ranked by their norms."""

    @abstractmethod
    def is_out_of_range(self, needed: int) -> Rounds[bool]:
        """Whether a sum has overflowed, or the ``needed`` largest reach into what underflow has touched.

        Raises:
            PruningError: A norm is NaN.
        """

    @abstractmethod
    def keep(self, count: int, out: Tensor) -> Rounds[None]:
        """Write which blocks are among the ``count`` largest; of equal ones the first in row-major order are."""


def rank_blocks(shard: Shard, block_size: int, dims: int, needed: int, *, is_whole: bool) -> Rounds[Ranking]:
    """Rank blocks by sums of squares in float32, or in float64 where they would overflow there, or vanish.

    Args:
        shard: The weight, ``(C_out, *groups, *inside)``, or this process's part of it, cut between blocks.
        block_size: Output channels in a block.
        dims: Dimensions that tell groups apart.
        needed: The most blocks that are kept.
        is_whole: Whether no other process holds a part.

    Raises:
        PruningError: The weight holds NaN, and no other process holds a part of it; :meth:`Ranking.keep` raises it
            otherwise.
    """
    weight = shard.values
    dtype = torch.promote_types(weight.dtype, torch.float32)
    blocks = -(-weight.shape[0] // block_size) * prod(weight.shape[1:dims])
    is_heavy = blocks * dtype.itemsize > weight.numel() + _SPARE_BYTES
    ranking: Ranking
    if not is_whole:
        ranking = _ShardNorms(shard, block_size, dims, dtype)
    elif is_heavy and dtype is torch.float32 and weight.device.type == "cpu":
        ranking = _HalfNorms(weight, block_size, dims)
    else:
        ranking = _Norms(weight, block_size, dims, dtype)
    if (yield from ranking.is_out_of_range(needed)) and dtype is torch.float32:
        if is_whole:
            return _Norms(weight, block_size, dims, torch.float64)
        return _ShardNorms(shard, block_size, dims, torch.float64)
    return ranking


def block_scores(weight: Tensor, block_size: int, dims: int, dtype: torch.dtype) -> Tensor:
    """Squared L2 norm of each block, ``(ceil(C_out / block_size), *groups)``, with ``dims`` dimensions."""
    if not weight.numel():  # a process may hold nothing
        return weight.new_empty((-(-weight.shape[0] // block_size), *weight.shape[1:dims]), dtype=dtype)
    count = -(-weight.shape[0] // block_size)
    if dims == weight.ndim:  # laid out in memory as the weight, so that both are run through in order
        scores = torch.empty_like(weight[:count], dtype=dtype)
    else:
        scores = torch.empty(count, *weight.shape[1:dims], dtype=dtype, device=weight.device)
    # Converted a piece at a time, so that no second copy of the weight is held.
    for blocks, members in _members(weight, block_size, dtype, is_whole=weight.dtype is dtype):
        _sum_squares(members, dims, scores if len(members) == count else scores[blocks])
    return scores


class _Norms(Ranking):
    """Squared norms of all blocks.

    Args:
        weight: Shape ``(C_out, *groups, *inside)``.
        block_size: Output channels in a block.
        dims: Dimensions that tell groups apart.
        dtype: Of the norms.
    """

    def __init__(self, weight: Tensor, block_size: int, dims: int, dtype: torch.dtype) -> None:
        self.scores = block_scores(weight, block_size, dims, dtype)

    def is_out_of_range(self, needed: int) -> Rounds[bool]:
        """At once: no other process is asked."""
        yield from ()
        if self.scores.device.type == "cpu":
            return _is_out_of_range(self.scores.numpy(), needed, _TINY, inf)
        smallest, largest = map(float, self.scores.aminmax())
        if isnan(largest):
            raise nan_error()
        return largest == inf or (smallest < _TINY and int((self.scores >= _TINY).count_nonzero()) < needed)

    def keep(self, count: int, out: Tensor) -> Rounds[None]:
        """At once: no other process is asked."""
        yield from ()
        if self.scores.device.type != "cpu" or self.scores.numel() > FEW:
            keep_largest(self.scores, self.scores.numel() - count, out=out)
            return
        # No norm has a sign, and none is NaN: their bits are keys already.
        bits = self.scores.numpy().ravel()
        out.numpy()[:] = largest_of_few(bits.view(f"i{bits.itemsize}"), count).reshape(out.shape)
        mark_changed([out])


class _HalfNorms(Ranking):
    """First halves of the squared norms of all blocks, in float32, on the CPU; what they cannot rank is summed again.

    Args:
        weight: Shape ``(C_out, *groups, *inside)``.
        block_size: Output channels in a block.
        dims: Dimensions that tell groups apart.
    """

    def __init__(self, weight: Tensor, block_size: int, dims: int) -> None:
        self.weight, self.block_size, self.dims = weight, block_size, dims
        self.shape = (-(-weight.shape[0] // block_size), *weight.shape[1:dims])
        self.heads = np.empty(prod(self.shape), np.int16)
        row = prod(self.shape[1:])
        for blocks, members in _members(weight, block_size, torch.float32, is_whole=False):
            scores = torch.empty(members.shape[0], *self.shape[1:], dtype=torch.float32)
            _sum_squares(members, dims, scores)
            self.heads[blocks.start * row : blocks.stop * row] = _heads_of(scores)
        self.whole: _Norms | None = None

    def is_out_of_range(self, needed: int) -> Rounds[bool]:
        """At once: no other process is asked."""
        yield from ()
        # The other halves of both bounds are zero.
        return _is_out_of_range(
            self.heads, needed, *_heads_of(torch.tensor([_TINY, inf], dtype=torch.float32)).tolist()
        )

    def keep(self, count: int, out: Tensor) -> Rounds[None]:
        """At once: no other process is asked."""
        if self.whole is not None:
            yield from self.whole.keep(count, out)
            return
        head = kth_largest(self.heads, count)
        pieces = range(0, self.heads.size, _CHUNK)
        ties = sum(int(np.count_nonzero(self.heads[start : start + _CHUNK] == head)) for start in pieces)
        if ties * 8 > self.heads.size:  # too many share it: all blocks are ranked by whole norms, from now on
            self.heads = self.heads[:0]
            self.whole = _Norms(self.weight, self.block_size, self.dims, torch.float32)
            yield from self.whole.keep(count, out)
            return
        tied = np.concatenate([np.flatnonzero(self.heads[start : start + _CHUNK] == head) + start for start in pieces])
        scores = _scores_at(self.weight, self.block_size, self.shape, tied)
        kept = np.greater(self.heads.reshape(self.shape), head, out=out.numpy())
        among_tied = keep_largest(scores, tied.size - (count - int(np.count_nonzero(kept))))
        kept[np.unravel_index(tied[among_tied.numpy()], self.shape)] = True
        mark_changed([out])


class _ShardNorms(Ranking):
    """Squared norms of those blocks that lie in this process.

    Args:
        shard: Its part of the weight, of whole blocks.
        block_size: Output channels in a block.
        dims: Dimensions that tell groups apart.
        dtype: Of the norms.
    """

    def __init__(self, shard: Shard, block_size: int, dims: int, dtype: torch.dtype) -> None:
        (rows, *groups), (first, *offset) = shard.shape[:dims], shard.offset[:dims]
        self.scores = Shard(
            block_scores(shard.values, block_size, dims, dtype),
            (-(-rows // block_size), *groups),
            (first // block_size, *offset),
        )

    def is_out_of_range(self, needed: int) -> Rounds[bool]:
        """In a round; of NaN :meth:`keep` tells all processes."""
        values = self.scores.values
        counts = [int((values == inf).sum()), int((values >= _TINY).sum())]
        overflown, sound = yield from add_up(counts, values.device)
        return overflown > 0 or sound < min(needed, prod(self.scores.shape))

    def keep(self, count: int, out: Tensor) -> Rounds[None]:
        """In rounds of counts."""
        pruned = prod(self.scores.shape) - count
        yield from keep_largest_of_shards_in_rounds([self.scores], pruned, out=[out])


def _is_out_of_range(scores: Array, needed: int, tiny: float, infinity: float) -> bool:
    # NumPy reads faster than PyTorch, and waits for no other thread.
    smallest, largest = np.minimum.reduce(scores, axis=None), np.maximum.reduce(scores, axis=None)
    if not largest <= infinity:
        raise nan_error()
    return bool(largest == infinity or (smallest < tiny and np.count_nonzero(scores >= tiny) < needed))


def _heads_of(scores: Tensor) -> Array:
    """First halves of the bits of float32 numbers that are not negative, as integers that order as they do.

    NaN may be signed, and ranks above infinity all the same.
    """
    halves = scores.numpy().ravel().view(np.int16)
    return halves[int(sys.byteorder == "little") :: 2] & 0x7FFF


def _scores_at(weight: Tensor, block_size: int, shape: tuple[int, ...], index: Array) -> Tensor:
    """Squared norms of some blocks in float32, by their rising row-major positions."""
    scores = torch.empty(index.size, dtype=torch.float32)
    full = weight.shape[0] // block_size
    in_last = int(np.searchsorted(index, full * prod(shape[1:])))  # from here on they are of the short last row
    for part, height in ((slice(in_last), block_size), (slice(in_last, None), weight.shape[0] - full * block_size)):
        if index[part].size:
            row, *others = map(torch.from_numpy, np.unravel_index(index[part], shape))
            rows = row * block_size + torch.arange(height)[:, None]
            members = weight[(rows, *others)].to(torch.float32)  # (height, blocks, *inside)
            _sum_squares(members.unsqueeze(0), 2, scores[part].unsqueeze(0))
    return scores


def _members(weight: Tensor, block_size: int, dtype: torch.dtype, *, is_whole: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield which blocks, and their weights, ``(blocks, block_size, ...)``.

    All at once if ``is_whole``, and else in pieces; the short last block is a piece of its own.
    """
    rows = weight.shape[0]
    full = rows // block_size
    if is_whole and full * block_size == rows:  # the usual case: slices cost about what the sums of a small weight do
        yield slice(0, full), weight.reshape(full, block_size, *weight.shape[1:])
        return
    step = max(1, full if is_whole else _CHUNK * rows // weight.numel() // block_size)
    for start in range(0, full, step):
        stop = min(start + step, full)
        piece = weight[start * block_size : stop * block_size].to(dtype)
        yield slice(start, stop), piece.reshape(stop - start, block_size, *weight.shape[1:])
    if full * block_size < rows:
        yield slice(full, full + 1), weight[full * block_size :].to(dtype).unsqueeze(0)


def _sum_squares(members: Tensor, dims: int, out: Tensor) -> None:
    """Sum squares over dimension 1 and all from ``dims + 1`` on; write to ``out``."""
    if members.device.type != "cpu":
        torch.linalg.vector_norm(members, dim=(1, *range(dims + 1, members.ndim)), out=out)
        out.square_()
        return
    values = members.numpy()
    if dims == 1:
        rows = values
        if not rows.flags.c_contiguous:
            rows = values.transpose(0, *sorted(range(1, values.ndim), key=values.strides.__getitem__, reverse=True))
        if rows.flags.c_contiguous:
            rows = rows.reshape(len(out), -1)
            sums = out.numpy()[:, None, None]
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinities and NaN
                for start in range(0, rows.shape[1], _DOT):
                    piece = rows[:, start : start + _DOT]
                    pair = piece[:, None, :], piece[:, :, None]  # a dot product a row
                    if start:
                        sums += np.matmul(*pair)
                    else:
                        np.matmul(*pair, out=sums)
            return
    axes = list(range(members.ndim))
    # NumPy's sum takes an eighth of the time of PyTorch's where a group is not one run of memory.
    np.einsum(values, axes, values, axes, [0, *range(2, dims + 1)], out=out.numpy())
