"""Exact selection of the largest magnitudes, at memory speed.

Two engines give the same masks, bit for bit: one scan for CPU tensors (``scan``), and counting for
other devices and for shards held by several processes (:mod:`lightning_prune.masks.selection.radix`).

Ties are resolved by position: among equal magnitudes the first in row-major order of the indices is kept, whatever the
memory format, and those of an earlier tensor before those of a later one.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.masks.selection.magnitudes import mark_changed, mask_to_write
from lightning_prune.masks.selection.radix import RadixSelection
from lightning_prune.masks.selection.scan import FEW, Scan, keep_few
from lightning_prune.sharding import Reduce, Rounds, Shard, alone

__all__ = [
    "Reduce",
    "keep_largest",
    "keep_largest_of_all",
    "keep_largest_of_shards",
    "keep_largest_of_shards_in_rounds",
    "pruned_count",
    "pruned_count_of_all",
]

_BITS = 50  # an allowance of 2**-50 of a group, for each group; see pruned_count


def pruned_count(groups: int, sparsity: float) -> int:
    """Number of groups to prune: ``floor(groups * sparsity)``, counted in integers.

    A decimal fraction such as 0.29 is held a little below what was written. An allowance of ``2**-50`` a group, above
    the rounding of a double and far below one group, makes it count as written.

    Args:
        groups: Number of groups.
        sparsity: Fraction of groups to prune, in ``[0, 1]``.

    Returns:
        A number from 0 to ``groups``.

    Example:
        >>> pruned_count(100, 0.29), pruned_count(22, 15 / 22), pruned_count(3, 0.5)
        (29, 15, 1)
    """
    above, below = float(sparsity).as_integer_ratio()
    return min(groups, groups * ((above << _BITS) + below) // (below << _BITS))


def pruned_count_of_all(groups: Sequence[int], sparsities: Sequence[float]) -> int:
    """The same for several tensors ranked together: what is asked of all of them is rounded down once.

    Example:
        >>> pruned_count_of_all([9, 9, 9], [0.3, 0.3, 0.3]), 3 * pruned_count(9, 0.3)
        (8, 6)
    """
    ratios = [float(sparsity).as_integer_ratio() for sparsity in sparsities]
    unit = max((below for _, below in ratios), default=1)  # all are powers of two
    asked = sum(
        count * ((above * (unit // below) << _BITS) + unit)
        for count, (above, below) in zip(groups, ratios, strict=True)
    )
    return min(sum(groups), asked // (unit << _BITS))


def keep_largest(values: Tensor, pruned: int, *, out: Tensor | None = None) -> Tensor:
    """Keep all but the ``pruned`` smallest magnitudes of a tensor.

    Args:
        values: Any shape, floating dtype and memory format. Not modified. No copy is made of a tensor without gaps in
            its memory.
        pruned: Number of elements to prune, from 0 to all.
        out: Bool mask of the shape of ``values`` to write in place. If not given, a new mask, laid out in memory as
            ``values``.

    Returns:
        Bool mask, ``True`` = keep. Exactly ``pruned`` elements are ``False``; among equal magnitudes the first in
        row-major order is kept.

    Raises:
        PruningError: ``values`` holds NaN, and some but not all of it is to be pruned; ``out`` is then unchanged.

    Example:
        >>> import torch
        >>> keep_largest(torch.tensor([0.5, -2.0, 0.5, 0.0]), 2).int().tolist()
        [1, 1, 0, 0]
    """
    return keep_largest_of_all([values], pruned, out=None if out is None else [out])[0]


def keep_largest_of_all(values: Sequence[Tensor], pruned: int, *, out: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Keep all but the ``pruned`` smallest magnitudes of several tensors ranked together.

    Args:
        values: Tensors of any shape, floating dtype, memory format and device. Not modified.
        pruned: Number of elements to prune over all tensors, from 0 to all.
        out: One bool mask per tensor to write in place. If not given, new masks.

    Returns:
        One bool mask per tensor, ``True`` = keep. Among equal magnitudes those of an earlier tensor are kept first,
        and within a tensor the first in row-major order.

    Raises:
        PruningError: A tensor holds NaN, and some but not all elements are to be pruned; no mask is then changed.

    Example:
        >>> import torch
        >>> masks = keep_largest_of_all([torch.tensor([1.0, 3.0]), torch.tensor([[2.0], [1.0]])], 1)
        >>> [mask.flatten().int().tolist() for mask in masks]
        [[1, 1], [1, 0]]
    """
    values = [value.detach() for value in values]
    on_cpu = all(value.device.type == "cpu" for value in values)
    if not on_cpu or len({value.dtype for value in values}) > 1:
        shards = [Shard(value, tuple(value.shape), (0,) * value.ndim) for value in values]
        return keep_largest_of_shards(shards, pruned, out=out)
    masks = _masks_for(values, out)
    total = sum(value.numel() for value in values)
    if _all_or_none(masks, pruned, total):
        return masks
    if total <= FEW:
        keep_few(values, masks, total - pruned)
    else:
        Scan(values, masks, total - pruned).run()
    mark_changed(masks)
    return masks


