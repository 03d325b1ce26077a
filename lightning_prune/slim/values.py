"""What is known of a tensor of the network: to which slot each of its elements belongs, and which of them are constant.

Both are tensors of the network's tensor's own shape, and compact: a dimension along which nothing changes has stride 0,
so that a feature map takes the memory of its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["State", "Value", "along", "compact", "elementwise", "known", "narrowed", "varies"]


@dataclass(frozen=True)
class State:
    """A parameter or buffer as an operand: its name, and which of its axes each dimension shows.

    Attributes:
        name: Its name in the model.
        axes: An axis, or None of a dimension of size 1 that was put in, per dimension.
    """

    name: str
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """One tensor of the network.

    Attributes:
        ids: Int64 of the tensor's shape: which slot each element belongs to. What goes is all elements of a slot.
        constant: Float64 of the tensor's shape: the value of an element that does not depend on the model's inputs, NaN
            of one that does; None if all do.
        state: Which parameter or buffer it is, if it is one and nothing else.
        from_inputs: Whether anything in it depends on the model's inputs.
    """

    ids: Tensor
    constant: Tensor | None = None
    state: State | None = None
    from_inputs: bool = True

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.ids.shape


def known(constant: Tensor | None) -> Tensor | None:
    """The constants, or None if none is known."""
    if constant is None:
        return None
    return None if bool(narrowed(constant).isnan().all()) else compact(constant)


def varies(tensor: Tensor, dim: int) -> bool:
    """Whether a compact tensor changes along a dimension."""
    return tensor.shape[dim] > 1 and tensor.stride(dim) != 0


def narrowed(tensor: Tensor) -> Tensor:
    """A compact tensor with size 1 where nothing changes."""
    for dim in range(tensor.dim()):
        if tensor.shape[dim] > 1 and tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def compact(tensor: Tensor) -> Tensor:
    """The same numbers, with stride 0 along each dimension in which nothing changes."""
    shape, small = tensor.shape, narrowed(tensor)
    for dim in range(small.dim()):
        if small.shape[dim] > 1:
            first = small.narrow(dim, 0, 1)
            same = small == first
            if small.is_floating_point():
                same |= small.isnan() & first.isnan()
            if bool(same.all()):
                small = first
    return small.clone().expand(shape) if small.numel() < tensor.numel() else small.expand(shape)


def along(tensor: Tensor, dim: int) -> Tensor:
    """A vector as it stands along one dimension of a tensor with ``dim`` counted from the end (negative)."""
    return tensor.reshape(-1, *[1] * (-dim - 1))


def elementwise(function: Callable[..., Tensor], tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Call a function of tensors that broadcast, on the parts in which something changes.

    Returns:
        A compact tensor of ``shape``.
    """
    wide = [tensor.expand(shape) for tensor in tensors]
    small = list(wide)
    for dim in range(len(shape)):
        if not any(varies(tensor, dim) for tensor in wide):
            small = [tensor.narrow(dim, 0, min(1, shape[dim])) for tensor in small]
    return compact(function(*small).expand(shape))
