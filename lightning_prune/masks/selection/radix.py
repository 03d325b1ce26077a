"""Selection of the largest magnitudes by counting, on any device and over shards that several processes hold.

Each round counts the magnitudes per bucket of their leading bits, adds up the counts of all processes, and descends
into the bucket that holds the threshold. Only counts travel, a few kilobytes a round; no weight leaves its process.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.masks.selection.magnitudes import FORMATS, holds_nan, magnitude_keys, nan_error
from lightning_prune.sharding import Rounds, Shard

__all__ = ["RadixSelection"]

# Elements handled at a time: on the CPU they stay in the cache, elsewhere every operation is a kernel launch.
_CHUNK = 2**17
_DEVICE_CHUNK = 2**24
# Leading bits that one round counts: 4,096 counts, 32 KiB.
_RADIX_BITS = 12


class RadixSelection:
    """Selection by rounds of counts, over shards on any device."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.device = shards[0].values.device
        # Magnitudes of several dtypes are compared in one that holds them all exactly.
        self.dtype = shards[0].values.dtype
        for shard in shards:
            self.dtype = torch.promote_types(self.dtype, shard.values.dtype)
        self.form = FORMATS[self.dtype]

    def chunks(self, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield first position and keys of consecutive pieces of a tensor in row-major order."""
        flat = values.reshape(-1)
        length = _CHUNK if flat.device.type == "cpu" else _DEVICE_CHUNK
        for start in range(0, flat.numel(), length):
            yield start, magnitude_keys(flat[start : start + length].to(self.dtype))

    def keys(self) -> Iterator[Tensor]:
        """Yield the keys of all elements of this process."""
        for shard in self.shards:
            for _, keys in self.chunks(shard.values):
                yield keys

    def threshold(self, rank: int) -> Rounds[tuple[int, int, int]]:
        """Key of the ``rank``-th largest magnitude, number of elements above it, and number at it."""
        size = sum(shard.values.numel() for shard in self.shards)
        invalid = sum(holds_nan(shard.values) for shard in self.shards)
        size, invalid = (yield torch.tensor([size, invalid], device=self.device)).tolist()
        if invalid:
            raise nan_error()
        if not 1 <= rank <= size:
            raise ConfigError(f"rank must be from 1 to {size}, the number of elements, got {rank}.")
        return (yield from self.search(self.keys, self.form.bits, rank))

    def search(self, keys: Callable[[], Iterable[Tensor]], bits: int, rank: int) -> Rounds[tuple[int, int, int]]:
        """The ``rank``-th largest of keys of ``bits`` bits, the number above it, and the number equal to it."""
        prefix, above, ties = 0, 0, 0
        few: list[Tensor] | None = None
        for shift in range(bits, 0, -_RADIX_BITS):
            width = min(_RADIX_BITS, shift)
            low = shift - width
            here = torch.zeros(2**width, dtype=torch.int64, device=self.device)
            for chunk in keys() if few is None else few:
                inside = chunk if shift == bits else _select(chunk, chunk >> shift == prefix)
                digits = inside >> low & (2**width - 1)
                here += torch.bincount(digits, minlength=2**width).to(self.device)
            counts = yield here
            # Elements in this bucket and all larger buckets.
            reach = above + counts.flip(0).cumsum(0).flip(0)
            digit = int((reach >= rank).sum()) - 1
            ties = int(counts[digit])
            above = int(reach[digit]) - ties
            prefix = prefix << width | digit
            # The keys left are held from round to round once they are few; a mass of ties is read again instead.
            if low and int(here[digit]) * 8 <= int(here.sum()):
                few = [_select(chunk, chunk >> low == prefix) for chunk in (keys() if few is None else few)]
        return prefix, above, ties

    def keep(self, masks: Sequence[Tensor], keep: int) -> Rounds[None]:
        """Write the masks."""
        threshold, above, ties = yield from self.threshold(keep)
        quota = keep - above
        # Ties are ranked by position counted from the end, so that the first in the whole tensor is the largest.
        cut = None
        if quota < ties:
            size = sum(prod(shard.shape) for shard in self.shards)
            cut, _, _ = yield from self.search(lambda: self.tied(threshold), size.bit_length(), quota)
        for number, (shard, mask) in enumerate(zip(self.shards, masks, strict=True)):
            direct = mask.is_contiguous()
            flat = mask.view(-1) if direct else torch.empty(mask.shape, dtype=mask.dtype, device=mask.device).view(-1)
            for start, keys in self.chunks(shard.values):
                kept = torch.ge(keys, threshold, out=flat[start : start + keys.numel()])
                if cut is not None:
                    tied = (keys == threshold).nonzero().view(-1)
                    kept[tied[self.places(number, tied + start) < cut]] = False
            if not direct:
                mask.copy_(flat.view(mask.shape))

    def tied(self, threshold: int) -> Iterator[Tensor]:
        """Yield the places of the elements at the threshold."""
        for number, shard in enumerate(self.shards):
            for start, keys in self.chunks(shard.values):
                yield self.places(number, (keys == threshold).nonzero().view(-1) + start)

    def places(self, number: int, index: Tensor) -> Tensor:
        """Places from the end, over all whole tensors, of row-major positions in one shard."""
        shard = self.shards[number]
        place = torch.zeros_like(index)
        stride = 1
        for length, offset, size in reversed(list(zip(shard.values.shape, shard.offset, shard.shape, strict=True))):
            place += (index % length + offset) * stride
            index = index // length
            stride *= size
        return sum(prod(other.shape) for other in self.shards[number:]) - 1 - place


def _select(keys: Tensor, flags: Tensor) -> Tensor:
    """The keys that are flagged; on the CPU by NumPy, which takes a fifth of the time."""
    if keys.device.type == "cpu":
        return torch.from_numpy(keys.numpy()[flags.numpy()])
    return keys[flags]
