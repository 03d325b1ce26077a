"""Products of weights and masks, in place and in pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_prune.sharding import local_part

__all__ = ["apply_mask", "keep_in_place", "multiply_in_place", "ones", "put_pruned", "select_pruned", "split"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

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

    The product with the mask is taken of the numbers' bits, so that an infinite weight is kept or pruned like any other
    and a zero is +0.0, never -0.0.
    """
    for factor, weight, pruned in _passes(mask, _bits(dense), _bits(stash)):
        torch.addcmul(weight, weight, factor, value=-1, out=pruned)
        weight.sub_(pruned)


def keep_in_place(tensor: Tensor, mask: Tensor) -> None:
    """Keep a tensor where the mask is 1 and write +0.0 where it is 0, whatever it holds there; see :func:`split`."""
    for factor, piece in _passes(mask, _bits(tensor)):
        piece.mul_(factor)


def multiply_in_place(tensor: Tensor, mask: Tensor) -> None:
    """``tensor *= mask``, by the arithmetic of floats: what is not finite does not become a number."""
    for factor, piece in _passes(mask, tensor):
        piece.mul_(factor)


def _bits(tensor: Tensor) -> Tensor:
    """The memory of a tensor of floats as integers of the same size."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def _passes(mask: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The mask as numbers of the tensors' dtype, and the tensors: piece by piece, or whole where no piece fits all.

    One conversion and a product of two tensors of one dtype are three times as fast as a product with bytes.
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
    if first.device.type != "cpu" or any(
        tensor.shape != first.shape or tensor.stride() != first.stride() for tensor in tensors
    ):
        return None
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    flat = [tensor.permute(order) for tensor in tensors]
    if not flat[0].is_contiguous():
        return None
    return zip(*(torch.split(tensor.view(-1), _CHUNK) for tensor in flat), strict=True)
