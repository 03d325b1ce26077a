"""The k-th largest of an array, exactly.

Selection after Floyd and Rivest, in array operations: a sorted sample brackets the element that is looked for, the few
that lie in the bracket are picked out, and the same is done with them until so few are left that they are sorted. To
compare and count costs next to nothing, to pick out does; so a bracket is narrowed once more before that.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np

from lightning_prune.masks.selection.magnitudes import GOLDEN, WORD, Array, as_fast_to_compare

__all__ = ["bracket", "kth_largest", "ranked"]

# Up to this many keys sorting is the fastest.
_FEW = 2**12
# Keys handled at a time.
_CHUNK = 2**17
_SPREAD = np.arange(2**10, dtype=np.int64) * GOLDEN & 0xFFFF_FFFF
# A bracket of fewer different keys, as numbers of 16 bits soon have, is searched by counting alone.
_NARROW = 8
_SIGMAS = 3.0
# By how much of its width a bracket that is narrowed stays wider, since the elements in it are not spread evenly.
_UNEVEN = 1 / 16


def kth_largest(keys: Array, rank: int) -> int:
    """The ``rank``-th largest of a flat array of keys, counted from 1.

    Args:
        keys: Magnitudes as integers (see :func:`magnitude_keys`), in no order, up to ``2**31`` of them.
            Negative ones rank below all magnitudes.
        rank: From 1, the largest, to the number of magnitudes. None of them is NaN.

    Example:
        >>> kth_largest(np.array([7, 1, 5, 5], np.int32), 3)
        5
    """
    return ranked(keys, rank, rank)[0]


def ranked(keys: Array, first: int, last: int) -> tuple[int, int]:
    """The ``first``-th and the ``last``-th largest, in about the time of one if few lie between them."""
    while keys.size > _FEW:
        shares = 1.0 - last / keys.size, 1.0 - first / keys.size
        low, high = bracket(keys.take(_SPREAD * keys.size >> 32), *shares, sigmas=_SIGMAS)
        above, upto = _count(keys, low, high)
        if low < high and above < first and last <= upto:
            inside = upto - above
            tighter = _tighten(low, high, (upto - last) / inside, (upto - first) / inside, inside, keys.dtype)
            counts = _count(keys, *tighter)
            if counts[0] < first and last <= counts[1]:
                (low, high), (above, upto) = tighter, counts
        if above < first and last <= upto:
            if high - low < _NARROW:
                return _bisect(keys, low, high, first), _bisect(keys, low, high, last)
            first, last = first - above, last - above
        elif first < last:
            return kth_largest(keys, first), kth_largest(keys, last)
        elif last <= above:
            low, high = high + 1, int(np.maximum.reduce(keys))
        else:
            low, high, first, last = 0, low - 1, first - upto, last - upto
        size, keys = keys.size, _pick(keys, low, high)
        if 2 * keys.size > size:  # the sample said little of the rest
            break
    ordered = np.sort(keys)
    return int(ordered[-first]), int(ordered[-last])


def bracket(sample: Array, least: float, most: float, *, sigmas: float) -> tuple[int, int]:
    """Two keys between which elements of known rank lie, most probably.

    Args:
        sample: Keys of a sample.
        least: Fraction of all elements that are smaller than the first that is looked for.
        most: The same of the last; as ``least`` if it is one that is looked for.
        sigmas: How far the bracket goes beyond them, in standard deviations of the sampled rank.

    Returns:
        The least and the largest key of the bracket. An end that many elements share is left out, so that a bracket
        never holds more than a few, or else is that one key.
    """
    size = sample.size
    first, last = (
        min(max(int(size * share + side * (sigmas * sqrt(size * share * (1.0 - share)) + 2.0)), 0), size - 1)
        for share, side in ((least, -1), (most, 1))
    )
    if size > _FEW:
        high, low = ranked(sample, size - last, size - first)
    else:
        low, high = np.sort(sample)[[first, last]].tolist()
    low, high = max(low, 0), max(high, 0)
    many = size // 64
    if low < high and np.count_nonzero(sample == low) > many:
        low += 1
    if low < high and np.count_nonzero(sample == high) > many:
        high -= 1
    return low, high


def _tighten(low: int, high: int, least: float, most: float, count: int, kind: np.dtype[Any]) -> tuple[int, int]:
    """A narrower bracket around the same elements, if the ``count`` elements of this bracket are spread evenly in it.

    Evenly over numbers where keys compare as such, and else over integers; a guess that fails costs time alone.
    """
    ends = as_fast_to_compare(np.array([low, high], kind))
    start, stop = ends.tolist()
    reaches = (_SIGMAS * sqrt(share * (1.0 - share) / count) + _UNEVEN for share in (least, most))
    places = (share + side * reach for share, side, reach in zip((least, most), (-1, 1), reaches, strict=True))
    ends[:] = [start + (stop - start) * min(max(place, 0.0), 1.0) for place in places]
    first, last = ends.view(kind).tolist()
    return min(max(first, low), high), min(max(last, low), high)


def _bisect(keys: Array, low: int, high: int, rank: int) -> int:
    """The ``rank``-th largest of keys, which lies from ``low`` to ``high``."""
    while low < high:
        middle = (low + high) // 2
        above, _ = _count(keys, low, middle)
        low, high = (middle + 1, high) if rank <= above else (low, middle)
    return low


def _count(keys: Array, low: int, high: int) -> tuple[int, int]:
    """Number of keys above ``high``, and from ``low`` on."""
    above = upto = 0
    for values, first, last in _pieces(keys, low, high):
        above += int(np.count_nonzero(values > last))
        upto += int(np.count_nonzero(values >= first))
    return above, upto


def _pick(keys: Array, low: int, high: int) -> Array:
    """The keys from ``low`` to ``high``; few among many are found by words of flags, in a quarter of the time."""
    picked = []
    for values, first, last in _pieces(keys, low, high):
        chosen = values >= first
        np.logical_and(chosen, values <= last, out=chosen)
        whole = values.size // WORD * WORD
        words = np.flatnonzero(chosen[:whole].view(np.uint64) != 0)
        if 4 * words.size * WORD < whole:
            few, flags = (flat[:whole].reshape(-1, WORD).take(words, axis=0).ravel() for flat in (values, chosen))
            picked += [few.compress(flags), values[whole:].compress(chosen[whole:])]
        else:
            picked.append(values.compress(chosen))
    return np.concatenate(picked).view(keys.dtype)


def _pieces(keys: Array, low: int, high: int) -> Iterator[tuple[Array, Any, Any]]:
    """Pieces of keys that the cache holds, and two keys, in the form in which they are fast to compare."""
    values = as_fast_to_compare(keys)
    first, last = as_fast_to_compare(np.array([low, high], keys.dtype))
    for start in range(0, values.size, _CHUNK):
        yield values[start : start + _CHUNK], first, last
