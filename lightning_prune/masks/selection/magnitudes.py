"""Magnitudes as integers.

The bits of a floating-point number without its sign, read as an integer, order as its magnitude does. Comparing these
keys instead of the numbers is exact for infinities, denormal numbers and signed zeros, in every dtype and on every
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_prune.errors import ConfigError, PruningError

__all__ = [
    "FORMATS",
    "GOLDEN",
    "WORD",
    "Array",
    "FlatPair",
    "Format",
    "Guard",
    "as_fast_to_compare",
    "clear_signs",
    "holds_nan",
    "magnitude_keys",
    "mark_changed",
    "mask_to_write",
    "nan_error",
]

Array: TypeAlias = NDArray[Any]
# Its multiples, modulo 2**32, are places that spread evenly and never fall in step with rows or groups: golden ratio.
GOLDEN = 0x9E37_79B1
# Mask bytes that are compared and moved at a time, as one 64-bit integer.
WORD = 8


@dataclass(frozen=True)
class Format:
    """How the magnitudes of a dtype read as integers: all bits but the sign."""

    integer: torch.dtype
    bits: int
    infinity: int

    @property
    def magnitude(self) -> int:
        """The largest key: all bits of the magnitude."""
        return (1 << self.bits) - 1


FORMATS = {
    torch.float16: Format(torch.int16, 15, 0x7C00),
    torch.bfloat16: Format(torch.int16, 15, 0x7F80),
    torch.float32: Format(torch.int32, 31, 0x7F80_0000),
    torch.float64: Format(torch.int64, 63, 0x7FF0_0000_0000_0000),
}


def holds_nan(values: Tensor) -> bool:
    """Whether a floating-point tensor holds NaN, at the cost of one sum.

    Example:
        >>> holds_nan(torch.tensor([1.0, -torch.inf])), holds_nan(torch.tensor([1.0, torch.nan]))
        (False, True)
    """
    # A sum is NaN if an element is, and also where opposite infinities meet; only then the elements are looked at.
    return bool(values.sum().isnan()) and bool(values.isnan().any())


def magnitude_keys(values: Tensor) -> Tensor:
    """Integers that order as the magnitudes of a floating-point tensor: its bits without the sign."""
    form = FORMATS[values.dtype]
    return values.view(form.integer) & form.magnitude


def clear_signs(bits: Array, *, out: Array | None = None) -> Array:
    """The same as :func:`magnitude_keys` for the bits of the numbers in a NumPy array."""
    return np.asarray(np.bitwise_and(bits, (1 << 8 * bits.itemsize - 1) - 1, out=out))


def as_fast_to_compare(keys: Array) -> Array:
    """View keys as what NumPy compares fastest with the same result: as the floating-point numbers whose bits they are.

    Of 16 bits NumPy knows none that are fast, and a thread that flushes denormal numbers to zero does not tell them
    apart: there the integers themselves are returned.
    """
    if keys.itemsize < 4 or not np.float32(1e-45) > 0:
        return keys
    return keys.view(np.float32 if keys.itemsize == 4 else np.float64)


def mark_changed(masks: Sequence[Tensor]) -> None:
    """Tell autograd of writes that went past it, through NumPy."""
    torch.autograd.graph.increment_version([mask for mask in masks if not mask.is_inference()])


def mask_to_write(values: Tensor, shape: tuple[int, ...], out: Tensor | None) -> Tensor:
    """The mask given, checked, or a new mask of ``shape`` on the device of ``values``, laid out in memory alike."""
    if values.dtype not in FORMATS:
        raise ConfigError(f"magnitudes are ranked in {', '.join(map(str, FORMATS))}, got {values.dtype}.")
    if out is None and shape == tuple(values.shape):
        return torch.empty_like(values, dtype=torch.bool)
    if out is None:
        return torch.empty(shape, dtype=torch.bool, device=values.device)
    if (tuple(out.shape), out.dtype, out.device) != (shape, torch.bool, values.device):
        raise ConfigError(
            f"out must be a torch.bool tensor of shape {shape} on {values.device}, "
            f"got {out.dtype} of shape {tuple(out.shape)} on {out.device}."
        )
    return out


def nan_error() -> PruningError:
    """The error for a weight that cannot be ranked; the caller says which."""
    return PruningError("NaN has no magnitude to rank by. The mask stays as it was.")


class Guard:
    """Leaves masks as they were if a NaN turns up when half of them are written: a context to write them in.

    Args:
        dtype: Of the weights.
        size: How many numbers will be checked, where all are: after the last of them no mask is saved any more.
    """

    def __init__(self, dtype: torch.dtype, size: int | None = None) -> None:
        self.infinity = FORMATS[dtype].infinity
        self._unchecked = size
        self._saved: list[tuple[Array, Array]] = []

    def check(self, keys: Array) -> None:
        """Raise if there is a NaN among the numbers whose keys these are."""
        if keys.size and np.maximum.reduce(keys, axis=None) > self.infinity:
            raise nan_error()
        if self._unchecked is not None:
            self._unchecked -= keys.size

    def save(self, mask: Array) -> None:
        """Note a bit an element of a piece that is about to be written, so that reading its memory costs little."""
        if self._unchecked != 0:
            self._saved.append((mask, np.packbits(mask)))

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PruningError):
            for mask, packed in reversed(self._saved):
                mask[...] = np.unpackbits(packed, count=mask.size).reshape(mask.shape)
        self._saved.clear()


@dataclass(frozen=True)
class FlatPair:
    """A CPU tensor and its mask as flat NumPy arrays in one storage order, over the same memory where it allows that.

    Args:
        bits: The bits of the tensor as integers.
        mask: The mask, or scratch if it lies in memory in another order; :meth:`finish` then copies it.
        order: Dimensions of the tensor, from the slowest in memory to the fastest.
        shape: Shape of the tensor.
        target: The mask to copy to, with its dimensions in that order, or None.
    """

    bits: Array
    mask: Array
    order: tuple[int, ...]
    shape: tuple[int, ...]
    target: Tensor | None

    @classmethod
    def of(cls, value: Tensor, mask: Tensor) -> "FlatPair":
        """View a tensor and a mask of its shape. Only a tensor with gaps in its memory, as a slice has, is copied."""
        integer = FORMATS[value.dtype].integer
        shape = tuple(value.shape)
        order = tuple(range(value.ndim))
        if not value.is_contiguous():
            order = tuple(sorted(order, key=value.stride, reverse=True))
            value, mask = value.permute(order), mask.permute(order)
        bits = value.contiguous().view(integer).numpy().ravel()
        if mask.is_contiguous() and mask.data_ptr() % WORD == 0:
            return cls(bits, mask.numpy().ravel(), order, shape, None)
        return cls(bits, np.empty(bits.size, np.bool_), order, shape, mask)

    @property
    def storage_shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions, from the slowest in memory to the fastest."""
        return tuple(self.shape[dim] for dim in self.order)

    def in_row_major_order(self, flat: Array) -> Array:
        """View an array over the storage so that its indices count in row-major order."""
        wide = [dim for dim in self.order if self.shape[dim] > 1]
        if wide == sorted(wide):
            return flat
        return flat.reshape(self.storage_shape).transpose(np.argsort(self.order)).squeeze()

    def positions(self, index: Array) -> Array:
        """Row-major positions of positions in storage."""
        if self.order == tuple(range(len(self.shape))):
            return index
        stored = np.unravel_index(index, self.storage_shape)
        coordinates = tuple(stored[place] for place in np.argsort(self.order))
        return np.asarray(np.ravel_multi_index(coordinates, self.shape))

    def finish(self) -> None:
        """Copy the mask to where it is wanted, if it could not be written there."""
        if self.target is not None:
            self.target.copy_(torch.from_numpy(self.mask).view(self.storage_shape))
