"""n:m sparsity: of every m consecutive channels, the n smallest weights are zero."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from lightning_prune.basics import as_whole
from lightning_prune.errors import ConfigError
from lightning_prune.masks.selection import (
    Array,
    FlatPair,
    Guard,
    as_fast_to_compare,
    clear_signs,
    holds_nan,
    magnitude_keys,
    mark_changed,
    mask_to_write,
    nan_error,
)
from lightning_prune.masks.shards import bring_back, part_for
from lightning_prune.sharding import Rounds, Sharding, add_up

__all__ = ["keep_n_m", "n_m_mask"]

# Weights handled at a time: on the CPU scratch then fits the cache, elsewhere every operation is a kernel launch.
_CHUNK = 2**18
_DEVICE_CHUNK = 2**24
# Weights for which it is written down which member of its group each is; for more that is repeated.
_PATTERN = 2**15
# From this many neighbours in memory on, members of a group are compared as rows.
_WIDE = 512
# Above this group size sorting is faster than comparing every member with every other.
_LARGE_GROUP = 32


def n_m_mask(weight: Tensor, num_zeros: int, group_size: int, *, dim: int = 1, out: Tensor | None = None) -> Tensor:
    """Keep the largest of every ``group_size`` consecutive channels, and prune the ``num_zeros`` smallest.

    Groups are formed at each kernel position separately. Where ``group_size`` does not divide the channels, the last
    group is filled up with padding that is pruned first: it loses ``num_zeros`` weights less the number missing.

    Args:
        weight: Shape ``(C_out, C_in, *K)``, any floating dtype and memory format. Not modified.
        num_zeros: Weights to prune in each group, from 0 to ``group_size``.
        group_size: Channels in a group.
        dim: 1 for groups of input channels, 0 for groups of output channels.
        out: Bool mask of the shape of ``weight`` to write in place. If not given, a new mask.

    Returns:
        Bool mask, ``True`` = keep. Among equal magnitudes of a group the first is kept.

    Raises:
        ConfigError: An argument is outside its range, or ``weight`` has fewer than two dimensions.
        PruningError: ``weight`` holds NaN; ``out`` is then unchanged.

    References:
        Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021,
        https://arxiv.org/abs/2102.04010 (there, N counts the weights kept)

    Example:
        >>> n_m_mask(torch.tensor([[0.5, -0.1, 0.1, 0.2, 0.4, 0.3]]), 2, 4).int().tolist()
        [[1, 0, 0, 1, 1, 1]]
    """
    weight = weight.detach()
    num_zeros, group_size = as_whole("num_zeros", num_zeros, least=0), as_whole("group_size", group_size, least=1)
    dim = as_whole("dim", dim, least=0)
    if weight.ndim < 2 or dim > 1:
        raise ConfigError(
            f"n:m sparsity needs a weight of shape (C_out, C_in, *K) and dim 0 or 1, "
            f"got shape {tuple(weight.shape)} and dim {dim}."
        )
    if num_zeros > group_size:
        raise ConfigError(f"num_zeros must be from 0 to group_size, got {num_zeros} zeros of {group_size}.")
    out = mask_to_write(weight, tuple(weight.shape), out)
    if num_zeros in (0, group_size):
        return out.fill_(num_zeros == 0)
    if weight.device.type == "cpu" and group_size <= _LARGE_GROUP:
        _keep_in_groups(weight, num_zeros, group_size, dim, out)
    else:
        _keep_in_groups_by_sorting(weight, num_zeros, group_size, dim, out)
    return out


def keep_n_m(
    values: Tensor, num_zeros: int, group_size: int, dim: int, sharding: Sharding, out: Tensor
) -> Rounds[None]:
    """Write the mask that :func:`n_m_mask` gives, or this process's part of it.

    Args:
        values: The weight, or this process's piece of it, of the shape of ``sharding.box``.
        num_zeros: Weights to prune in each group.
        group_size: Channels in a group.
        dim: 1 for groups of input channels, 0 for groups of output channels.
        sharding: Who holds what; every process that holds a piece must run this.
        out: The mask, or this process's part of it, bool, written in place.

    Raises:
        PruningError: A piece of any process holds NaN; raised in every process, and ``out`` is unchanged.
    """
    if not sharding.is_whole and any((yield from add_up([int(holds_nan(values))], values.device))):
        raise nan_error()
    boxes = sharding.aligned(tuple(group_size if place == dim else 1 for place in range(values.ndim)))
    piece = sharding.exchange(values, sharding.boxes, boxes)
    mask = part_for(out, boxes, sharding, sharding.shape)
    if piece.numel():
        n_m_mask(piece, num_zeros, group_size, dim=dim, out=mask)
    bring_back(mask, boxes, sharding, sharding.shape, out)


def _keep_in_groups(weight: Tensor, num_zeros: int, group_size: int, dim: int, out: Tensor) -> None:
    """Write an n:m mask on the CPU, by comparing every member of a group with every other."""
    pair = FlatPair.of(weight, out)
    lengths = pair.storage_shape
    place = pair.order.index(dim)
    shape = (prod(lengths[:place]), lengths[place], prod(lengths[place + 1 :]))
    bits, mask = pair.bits.reshape(shape), pair.mask.reshape(shape)
    rest = shape[1] % group_size
    whole = shape[1] - rest
    keep = _keep_by_rows if shape[2] >= _WIDE else _keep_by_shifts
    left = num_zeros - (group_size - rest)
    with Guard(weight.dtype, weight.numel()) as guard:
        if mask[:, :whole].size:
            keep(bits[:, :whole], mask[:, :whole], num_zeros, group_size, guard)
        if mask[:, whole:].size and left > 0:
            keep(bits[:, whole:], mask[:, whole:], left, rest, guard)
        elif mask[:, whole:].size:
            guard.check(clear_signs(bits[:, whole:]))
            mask[:, whole:] = True
    pair.finish()
    mark_changed([out])


def _keep_by_rows(bits: Array, mask: Array, num_zeros: int, group_size: int, guard: Guard) -> None:
    """Write the mask of ``(outer, channels, inner)`` bits where ``inner`` is long: rows of it are compared."""
    inner = bits.shape[2]
    split = (-1, group_size, inner) if bits.flags.c_contiguous else (bits.shape[0], -1, group_size, inner)
    parts = [(bits.reshape(split), mask.reshape(split))]
    if not bits.flags.c_contiguous:
        parts = list(zip(*parts[0], strict=True))
    width = _even_share(inner, _CHUNK // group_size)
    count = _even_share(parts[0][0].shape[0], _CHUNK // (group_size * width))
    size = count * group_size * width
    buffer, scratch = np.empty(size, bits.dtype), np.empty((2, size), np.uint8)
    comparable, members = as_fast_to_compare(buffer), np.arange(group_size, dtype=np.uint8)[:, None]
    for flags in (flags for part in parts for flags in _load_pieces(*part, count, width, buffer, guard)):
        keys, wins = (flat[: flags.size].reshape(flags.shape) for flat in (comparable, scratch[0]))
        wins[:] = members
        for ahead in range(1, group_size):
            early, late = slice(group_size - ahead), slice(ahead, None)
            larger = scratch[1, : wins[:, early].size].reshape(wins[:, early].shape)
            np.greater_equal(keys[:, early], keys[:, late], out=larger.view(np.bool_))
            wins[:, early] += larger
            wins[:, late] -= larger
        np.greater_equal(wins, num_zeros, out=flags)


def _keep_by_shifts(bits: Array, mask: Array, num_zeros: int, group_size: int, guard: Guard) -> None:
    """Write the mask of ``(outer, channels, inner)`` bits where ``inner`` is short.

    All memory is compared with itself, shifted by 1, 2, ... channels. A comparison with a member of the next group
    means nothing, and is struck out.
    """
    outer, channels, inner = bits.shape
    shape = (1, 1, bits.size) if bits.flags.c_contiguous else (outer, 1, channels * inner)
    period = group_size * inner
    columns = period * _even_share(shape[2] // period, _CHUNK // period)
    rows = _even_share(shape[0], _CHUNK // columns)
    groups = rows * columns // period
    most = max(1, _PATTERN // period)
    repeat = period * _even_share(groups, most)
    members, early = (pattern[..., :repeat] for pattern in _members_of_groups(most, group_size, inner))
    size = -(-groups * period // repeat) * repeat
    buffer = np.zeros(size + period, bits.dtype)
    keys = as_fast_to_compare(buffer)
    wins, larger = np.empty(size + period, np.uint8), np.empty(size, np.uint8)
    for flags in _load_pieces(bits.reshape(shape), mask.reshape(shape), rows, columns, buffer, guard):
        wins[:size].reshape(-1, repeat)[:] = members
        for ahead in range(1, group_size):
            step = ahead * inner
            np.greater_equal(keys[:size], keys[step : step + size], out=larger.view(np.bool_))
            larger.reshape(-1, repeat)[:] &= early[ahead - 1]
            wins[:size] += larger
            wins[step : step + size] -= larger
        np.greater_equal(wins[: flags.size].reshape(flags.shape), num_zeros, out=flags)


def _load_pieces(bits: Array, mask: Array, rows: int, columns: int, buffer: Array, guard: Guard) -> Iterator[Array]:
    """Cut both along the first and the last of three dimensions.

    Yields:
        The mask of a piece, to be written; the keys of the piece are at the start of the buffer.
    """
    for top in range(0, bits.shape[0], rows):
        for left in range(0, bits.shape[2], columns):
            here = (slice(top, top + rows), slice(None), slice(left, left + columns))
            piece = bits[here]
            keys = buffer[: piece.size].reshape(piece.shape)
            clear_signs(piece, out=keys)
            guard.check(keys)
            guard.save(mask[here])
            yield mask[here]


def _even_share(length: int, most: int) -> int:
    """Length of equal pieces, but for the last, of up to ``most``; at least 1."""
    pieces = -(-length // max(1, most))
    return -(-length // pieces)


@lru_cache(maxsize=16)
def _members_of_groups(groups: int, group_size: int, inner: int) -> tuple[Array, Array]:
    """Number of each member in its group, and for each distance, whether one so far on is in the group too."""
    members = np.arange(groups * group_size).repeat(inner) % group_size
    early = members < np.arange(group_size - 1, 0, -1)[:, None]
    return members.astype(np.uint8), early.view(np.uint8)


def _keep_in_groups_by_sorting(weight: Tensor, num_zeros: int, group_size: int, dim: int, out: Tensor) -> None:
    """Write an n:m mask on any device, by sorting every group."""
    if holds_nan(weight):
        raise nan_error()
    weight, out = weight.movedim(dim, -1), out.movedim(dim, -1)
    channels = weight.shape[-1]
    chunk = _CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK
    rows = max(1, chunk * weight.shape[0] // max(1, weight.numel()))
    for start in range(0, weight.shape[0], rows):
        keys = magnitude_keys(weight[start : start + rows])
        padded = torch.nn.functional.pad(keys, (0, -channels % group_size), value=-1)
        groups = torch.unflatten(padded, -1, (-1, group_size))
        order = groups.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(-1, order[..., : group_size - num_zeros], True)
        out[start : start + rows].copy_(kept.flatten(-2)[..., :channels])
