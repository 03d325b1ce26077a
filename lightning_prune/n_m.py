"""n:m sparsity: of every m consecutive channels, the n smallest weights are zero."""

from collections.abc import Iterable
from math import lcm, prod

import numpy as np
import torch
from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.magnitudes import (
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

__all__ = ["n_m_mask"]

# Weights handled at a time: on the CPU scratch then fits the cache, elsewhere every operation is a kernel launch.
_CHUNK = 2**18
_DEVICE_CHUNK = 2**24
_WORDS = np.dtype("<u8")
_BITS = 64  # of a word
# From this many neighbours in memory on, members of a group are compared as rows.
_WIDE = 256
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
        out: Bool mask of the shape of ``weight`` to write in place. If not given, a new one.

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
    if weight.ndim < 2 or dim not in (0, 1):
        raise ConfigError(
            f"n:m sparsity needs a weight of shape (C_out, C_in, *K) and dim 0 or 1, "
            f"got shape {tuple(weight.shape)} and dim {dim}."
        )
    if not 0 <= num_zeros <= group_size or group_size < 1:
        raise ConfigError(f"num_zeros must be from 0 to group_size, got {num_zeros} zeros of {group_size}.")
    out = mask_to_write(weight, tuple(weight.shape), out)
    if num_zeros in (0, group_size):
        return out.fill_(num_zeros == 0)
    if weight.device.type == "cpu" and group_size <= _LARGE_GROUP:
        _keep_in_groups(weight, num_zeros, group_size, dim, out)
    else:
        _keep_in_groups_by_sorting(weight, num_zeros, group_size, dim, out)
    return out


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
    with Guard(weight.dtype) as guard:
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
    pieces = [(bits.reshape(split), mask.reshape(split))]
    if not bits.flags.c_contiguous:
        pieces = list(zip(*pieces[0], strict=True))
    width = min(inner, max(1, _CHUNK // group_size))
    count = min(pieces[0][0].shape[0], max(1, _CHUNK // (group_size * width)))
    buffer = np.empty(group_size * count * width, bits.dtype)
    for values, flags in pieces:
        for top in range(0, values.shape[0], count):
            for left in range(0, inner, width):
                here = (slice(top, top + count), slice(None), slice(left, left + width))
                piece = values[here]
                keys = buffer[: piece.size].reshape(piece.shape)
                clear_signs(piece, out=keys)
                guard.check(keys)
                guard.save(flags[here])
                np.copyto(flags[here], _largest_of_columns(as_fast_to_compare(keys), num_zeros))


def _largest_of_columns(keys: Array, num_zeros: int) -> Array:
    """Which keys of ``(outer, group_size, inner)`` are larger than ``num_zeros`` or more of their group, a column."""
    outer, group_size, inner = keys.shape
    # By distance: whether a member is larger than the one so many places on, after the last the first again.
    wins = np.empty((group_size, outer, group_size, -(-inner // 8)), np.uint8)
    for ahead in range(1, group_size):
        behind = group_size - ahead
        larger = keys[:, :behind] >= keys[:, ahead:]
        if inner % 8:  # else whole bytes, and all rows are packed at once
            wins[ahead, :, :behind] = np.packbits(larger, axis=2)
        else:
            wins[ahead, :, :behind] = np.packbits(larger).reshape(outer, behind, -1)
        np.invert(wins[ahead, :, :behind], out=wins[behind, :, ahead:])
    kept = _set_in_many(wins[1:], num_zeros)
    if inner % 8:
        return np.unpackbits(kept, axis=2, count=inner).view(np.bool_)
    return np.unpackbits(kept).view(np.bool_).reshape(keys.shape)


def _keep_by_shifts(bits: Array, mask: Array, num_zeros: int, group_size: int, guard: Guard) -> None:
    """Write the mask of ``(outer, channels, inner)`` bits where ``inner`` is short.

    All memory is compared with itself, shifted by 1, 2, ... channels. A comparison with a member of the next group
    means nothing, and what stands in its place is the comparison with the member as far back.
    """
    outer, channels, inner = bits.shape
    shape = (1, bits.size) if bits.flags.c_contiguous else (outer, channels * inner)
    bits, mask = bits.reshape(shape), mask.reshape(shape)
    period = group_size * inner
    columns = _even_share(shape[1], period)
    rows = max(1, min(shape[0], _CHUNK // columns))
    size = rows * columns
    keys = np.zeros(size + period, bits.dtype)
    comparable = as_fast_to_compare(keys)
    larger = np.zeros(-(-size // _BITS) * _BITS, np.bool_)
    beats, lost = (np.zeros((group_size - 1, larger.size // _BITS), _WORDS) for _ in range(2))
    late = _late_members(group_size, inner, larger.size)
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            here = (slice(top, top + rows), slice(left, left + columns))
            piece, flags = bits[here], mask[here]
            clear_signs(piece, out=keys[: piece.size].reshape(piece.shape))
            guard.check(keys[: piece.size])
            guard.save(flags)
            for place in range(group_size - 1):
                step = (place + 1) * inner
                np.greater_equal(comparable[:size], comparable[step : step + size], out=larger[:size])
                beats[place] = _packed(larger)
                _move(beats[place], step, lost[-1 - place], is_within_words=_BITS % period == 0)
            # In row d - 1, an early member compares with the one d later; a late one, with which the member
            # group_size - d before it was compared, has won where that one has not.
            np.bitwise_or(beats, late, out=beats)
            np.bitwise_and(lost, late, out=lost)
            np.bitwise_xor(beats, lost, out=beats)
            kept = np.unpackbits(_set_in_many(beats, num_zeros).view(np.uint8), count=piece.size, bitorder="little")
            np.copyto(flags, kept.view(np.bool_).reshape(flags.shape))


def _even_share(length: int, unit: int) -> int:
    """Length of equal pieces, in whole units, that are no longer than a chunk unless one unit is."""
    units = length // unit
    most = max(1, _CHUNK // unit)
    pieces = -(-units // most)
    return -(-units // pieces) * unit


def _late_members(group_size: int, inner: int, places: int) -> Array:
    """Bits of members so late in their group that the one 1, 2, ... on is in the next; a row for each distance."""
    repeat = min(lcm(group_size * inner, _BITS), places)
    members = np.arange(repeat) // inner % group_size
    words = _packed(members >= np.arange(group_size - 1, 0, -1)[:, None])
    copies = -(-places // repeat)
    late = np.empty((group_size - 1, copies, repeat // _BITS), _WORDS)
    late[...] = words[:, None]
    return late.reshape(group_size - 1, -1)[:, : places // _BITS]


def _packed(flags: Array) -> Array:
    """Rows of flags as bits, from the lowest of the first word on."""
    return np.packbits(flags, axis=-1, bitorder="little").view(_WORDS)


def _move(bits: Array, places: int, out: Array, *, is_within_words: bool) -> None:
    """Write bits so many places on; with ``is_within_words`` none is missed that leaves its word."""
    words, rest = divmod(places, _BITS)
    stay = max(0, bits.size - words)
    np.left_shift(bits[:stay], rest, out=out[words:])
    if rest and not is_within_words:
        out[words + 1 :] |= bits[: max(0, stay - 1)] >> (_BITS - rest)


def _set_in_many(words: Iterable[Array], number: int) -> Array:
    """Bits that are set in ``number`` or more of the words; those are overwritten.

    Counted for all bits of a word at once, in planes: the first holds the lowest binary digit of all counts.
    """
    planes: list[Array] = []
    for added, carry in enumerate(words, start=1):
        for plane in planes:
            both = plane & carry
            plane ^= carry
            carry = both
        if added == 1 << len(planes):
            planes.append(carry)
    lowest = (number & -number).bit_length() - 1
    enough = planes[lowest]  # from here up: whether the digits so far say as much as those of number
    for place, plane in enumerate(planes[lowest + 1 :], start=lowest + 1):
        enough = enough & plane if number >> place & 1 else enough | plane
    return enough


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
