"""What the operations of a network say of its slots: which are one channel, which must stay, and who reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_prune.slim.values import State, Value, compact, narrowed, varies

__all__ = ["Flow", "Pin", "Reader"]


@dataclass(frozen=True)
class Pin:
    """Slots that must stay, and why.

    Attributes:
        ids: The slots.
        reason: In a few words.
    """

    ids: Tensor
    reason: str


@dataclass(frozen=True)
class Reader:
    """A weight that sums over channels: where a constant channel can end, as a part of the bias.

    Attributes:
        weight: The weight's name.
        axis: The axis of the weight that is summed over, of size ``C_in``.
        out_axis: The axis of the results.
        ids: The slots of what is read, shape ``(C_in,)``.
        constants: Their values, float64, NaN where they depend on the input.
        foldable: Whether a constant that is not zero may move into the bias.
        bias: The bias's name, or the name that it will have.
        module: The module that gets a bias; None if it has one, or nothing can hold one.
    """

    weight: str
    axis: int
    out_axis: int
    ids: Tensor
    constants: Tensor
    foldable: bool
    bias: str | None
    module: str | None


@dataclass
class Flow:
    """What is known of the slots so far.

    Args:
        tensors: Parameters and buffers by name; a tensor that has several names under one of them.
        modules: All modules by name; a module that has several names under each.
    """

    tensors: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    size: int = 0
    slots: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    even: list[Tensor] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)
    positions: Counter[str] = field(default_factory=Counter)  # how often each value of a weight is multiplied
    out_axes: dict[str, int] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    tables: set[tuple[str, int]] = field(default_factory=set)  # columns of embeddings
    _live: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)

    def new(self, count: int) -> Tensor:
        """Slots that were not there before, shape ``(count,)``."""
        ids = torch.arange(self.size, self.size + count)
        self.size += count
        return ids

    def slots_of(self, name: str, axis: int) -> Tensor:
        """The slots of one axis of a parameter or buffer."""
        if (name, axis) not in self.slots:
            self.slots[name, axis] = self.new(self.tensors[name].shape[axis])
        return self.slots[name, axis]

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Say that the slots of two tensors, which broadcast, can only go together."""
        first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        for dim in range(first.dim()):
            if not varies(first, dim) and not varies(second, dim):
                first, second = (ids.narrow(dim, 0, min(1, ids.shape[dim])) for ids in (first, second))
        self.edges.append((first.reshape(-1), second.reshape(-1)))

    def pin(self, value: Value, reason: str) -> None:
        """Say that the slots of a tensor must stay; all axes of it if it is a parameter."""
        if value.state is not None:
            self.fixed.setdefault(value.state.name, reason)
        self.pins.append(Pin(narrowed(value.ids).reshape(-1), reason))

    def unknown(self, shape: torch.Size, reason: str, constant: Tensor | None = None) -> Value:
        """A tensor of which nothing is known but that all of it must stay."""
        ids = self.new(1)
        self.pins.append(Pin(ids, reason))
        return Value(ids.reshape([1] * len(shape)).expand(shape), constant)

    def keep_even(self, ids: Tensor) -> None:
        """Say that what is left of a tensor must again be a tensor: as many in each row, rows in each matrix."""
        if sum(varies(ids, dim) for dim in range(ids.dim())) > 1:
            self.even.append(ids)

    def state(self, name: str) -> Value:
        """A parameter or buffer as an operand."""
        tensor = self.tensors[name]
        wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        constant = compact(tensor.detach().double()) if tensor.dim() < 2 or len(wide) < 2 else None
        state = State(name, tuple(range(tensor.dim())))
        if len(wide) == 1:
            ids = self.slots_of(name, wide[0])
            shape = [-1 if axis == wide[0] else 1 for axis in range(tensor.dim())]
            return Value(ids.reshape(shape), constant, state, from_inputs=False)
        ids = self.new(1).reshape([1] * tensor.dim()).expand(tensor.shape)
        return Value(ids, constant, state, from_inputs=False)

    def with_numbers(self, value: Value) -> Value:
        """A parameter in several dimensions with its numbers as constants, read only where they can matter."""
        if value.state is None:
            return value
        tensor = self.tensors[value.state.name].detach().double()
        shown = [axis for axis in value.state.axes if axis is not None]
        hidden = [axis for axis in range(tensor.dim()) if axis not in shown]  # of size 1
        sizes = [1 if axis is None else tensor.shape[axis] for axis in value.state.axes]
        numbers = tensor.permute(*shown, *hidden).reshape(sizes).expand(value.shape)
        return Value(value.ids, compact(numbers), value.state, value.from_inputs)

    def shown_along(self, value: Value, dim: int) -> Tensor:
        """The slots of a parameter along one dimension of it, standing there, expanded over the others."""
        if value.state is None:
            raise ValueError("only a parameter or a buffer has slots per axis")
        axis = value.state.axes[dim]
        if axis is None or value.shape[dim] == 1:
            return value.ids
        shape = [-1 if other == dim % len(value.shape) else 1 for other in range(len(value.shape))]
        return self.slots_of(value.state.name, axis).reshape(shape).expand(value.shape)

    def bias_holder(self, weight: str, caller: str) -> str | None:
        """The layer without a bias that multiplies with a weight and can get a bias, or None.

        Args:
            weight: The weight's name.
            caller: The module that seems to call the operation; its name is not always one that the model knows.
        """
        holders: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.bias is None
            if layer and module.weight is self.tensors[weight]:
                holders.setdefault(id(module), []).append(name)
        for names in holders.values():
            if caller in names or len(holders) == 1:
                return names[0]
        return None

    def live(self, name: str, out_axis: int, axis: int) -> Tensor:
        """Which weights are not all zero over the kernel, bool, shape ``(C_out, C_in)``."""
        if (name, out_axis, axis) not in self._live:
            weight = self.tensors[name].detach().movedim((out_axis, axis), (0, 1))
            self._live[name, out_axis, axis] = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
        return self._live[name, out_axis, axis]
