"""Masks and what they prune, moved between the processes that hold parts of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.sharding import Box, Sharding, add_up, alone

__all__ = ["bring_back", "gather_state", "part_for", "whole_rows"]


def gather_state(
    mask: Tensor, pruned: Tensor | None, weight: Tensor, sharding: Sharding, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | None] | None:
    """Bring a mask and what it prunes to the first process, in the memory of its CPU.

    Args:
        mask: This process's part of the mask, bool.
        pruned: Dense values where it is False, in its order; None if they are forgotten or all zero.
        weight: This process's part of the weight, for its shape, dtype and device.
        sharding: Who holds what.
        shape: Shape of the whole mask.

    Returns:
        The same of the whole weight, the mask as bytes; None in all processes but the first.
    """
    if sharding.is_whole:
        return mask.view(torch.uint8), pruned
    rows = [whole.cpu() for whole in sharding.gather(mask, shape) if whole is not None]
    has_values = alone(add_up([int(pruned is not None)], weight.device), sharding.sum)[0] > 0
    stash = torch.zeros_like(weight)
    if pruned is not None:
        stash[~mask.expand(weight.shape)] = pruned
    whole = torch.cat(rows) if rows else mask
    values: list[Tensor] = []
    start = 0
    for piece in sharding.gather(stash) if has_values else ():
        if piece is not None:
            stop = start + len(piece)
            values.append(piece.cpu()[~whole[start:stop].expand(piece.shape)])
            start = stop
    if not sharding.is_first:
        return None
    return whole.view(torch.uint8), torch.cat(values) if has_values else None


def whole_rows(mask: Tensor, sharding: Sharding, shape: tuple[int, ...], multiple: int) -> Tensor:
    """This process's share of a mask, cut only between rows, and there only at multiples of ``multiple``.

    Args:
        mask: This process's part of the mask, bool.
        sharding: Who holds what of the weight.
        shape: Shape of the whole mask.
        multiple: Rows that stay together.
    """
    boxes = sharding.aligned((multiple, *sharding.shape[1:]))
    held = [box.narrowed(shape) for box in sharding.boxes]
    return sharding.exchange(mask, held, [box.narrowed(shape) for box in boxes])


def part_for(out: Tensor, boxes: Sequence[Box], sharding: Sharding, shape: tuple[int, ...]) -> Tensor:
    """The tensor that this process's part of a mask is to be computed in.

    Args:
        out: The part of the mask that belongs to its piece of the weight.
        boxes: How the weight is cut while the mask is computed.
        sharding: Who holds what of the weight.
        shape: Shape of the whole mask.

    Returns:
        ``out`` itself where the weight is not cut otherwise than it is held.
    """
    if boxes == sharding.boxes:
        return out
    return out.new_empty(boxes[sharding.me].narrowed(shape).shape)


def bring_back(mask: Tensor, boxes: Sequence[Box], sharding: Sharding, shape: tuple[int, ...], out: Tensor) -> None:
    """Bring the parts of a mask to where they belong; arguments as for :func:`part_for`, which gave ``mask``."""
    if mask is not out:
        held, wanted = ([box.narrowed(shape) for box in some] for some in (boxes, sharding.boxes))
        out.copy_(sharding.exchange(mask, held, wanted))
