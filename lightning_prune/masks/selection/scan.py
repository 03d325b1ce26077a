"""Selection of the largest magnitudes on the CPU, in one scan.

A sample brackets the threshold between two magnitudes. One pass over the weights, in chunks that fit the cache, keeps
what lies above the bracket and sets aside the percent or so that lies in it. The threshold is then found among those
alone. Everything is NumPy on the memory of the tensors: it compares several times as fast as PyTorch does.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from lightning_prune.masks.selection.kth import bracket, kth_largest
from lightning_prune.masks.selection.magnitudes import (
    FORMATS,
    GOLDEN,
    WORD,
    Array,
    FlatPair,
    Guard,
    as_fast_to_compare,
    clear_signs,
)
from lightning_prune.masks.selection.radix import RadixSelection
from lightning_prune.sharding import Shard, alone

__all__ = ["FEW", "Scan", "keep_few", "largest_of_few"]

# Elements handled at a time: the scratch arrays of a chunk fit a second-level cache of 1 to 2 MiB.
_CHUNK = 2**18
# Up to this many elements, keep_few is faster than a scan, and takes some 3 MiB.
FEW = 2**18
# Sampled elements lie in runs within a cache line, a little over _SAMPLES * N**(2/3) of N elements in all: the cost of
# the sample and that of the elements in the bracket are then about equal, and vanish beside the scan as N grows.
_RUN = 8
_SAMPLES = 4.0
# Eight elements none of which is a candidate, as one word of flags.
_NONE = np.uint64(0x0101_0101_0101_0101)
# Half the width of the bracket, in standard deviations of the sampled rank. The second try is for weights that differ
# so much from row to row that the sample says less than its size.
_SIGMAS = (3.0, 15.0)


def keep_few(values: Sequence[Tensor], masks: Sequence[Tensor], keep: int) -> None:
    """Select among so few elements that copies of all of them stay in the cache."""
    integer = FORMATS[values[0].dtype].integer
    pieces = [value.contiguous().view(integer).numpy().ravel() for value in values]
    keys = clear_signs(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
    Guard(values[0].dtype).check(keys)
    kept = largest_of_few(keys, keep)
    start = 0
    for mask in masks:
        np.copyto(mask.numpy(), kept[start : start + mask.numel()].reshape(mask.shape))
        start += mask.numel()


def largest_of_few(keys: Array, keep: int) -> Array:
    """Which of a flat array of keys are the ``keep`` largest; of equal ones the first are."""
    threshold = kth_largest(keys, keep)
    kept = np.asarray(keys >= threshold)
    excess = int(np.count_nonzero(kept)) - keep
    if excess:
        kept[np.flatnonzero(keys == threshold)[-excess:]] = False
    return kept


class Scan:
    """Selection in one scan over CPU tensors of one dtype."""

    def __init__(self, values: Sequence[Tensor], masks: Sequence[Tensor], keep: int) -> None:
        self.values = values
        self.parts = [FlatPair.of(value, mask) for value, mask in zip(values, masks, strict=True)]
        self.kind = self.parts[0].bits.dtype
        self.guard = Guard(values[0].dtype)
        self.total = sum(part.bits.size for part in self.parts)
        self.keep = keep

    def run(self) -> None:
        """Write the masks, or leave them as they were and raise."""
        with self.guard:
            self.write()
        for part in self.parts:
            part.finish()

    def write(self) -> None:
        """Sample, bracket, and select."""
        sample = np.concatenate([self.sample(part.bits) for part in self.parts])
        self.guard.check(sample)
        share = 1.0 - self.keep / self.total
        if not any(self.select(*bracket(sample, share, share, sigmas=sigmas)) for sigmas in _SIGMAS):
            # Too many equal magnitudes in the bracket, or an unlikely sample: exact whatever the weights.
            # No places are asked for, so that shape and offset of the shards do not matter.
            radix = RadixSelection([Shard(value, (), ()) for value in self.values])
            self.settle(alone(radix.threshold(self.keep))[0])

    def sample(self, bits: Array) -> Array:
        """Keys of short runs of elements, one run at a jittered place in each of equal strides."""
        runs = bits.size // _RUN
        stride = int(self.total ** (1 / 3) / _SAMPLES)
        if stride < 2 or runs < stride:
            return clear_signs(bits)
        index = np.arange(runs // stride, dtype=np.int64)
        starts = index * stride + ((index * GOLDEN & 0xFFFF_FFFF) * stride >> 32)
        return clear_signs(bits[: runs * _RUN].reshape(runs, _RUN).take(starts, axis=0).ravel())

    def select(self, low: int, high: int) -> bool:
        """Write the masks if the threshold lies in the bracket, or is the magnitude right next to it."""
        if low == high:
            return self.settle(low)
        found = self.scan(low, high)
        if found is None:
            return False
        kept, words, keys = found
        self.guard.check(keys)
        above = int(np.count_nonzero(keys > high))
        inside = int(np.count_nonzero(keys >= low)) - above
        if kept > self.keep:
            return self.settle(high + 1)
        if kept + inside < self.keep:
            return self.settle(low - 1)
        if kept < self.keep:
            self.resolve(words, keys, self.keep - kept + above)
        return True

    def chunks(self) -> Iterator[tuple[FlatPair, int, int, Array]]:
        """Yield part, first element, number of elements, and keys, filled up with -1 to whole words."""
        buffer = np.empty(_CHUNK, self.kind)
        for part in self.parts:
            for start in range(0, part.bits.size, _CHUNK):
                bits = part.bits[start : start + _CHUNK]
                keys = buffer[: -(-bits.size // WORD) * WORD]
                clear_signs(bits, out=keys[: bits.size])
                keys[bits.size :] = -1
                self.guard.save(part.mask[start : start + bits.size])
                yield part, start, bits.size, keys

    def scan(self, low: int, high: int) -> tuple[int, Array, Array] | None:
        """Keep what is above the bracket, and collect the words that hold a candidate or NaN.

        Returns:
            Number of elements above the bracket; the mask words with a candidate, numbered over all parts; and the
            keys under each, of shape ``(words, 8)``. None if there are too many candidates.
        """
        first, last = (as_fast_to_compare(np.array([key], self.kind))[0] for key in (low, high))
        above, below = np.empty(_CHUNK, np.bool_), np.empty(_CHUNK, np.bool_)
        # The first chunk of few elements may hold any number; a bracket that is met holds a few percent.
        room = self.total // 20 + _CHUNK // WORD
        words, word_keys = np.empty(room, np.int64), np.empty((room, WORD), self.kind)
        kept = found = base = 0
        for part, start, size, keys in self.chunks():
            comparable = as_fast_to_compare(keys)
            # Whole words can be written to the mask itself; the end of a part goes through scratch.
            flags = part.mask[start : start + size] if size == keys.size else above[: keys.size]
            np.greater(comparable, last, out=flags)
            under = np.less(comparable, first, out=below[: keys.size])
            if comparable is keys:
                self.guard.check(keys)
            if size != keys.size:
                flags[size:], under[size:] = False, True
                part.mask[start : start + size] = flags[:size]
            kept += int(np.count_nonzero(flags))
            # What is neither above nor below is a candidate; that is how NaN, which is neither, comes to be checked.
            hits = (flags.view(np.uint64) + under.view(np.uint64) != _NONE).nonzero()[0]
            stop = found + hits.size
            if stop > room:
                return None
            keys.reshape(-1, WORD).take(hits, axis=0, out=word_keys[found:stop], mode="clip")
            np.add(hits, base, out=words[found:stop])
            found, base = stop, base + keys.size // WORD
        return kept, words[:found], word_keys[:found]

    def resolve(self, words: Array, keys: Array, keep: int) -> None:
        """Keep the ``keep`` largest of the keys in the words that hold candidates."""
        threshold = kth_largest(keys.ravel(), keep)
        kept = keys >= threshold
        excess = int(np.count_nonzero(kept)) - keep
        first = words.size
        base = sum(-(-part.mask.size // WORD) for part in self.parts)
        # From the last part to the first, because it is the last of the ties that are pruned.
        for part in reversed(self.parts):
            base -= -(-part.mask.size // WORD)
            first, stop = int(np.searchsorted(words, base)), first
            if excess:
                tied = np.flatnonzero(keys[first:stop] == threshold)
                places = (words[first:stop][tied // WORD] - base) * WORD + tied % WORD
                dropped = tied[np.argsort(part.positions(places))[-excess:]]
                kept[first:stop].reshape(-1)[dropped] = False
                excess -= dropped.size
            whole = part.mask[: part.mask.size // WORD * WORD].view(np.uint64)
            last = int(np.searchsorted(words, base + whole.size))
            whole[words[first:last] - base] = kept[first:last].view(np.uint64).ravel()
            for rest in kept[last:stop]:
                part.mask[whole.size * WORD :] = rest[: part.mask.size % WORD]

    def settle(self, threshold: int) -> bool:
        """Write the masks if this is the threshold: keep what is above it, and the first of those at it."""
        above = ties = 0
        for part, start, size, keys in self.chunks():
            self.guard.check(keys)
            mask = part.mask[start : start + size]
            np.greater(keys[:size], threshold, out=mask)
            above += int(np.count_nonzero(mask))
            ties += int(np.count_nonzero(keys[:size] == threshold))
        quota = self.keep - above
        if not 0 <= quota <= ties:
            return False
        for part in self.parts:
            quota -= self.keep_ties(part, threshold, quota)
        return True

    def keep_ties(self, part: FlatPair, threshold: int, quota: int) -> int:
        """Keep the first ``quota`` elements of one magnitude in row-major order, or as many as there are."""
        bits, mask = part.in_row_major_order(part.bits), part.in_row_major_order(part.mask)
        rows = max(1, _CHUNK * len(bits) // max(1, bits.size))
        kept = 0
        for start in range(0, len(bits), rows):
            if kept == quota:
                break
            tied = np.ascontiguousarray(clear_signs(bits[start : start + rows]) == threshold)
            count = int(np.count_nonzero(tied))
            if count > quota - kept:
                tied.ravel()[np.flatnonzero(tied)[quota - kept :]] = False
                count = quota - kept
            mask[start : start + rows] |= tied
            kept += count
        return kept
