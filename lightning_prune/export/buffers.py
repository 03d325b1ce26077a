"""Buffers that calls of a model change, put back to what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

__all__ = ["kept_buffers"]


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[list[str]]:
    """Put buffers back to what they were, whatever calls of the model do to them.

    Yields:
        A list that is empty within, and afterwards holds the names of those that had changed.
    """
    before = [(name, module, dict(module._buffers)) for name, module in model.named_modules()]
    values = [{own: held.clone() if is_plain(held) else held for own, held in row.items()} for _, _, row in before]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for (name, module, row), kept in zip(before, values, strict=True):
            for own, held in row.items():
                if not same(module._buffers.get(own), kept[own]):
                    changed.append(f"{name}.{own}".lstrip("."))
                    if is_plain(held):
                        held.data = cast(Tensor, kept[own])
            module._buffers.clear()
            module._buffers.update(row)


def is_plain(tensor: Tensor | None) -> TypeIs[Tensor]:
    """Whether it is a tensor whose values can be copied and compared: not sparse, quantized or nested."""
    return tensor is not None and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def same(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors hold the same values, NaN in the same places."""
    if tensor is other or not (is_plain(tensor) and is_plain(other)):
        return tensor is other
    return tensor.shape == other.shape and bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())