def keep_largest_of_shards(
    shards: Sequence[Shard], pruned: int, *, reduce: Reduce | None = None, out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Keep all but the ``pruned`` smallest magnitudes of tensors whose shards several processes hold.

    Every process calls this with its shards of the same tensors in the same order, and gets its part of the masks
    that :func:`keep_largest_of_all` gives for the whole tensors, bit for bit. Ties are resolved by the position in the
    whole tensor, however it is cut. No weight leaves its process.

    Args:
        shards: This process's piece of each tensor; pieces of all processes together cover each tensor exactly once.
        pruned: Number of elements to prune over all tensors and processes, from 0 to all.
        reduce: Adds an int64 tensor of counts, on the device of the first shard, over all processes, and returns the
            sum; ``None`` for one process. Called equally often by every process.
        out: One bool mask per shard to write in place. If not given, new masks.

    Returns:
        One bool mask per shard, ``True`` = keep, of the shape of its ``values``.

    Raises:
        PruningError: A shard of any process holds NaN; raised by every process, and no mask is then changed.

    Example:
        >>> import torch
        >>> whole = Shard(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), shape=(2, 2), offset=(0, 0))
        >>> [mask.int().tolist() for mask in keep_largest_of_shards([whole], 1)]
        [[[1, 1], [0, 1]]]
    """
    return alone(keep_largest_of_shards_in_rounds(shards, pruned, out=out), reduce)


def keep_largest_of_shards_in_rounds(
    shards: Sequence[Shard], pruned: int, *, out: Sequence[Tensor] | None = None
) -> Rounds[list[Tensor]]:
    """:func:`keep_largest_of_shards` as a task that shares its rounds with others."""
    shards = [Shard(shard.values.detach(), shard.shape, shard.offset) for shard in shards]
    masks = _masks_for([shard.values for shard in shards], out)
    total = sum(prod(shard.shape) for shard in shards)
    if not _all_or_none(masks, pruned, total):
        yield from RadixSelection(shards).keep(masks, total - pruned)
    return masks


def _masks_for(values: Sequence[Tensor], out: Sequence[Tensor] | None) -> list[Tensor]:
    given = [None] * len(values) if out is None else out
    return [mask_to_write(value, tuple(value.shape), mask) for value, mask in zip(values, given, strict=True)]


def _all_or_none(masks: Sequence[Tensor], pruned: int, total: int) -> bool:
    """Fill the masks if nothing has to be ranked."""
    if not 0 <= pruned <= total:
        raise ConfigError(f"pruned must be from 0 to {total}, the number of elements, got {pruned}.")
    if 0 < pruned < total:
        return False
    for mask in masks:
        mask.fill_(pruned == 0)
    return True
