"""The forms in which an array of numbers can be stored, and which of them takes the fewest bytes; pure.

A number is a *word* here: 1, 2, 4 or 8 bytes, of which only one thing is asked, whether all its bits are zero. So every
bit comes back: the sign of -0.0 and what a NaN carries, too. In each form the bytes of the parts bound the number of
words that they stand for (by 128 words a byte, at most), and are compared with it before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["PLAIN_FORMS", "Bitmask", "DamagedPartsError", "Dense", "Form", "Indices", "NofM", "smallest_form"]

Words = npt.NDArray[Any]
Parts = dict[str, npt.NDArray[Any]]

# Words that one number of ``counts`` is for; a place within them is one byte.
BLOCK = 256
# Group sizes of n:m that are looked for, each twice the size before.
GROUP_SIZES = (2, 4, 8, 16)
# Bytes that a file spends to name a part, say of what type it is and where it lies.
PART_BYTES = 100


class DamagedPartsError(ValueError):
    """Parts do not fit together: says what must hold."""


@dataclass(frozen=True)
class Dense:
    """All words."""

    name: ClassVar[str] = "dense"
    part_types: ClassVar[Mapping[str, str]] = {"": "words"}

    def encode(self, words: Words) -> Parts:
        """The parts of an array."""
        return {"": words}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Words:
        """The array of a shape."""
        _check_length("its values", parts[""], prod(shape))
        return parts[""].reshape(shape)


@dataclass(frozen=True)
class Bitmask:
    """One bit a word, the first in the highest bit of a byte; and the words that are not zero."""

    name: ClassVar[str] = "bitmask"
    part_types: ClassVar[Mapping[str, str]] = {"bitmask": "uint8", "values": "words"}

    def encode(self, words: Words) -> Parts:
        """The parts of an array.

        Example:
            >>> Bitmask().encode(np.array([0, 7, 0, 9], np.int16))
            {'bitmask': array([80], dtype=uint8), 'values': array([7, 9], dtype=int16)}
        """
        flat = words.reshape(-1)
        kept = flat != 0
        return {"bitmask": np.packbits(kept), "values": flat[kept]}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Words:
        """The array of a shape.

        Raises:
            DamagedPartsError: The parts do not fit the shape or each other.
        """
        total = prod(shape)
        _check_length("its bitmask, of one bit a number,", parts["bitmask"], -(-total // 8))
        kept = np.unpackbits(parts["bitmask"]).view(bool)
        if kept[total:].any():
            raise DamagedPartsError("the bits behind the last entry of its bitmask must be 0")
        _check_length("its values, one for each bit that is set,", parts["values"], int(np.count_nonzero(kept)))
        words = np.zeros(total, parts["values"].dtype)
        words[kept[:total]] = parts["values"]
        return words.reshape(shape)


@dataclass(frozen=True)
class Indices:
    """The places of the words that are not zero: how many each 256 words hold, and where among these; and the words."""

    name: ClassVar[str] = "indices"
    part_types: ClassVar[Mapping[str, str]] = {"counts": "int16", "offsets": "uint8", "values": "words"}

    def encode(self, words: Words) -> Parts:
        """The parts of an array.

        Example:
            >>> Indices().encode(np.array([0] * 300 + [5, 0, 6], np.int32))["offsets"].tolist()
            [44, 46]
        """
        flat = words.reshape(-1)
        indices = np.flatnonzero(flat)
        counts = np.bincount(indices // BLOCK, minlength=-(-flat.size // BLOCK)).astype(np.int16)
        return {"counts": counts, "offsets": (indices % BLOCK).astype(np.uint8), "values": flat[indices]}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Words:
        """The array of a shape.

        Raises:
            DamagedPartsError: The parts do not fit the shape or each other.
        """
        total, (counts, offsets, values) = prod(shape), (parts[part] for part in self.part_types)
        _check_length(f"its counts, one for each {BLOCK} numbers,", counts, -(-total // BLOCK))
        if counts.size and (counts.min() < 0 or int(counts.sum(dtype=np.int64)) != offsets.size):
            raise DamagedPartsError(f"its counts must be from 0 on and add up to its {offsets.size:,} offsets")
        _check_length("its values, one for each offset,", values, offsets.size)
        indices = np.repeat(np.arange(0, total, BLOCK), counts) + offsets
        if indices.size and (indices[-1] >= total or bool((np.diff(indices) <= 0).any())):
            raise DamagedPartsError(f"its indices must ascend, and be below {total:,}")
        words = np.zeros(total, values.dtype)
        words[indices] = values
        return words.reshape(shape)


@dataclass(frozen=True)
class NofM:
    """Of each group of words, as many are stored, and their places in the group in as few bits as hold a place.

    ``values`` has the array's shape with the axis last and shortened to what is kept of it, as kernels for n:m take it.

    Attributes:
        num_zeros: Zeros in each group, at least.
        group_size: 2, 4, 8 or 16.
        axis: Along which the groups lie.
    """

    num_zeros: int
    group_size: int
    axis: int
    name: ClassVar[str] = "n_m"
    part_types: ClassVar[Mapping[str, str]] = {"positions": "uint8", "values": "words"}

    @property
    def kept(self) -> int:
        """Words that are stored of each group."""
        return self.group_size - self.num_zeros

    @property
    def bits(self) -> int:
        """Bits of a position."""
        return self.group_size.bit_length() - 1

    def encode(self, words: Words) -> Parts:
        """The parts of an array.

        Example:
            >>> parts = NofM(2, 4, axis=1).encode(np.array([[0, 7, 0, 9, 5, 0, 0, 0]], np.int16))
            >>> parts["values"].tolist(), np.unpackbits(parts["positions"]).tolist()
            ([[7, 9, 5, 0]], [0, 1, 1, 1, 0, 0, 0, 1])
        """
        last = np.moveaxis(words, self.axis, -1)
        groups = last.reshape(-1, self.group_size)
        # zeros behind all else, which stays in its order
        places = np.sort(np.argsort(groups == 0, axis=1, kind="stable")[:, : self.kept].astype(np.uint8), axis=1)
        values = np.take_along_axis(groups, places, axis=1)
        bits = np.unpackbits(places.reshape(-1, 1), axis=1)[:, 8 - self.bits :]
        shape = *last.shape[:-1], last.shape[-1] // self.group_size * self.kept
        return {"positions": np.packbits(bits), "values": values.reshape(shape)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Words:
        """The array of a shape.

        Raises:
            DamagedPartsError: The parts do not fit the shape or each other.
        """
        size, total = self.group_size, prod(shape)
        if not (size in GROUP_SIZES and 0 < self.num_zeros < size and 0 <= self.axis < len(shape)):
            raise DamagedPartsError(f"it must say how many of 2, 4, 8 or 16 are zero along which axis, but says {self}")
        if shape[self.axis] % size:
            raise DamagedPartsError(
                f"its axis {self.axis} must be of whole groups of {size}, but has {shape[self.axis]}"
            )
        number = total // size * self.kept
        _check_length("its values", parts["values"], number)
        _check_length(f"its positions, of {self.bits} bits each,", parts["positions"], -(-number * self.bits // 8))
        bits = np.unpackbits(parts["positions"])
        if bits[number * self.bits :].any():
            raise DamagedPartsError("the bits behind the last of its positions must be 0")
        weights = 1 << np.arange(self.bits, dtype=np.uint8)[::-1]
        places = (bits[: number * self.bits].reshape(-1, self.bits) @ weights).reshape(-1, self.kept)
        if bool((places[:, 1:] <= places[:, :-1]).any()):
            raise DamagedPartsError("its positions must ascend in each group")
        groups = np.zeros((total // size, size), parts["values"].dtype)
        np.put_along_axis(groups, places.astype(np.intp), parts["values"].reshape(-1, self.kept), axis=1)
        moved = *shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis]
        return np.ascontiguousarray(np.moveaxis(groups.reshape(moved), -1, self.axis))


Form = Dense | Bitmask | Indices | NofM
# Those that need no more said.
PLAIN_FORMS: Mapping[str, Form] = {form.name: form for form in (Dense(), Bitmask(), Indices())}


def smallest_form(words: Words) -> Form:
    """The form in which an array takes the fewest bytes of a file; of several such forms that which is named first.

    They are: dense, n:m (of at least half zeros, along one of the first two axes), bitmask, indices. A small array is
    dense: each part more is to be named in the file.

    Example:
        >>> smallest_form(np.array([[1, 0, 0, 0, 0, 2, 0, 0]] * 20, np.int32))
        NofM(num_zeros=3, group_size=4, axis=1)
        >>> smallest_form(np.array([1, 0, 0], np.int32))
        Dense()
    """
    total, size = words.size, words.itemsize
    kept = words != 0
    nonzero = int(np.count_nonzero(kept))
    bitmask = nonzero * size + -(-total // 8) + PART_BYTES
    indices = nonzero * (size + 1) + 2 * -(-total // BLOCK) + 2 * PART_BYTES
    found: list[tuple[int, Form]] = [(total * size, Dense())]
    if nonzero > 0 and bitmask < total * size:
        found += [(_n_m_bytes(form, total, size), form) for form in _n_m_forms(kept)]
    found += [(bitmask, Bitmask()), (indices, Indices())]
    return min(found, key=lambda pair: pair[0])[1]


def _n_m_bytes(form: NofM, total: int, size: int) -> int:
    number = total // form.group_size * form.kept
    return number * size + -(-number * form.bits // 8) + PART_BYTES


def _n_m_forms(kept: npt.NDArray[np.bool_]) -> list[NofM]:
    """The n:m patterns that an array has, with at least half zeros; ``kept`` says where it is not zero."""
    found = []
    for axis in range(min(kept.ndim, 2)):
        counts = kept.view(np.uint8)
        for group_size in GROUP_SIZES:
            if counts.shape[axis] % 2:
                break
            pairs = (slice(None),) * axis
            counts = counts[(*pairs, slice(0, None, 2))] + counts[(*pairs, slice(1, None, 2))]
            most = int(counts.max())
            if 2 * most <= group_size:
                found.append(NofM(group_size - most, group_size, axis))
    return found


def _check_length(what: str, part: npt.NDArray[Any], number: int) -> None:
    if part.size != number:
        raise DamagedPartsError(f"{what} must be {number:,}, but are {part.size:,}")
