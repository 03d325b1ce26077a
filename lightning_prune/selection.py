"""Exact selection of the smallest magnitudes."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from lightning_prune.errors import PruningError

__all__ = ["keep_largest", "keep_largest_of_all", "pruned_count"]


def pruned_count(groups: int, sparsity: float) -> int:
    """Number of groups to prune: ``floor(groups * sparsity)``, counted in integers.

    A decimal fraction such as 0.29 lies a little below the number that was written; an allowance of ``2**-50`` a
    group, far below one group and above the rounding of a double, makes it count as written.

    Args:
        groups: Number of groups.
        sparsity: Fraction of groups to prune, in ``[0, 1]``.

    Returns:
        A number from 0 to ``groups``.

    Example:
        >>> pruned_count(100, 0.29), pruned_count(22, 15 / 22), pruned_count(3, 0.5)
        (29, 15, 1)
    """
    exact = Fraction(sparsity) * groups + Fraction(groups, 2**50)
    return min(groups, exact.numerator // exact.denominator)


def keep_largest(values: Tensor, pruned: int, *, out: Tensor | None = None) -> Tensor:
    """Mask of the largest magnitudes."""
    return keep_largest_of_all([values], pruned, out=None if out is None else [out])[0]


def keep_largest_of_all(
    values: Sequence[Tensor], pruned: int, *, out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Mask of the largest magnitudes of several tensors ranked together."""
    flat = torch.cat([value.detach().reshape(-1).abs().double() for value in values])
    if flat.isnan().any():
        raise PruningError("a weight holds NaN: its magnitudes cannot be ranked, and the mask is unchanged.")
    order = torch.argsort(flat, descending=True, stable=True)
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep[order[: flat.numel() - pruned]] = True
    pieces = keep.split([value.numel() for value in values])
    masks = [torch.empty_like(value, dtype=torch.bool) for value in values] if out is None else list(out)
    for mask, piece in zip(masks, pieces, strict=True):
        mask.copy_(piece.view(mask.shape))
    return masks
