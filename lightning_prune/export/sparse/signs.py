"""Zeros with a sign: ``weight * mask``, as many libraries prune, makes -0.0 of half of all zeros.

The sign of each zero is stored in a bit, so that these do not count as numbers; and they come back as they were.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_prune.export.sparse.forms import DamagedPartsError, Words

__all__ = ["join_signs", "split_signs"]


def split_signs(words: Words) -> tuple[Words, npt.NDArray[np.uint8]]:
    """Floating numbers with +0.0 for -0.0, and one bit for each zero in order: whether it was -0.0.

    Example:
        >>> words, signs = split_signs(np.array([1.0, -0.0, 0.0, -0.0]).view(np.int64))
        >>> words.view(np.float64).tolist(), np.unpackbits(signs).tolist()
        ([1.0, 0.0, 0.0, 0.0], [1, 0, 1, 0, 0, 0, 0, 0])
    """
    negative = words == _minus_zero(words.dtype)
    plain = np.where(negative, words.dtype.type(0), words)
    return plain, np.packbits(negative[plain == 0])


def join_signs(words: Words, signs: npt.NDArray[np.uint8]) -> None:
    """The inverse, in place.

    Raises:
        DamagedPartsError: There is not one bit for each zero.
    """
    zero = words == 0
    number = int(np.count_nonzero(zero))
    bits = np.unpackbits(signs).view(bool)
    if signs.size != -(-number // 8) or bits[number:].any():
        raise DamagedPartsError(f"its signs must be one bit for each of its {number:,} zeros")
    words[zero] = np.where(bits[:number], _minus_zero(words.dtype), words.dtype.type(0))


def _minus_zero(dtype: np.dtype[Any]) -> Any:
    """The word of which only the highest bit is set."""
    return np.array([1 << (8 * dtype.itemsize - 1)], f"u{dtype.itemsize}").view(dtype)[0]
