"""Which slots can only go together: the connected parts of what the network says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["classes_of"]


def classes_of(size: int, edges: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Number the connected parts of a graph of slots.

    Whole arrays at once: each slot points to a slot of a smaller number, each edge lets the higher of its two ends
    point to the lower, and all pointers are shortened until nothing changes.

    Args:
        size: How many slots there are.
        edges: Pairs of slots that belong together, int64, two vectors of equal length each.

    Returns:
        Int64 of shape ``(size,)``: the same number for slots that belong together, counted from 0.

    Example:
        >>> classes_of(5, [(torch.tensor([4, 1]), torch.tensor([3, 3]))]).tolist()
        [0, 1, 2, 1, 1]
    """
    parents = np.arange(size)
    if edges:
        pairs = torch.stack([torch.cat([side[end] for side in edges]) for end in (0, 1)]).numpy()
        pairs = np.unique(np.sort(pairs, axis=0), axis=1) if pairs.shape[1] else pairs
        while True:
            first, second = parents[pairs[0]], parents[pairs[1]]
            apart = first != second
            if not apart.any():
                break
            pairs, first, second = pairs[:, apart], first[apart], second[apart]
            low, high = np.minimum(first, second), np.maximum(first, second)
            np.minimum.at(parents, high, low)
            parents = _shortened(parents)
    return torch.from_numpy(np.unique(parents, return_inverse=True)[1].astype(np.int64))


def _shortened(parents: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Let each slot point to the end of its way."""
    while True:
        further = parents[parents]
        if np.array_equal(further, parents):
            return parents
        parents = further
