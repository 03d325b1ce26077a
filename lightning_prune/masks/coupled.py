"""One choice for channels of several weights: ranked by the norm of all that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.errors import PruningError
from lightning_prune.masks.selection import pruned_count

__all__ = ["along_axis", "keep_coupled"]


@torch.no_grad()
def keep_coupled(members: Sequence[tuple[Tensor, int, Tensor]], sparsity: float, units: Tensor | None = None) -> Tensor:
    """Keep the coupled channels whose weights are largest together in L2 norm.

    Args:
        members: Weights, the axis along which the channels of each lie, and the number of the coupled channel that each
            of these is a part of, int64 of shape ``(C,)``; -1 for those that are in no choice.
        sparsity: Fraction of channels to prune, in [0, 1].
        units: What is ranked together, int64 of shape ``(channels,)``. Default: all.

    Returns:
        Bool of shape ``(channels,)``, True = keep. In each unit exactly ``floor(channels * sparsity)`` are pruned;
        among equal norms the first are kept.

    Raises:
        PruningError: A weight holds NaN.

    Example:
        >>> filters, shifts = torch.tensor([[3.0], [0.0], [0.0]]), torch.tensor([0.0, 4.0, 5.0])
        >>> keep_coupled([(filters, 0, torch.arange(3)), (shifts, 0, torch.arange(3))], 0.4).tolist()
        [False, True, True]
    """
    count = 1 + max(int(classes.max()) for _, _, classes in members) if units is None else len(units)
    norms = torch.zeros(count, dtype=torch.float64)
    for weight, axis, classes in members:
        rows = weight.detach().movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight.detach().unsqueeze(1)
        squares = torch.linalg.vector_norm(rows.float() if rows.dtype != torch.float64 else rows, dim=1).double() ** 2
        chosen = classes >= 0
        norms.index_add_(0, classes[chosen], squares.cpu()[chosen])
    if bool(norms.isnan().any()):
        raise PruningError("a weight holds NaN")
    keep = torch.ones(count, dtype=torch.bool)
    units = torch.zeros(count, dtype=torch.int64) if units is None else units
    for unit in range(int(units.max()) + 1 if count else 0):
        inside = (units == unit).nonzero().flatten()
        order = inside[norms[inside].sort(descending=True, stable=True).indices]
        keep[order[len(order) - pruned_count(len(order), sparsity) :]] = False
    return keep


def along_axis(keep: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """What is kept of each channel, bool of shape ``(C,)``, expanded to a mask of some shape.

    Example:
        >>> along_axis(torch.tensor([True, False]), 1, (2, 2)).tolist()
        [[True, False], [True, False]]
    """
    return keep.reshape([-1 if place == axis else 1 for place in range(len(shape))]).expand(shape)
