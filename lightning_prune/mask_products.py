"""Products of weights and masks, in place and in pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_prune.sharding import local_part

__all__ = ["apply_in_place", "apply_mask", "ones", "put_pruned", "select_pruned", "split"]

_CHUNK = 1 << 19  # elements worked on at once: a pass over several tensors stays in the cache, and 16 threads share it


def ones(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Mask bytes of 1, laid out in memory as the weight where the shapes are the same."""
    weight = local_part(parameter)
    if shape == tuple(weight.shape):
        return torch.ones_like(weight, dtype=torch.uint8)
    return torch.ones(shape, dtype=torch.uint8, device=weight.device)


def apply_mask(parameter: Tensor, mask: Tensor) -> None:
    """Zero a parameter in place where its mask is 0 or False, whatever it holds there: a product would keep NaN."""
    with torch.no_grad():
        local_part(parameter).masked_fill_(mask == 0, 0.0)


def select_pruned(dense: Tensor, mask: Tensor) -> Tensor | None:
    """Give the values where the mask is 0, in row-major order; None if it is 0 nowhere."""
    pruned = mask.expand(dense.shape) == 0
    return dense[pruned] if bool(pruned.any()) else None


def put_pruned(dense: Tensor, mask: Tensor, values: Tensor | None) -> None:
    """Write such values to where they came from."""
    if values is not None:
        dense[mask.expand(dense.shape) == 0] = values.to(dense)


def split(dense: Tensor, mask: Tensor, stash: Tensor) -> None:
    """Split ``dense`` in place into what the mask keeps (stays in ``dense``) and what it prunes (goes to ``stash``).

    ``dense - dense * mask`` is exactly the pruned part, and taking that off ``dense`` leaves +0.0, never -0.0.
    """
    for factor, weight, pruned in _passes(mask, dense, stash):
        torch.addcmul(weight, weight, factor, value=-1, out=pruned)
        weight.sub_(pruned)


def apply_in_place(tensor: Tensor, mask: Tensor, *, zero_is_positive: bool = True) -> None:
    """``tensor *= mask``; adds +0.0 where a weight is written, so that no zero is -0.0."""
    for factor, piece in _passes(mask, tensor):
        piece.mul_(factor)
        if zero_is_positive:
            piece.add_(0.0)


def _passes(mask: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The mask as numbers of the tensors' dtype, and the tensors: piece by piece, or whole where no piece fits all.

    One conversion and a product of floats are three times as fast as a product of floats and bytes.
    """
    dtype = tensors[0].dtype
    chunks = _chunks(mask, *tensors)
    if chunks is None:
        yield (mask.to(dtype), *tensors)
        return
    scratch = torch.empty(min(_CHUNK, mask.numel()), dtype=dtype, device=mask.device)
    for keep, *pieces in chunks:
        yield (scratch[: keep.numel()].copy_(keep), *pieces)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]] | None:
    """Matching flat pieces of tensors of one layout, in memory order; None where they have no common flat view."""
    first = tensors[0]
    if first.device.type != "cpu" or any(one.shape != first.shape or one.stride() != first.stride() for one in tensors):
        return None
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    flat = [one.permute(order) for one in tensors]
    if not flat[0].is_contiguous():
        return None
    return zip(*(torch.split(one.view(-1), _CHUNK) for one in flat), strict=True)
