"""How tensors lie in memory: the order of their dimensions there, and which lie in the memory of another.

Terms: a tensor is *compact* if its numbers fill the memory from its first to its last one, each once, as contiguous,
``channels_last`` and transposed ones do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lightning_prune.errors import ExportError

__all__ = ["View", "find_views", "memory_order"]


@dataclass(frozen=True)
class View:
    """A tensor in the memory of a compact one.

    Attributes:
        of: The name of the other.
        shape: Its own shape.
        stride: Numbers between two neighbours of each dimension.
        offset: How many numbers lie between the other tensor's first number and its own.
    """

    of: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def fits(self, numbers: int) -> bool:
        """Whether it lies within so many numbers, and does not stand for more than these."""
        if len(self.shape) != len(self.stride) or min((self.offset, *self.stride)) < 0:
            return False
        total = torch.Size(self.shape).numel()
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return 0 < total <= numbers and last < numbers

    def take(self, base: Tensor) -> Tensor:
        """The tensor, in the memory of the compact one."""
        return base.as_strided(self.shape, self.stride, base.storage_offset() + self.offset)


def memory_order(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """The dimensions in the order in which they lie in memory, the slowest first; None if that is not compact.

    Example:
        >>> memory_order((2, 3, 4, 4), (48, 1, 12, 3)), memory_order((2, 3), (6, 1))
        ((0, 2, 3, 1), None)
    """
    order = sorted(range(len(shape)), key=lambda dim: (-stride[dim], shape[dim] == 1, dim))
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1:
            if stride[dim] != expected:
                return None
            expected *= shape[dim]
    return tuple(order)


def find_views(tensors: Mapping[str, Tensor]) -> dict[str, View]:
    """Which tensors lie in the memory of another of them, so that only the other is to be stored.

    Of tensors that are the same, all but the first do.

    Raises:
        ExportError: Two tensors share numbers, but neither holds all of the other.
    """
    storages: dict[tuple[str, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            storages.setdefault((str(tensor.device), tensor.untyped_storage().data_ptr()), {})[name] = tensor
    views: dict[str, View] = {}
    for group in storages.values():
        spans = sorted(_span(tensor) for tensor in group.values())
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            views |= _views_within(group)
    return views


def _views_within(group: Mapping[str, Tensor]) -> dict[str, View]:
    """The views among tensors of one storage."""
    views: dict[str, View] = {}
    owners: dict[str, Tensor] = {}
    # The largest first; of those that are as large, a compact one, which can hold others.
    for name, tensor in sorted(group.items(), key=lambda item: (-item[1].numel(), not _is_compact(item[1]))):
        view = next((found for of, base in owners.items() if (found := _as_view(tensor, of, base))), None)
        if view is not None:
            views[name] = view
            continue
        for other, base in owners.items():
            if _overlap(tensor, base):
                raise ExportError(
                    f"{name!r} and {other!r} share a part of their memory, but neither is compact and holds the whole "
                    "other, so that they cannot be stored as tied. Give one of them memory of its own: tensor.clone()."
                )
        owners[name] = tensor
    return views


def _as_view(tensor: Tensor, of: str, base: Tensor) -> View | None:
    offset, left = divmod(tensor.data_ptr() - base.data_ptr(), base.element_size())
    if left or tensor.dtype != base.dtype or not _is_compact(base):
        return None
    view = View(of, tuple(tensor.shape), tensor.stride(), offset)
    return view if view.fits(base.numel()) else None


def _overlap(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage have a byte in common."""
    (start, end), (other_start, other_end) = _span(tensor), _span(other)
    first, last = min(start, other_start), max(end, other_end)
    if end <= other_start or other_end <= start:
        return False
    taken = torch.zeros(last - first, dtype=torch.bool)
    _bytes_of(tensor, taken, first).fill_(True)
    return bool(_bytes_of(other, taken, first).any())


def _bytes_of(tensor: Tensor, memory: Tensor, first: int) -> Tensor:
    """The bytes of a tensor, in a map of the memory from an address on."""
    size = tensor.element_size()
    # along a stride of 0 there is one number
    shape = *(length if step else 1 for length, step in zip(tensor.shape, tensor.stride(), strict=True)), size
    return memory.as_strided(shape, (*(size * step for step in tensor.stride()), 1), tensor.data_ptr() - first)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor, and of the first byte behind it."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _is_compact(tensor: Tensor) -> bool:
    return memory_order(tensor.shape, tensor.stride()) is not None
