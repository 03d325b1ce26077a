"""Layers with weights: they read the channels of their input, and make new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.slim.flow import Flow, Reader
from lightning_prune.slim.ops.operation import Operation, Result, Rule
from lightning_prune.slim.ops.pinned import pinned
from lightning_prune.slim.values import Value, along, compact, elementwise, known, narrowed, varies

__all__ = ["RULES"]


def _linear(flow: Flow, operation: Operation) -> Result:
    arguments = operation.arguments
    return _read(flow, operation, arguments["input"], arguments["weight"], arguments["bias"], dim=-1, pads=False)


def _addmm(flow: Flow, operation: Operation) -> Result:
    arguments = operation.arguments
    if arguments["beta"] != 1 or arguments["alpha"] != 1:
        return pinned(flow, operation)
    return _read(
        flow, operation, arguments["mat1"], arguments["mat2"], arguments["self"], dim=-1, pads=False, flip=True
    )


def _convolution(flow: Flow, operation: Operation) -> Result:
    arguments = operation.arguments
    value, weight = arguments["input"], arguments["weight"]
    transposed = "transpose" in operation.name or bool(arguments.get("transposed"))
    rank = len(weight.shape) - 2
    kernel = weight.shape[2:]
    padding = arguments["padding"]
    if isinstance(padding, str):
        pads = padding != "valid" and any(size > 1 for size in kernel)
    else:
        pads = any(size != 0 for size in padding)
    if transposed:  # at the border fewer weights meet an input, and between strides none
        pads = pads or any(size != 1 for size in (*kernel, *arguments["stride"], *_ones(arguments["output_padding"])))
    groups = arguments["groups"]
    dim = -rank - 1
    if groups > 1:
        return _grouped(flow, operation, value, weight, arguments["bias"], dim, groups, transposed, pads)
    return _read(flow, operation, value, weight, arguments["bias"], dim=dim, pads=pads, flip=transposed)


def _ones(sizes: Sequence[int]) -> list[int]:
    return [size + 1 for size in sizes]


def _read(
    flow: Flow,
    operation: Operation,
    value: Value,
    weight: Value,
    bias: Value | None,
    *,
    dim: int,
    pads: bool,
    flip: bool = False,
) -> Result:
    """A weight that sums over all channels of its input, which lie along ``dim`` (negative)."""
    if weight.state is None or value.state is not None or not value.from_inputs:
        return pinned(flow, operation)
    axis, out_axis = weight.state.axes[0 if flip else 1], weight.state.axes[1 if flip else 0]
    if axis is None or out_axis is None:
        return pinned(flow, operation)
    name = weight.state.name
    ids = flow.slots_of(name, axis)
    flow.unite(along(ids, dim), value.ids)
    constants = per_channel(value.constant, value.shape, dim)
    state = None if bias is None else bias.state
    holder = flow.bias_holder(name, operation.module) if bias is None else None
    followed = holder is not None if bias is None else state is not None and len(bias.shape) == 1
    outputs = flow.slots_of(name, out_axis)
    if bias is not None:
        if followed:
            flow.unite(bias.ids, outputs)
        else:
            flow.unite(along(outputs, dim), bias.ids.expand(operation.shape))
    _count(flow, name, out_axis, (value.shape if flip and dim < -1 else operation.shape), dim)
    flow.readers.append(
        Reader(
            name,
            axis,
            out_axis,
            ids,
            constants,
            foldable=not pads and followed,
            bias=None if state is None else state.name,
            module=holder,
        )
    )
    live = flow.live(name, out_axis, axis)
    made = _sums(flow.tensors[name].movedim((out_axis, axis), (0, 1)), live, constants[None], pads=pads)
    if made is not None and bias is not None:
        made = None if bias.constant is None or len(bias.shape) != 1 else made + bias.constant
    constant = None if made is None else known(along(made, dim).expand(operation.shape))
    return Value(along(outputs, dim).expand(operation.shape), constant)


def _count(flow: Flow, name: str, out_axis: int, shape: torch.Size, dim: int) -> None:
    """Note how often each value of a weight is multiplied: at each place of the result, or of a transposed input."""
    flow.out_axes[name] = out_axis
    flow.positions[name] += shape.numel() // shape[dim]


def per_channel(constant: Tensor | None, shape: torch.Size, dim: int) -> Tensor:
    """The constants of channels along ``dim`` (negative), NaN where they change from place to place."""
    count = shape[dim]
    if constant is None:
        return torch.full((count,), torch.nan, dtype=torch.float64)
    rows = narrowed(constant).movedim(dim, 0)
    rows = rows.expand(count, *rows.shape[1:]).reshape(count, -1)
    same = (rows == rows[:, :1]).all(1)
    return rows[:, 0].masked_fill(~same, torch.nan)


def _sums(weight: Tensor, live: Tensor, constants: Tensor, *, pads: bool) -> Tensor | None:
    """What output channels add up to without their bias, where they do not depend on the input.

    Args:
        weight: Shape ``(C_out, C_in, *K)``.
        live: Where it is not all zero, shape ``(C_out, C_in)``.
        constants: Of what each output channel reads, shape ``(1 or C_out, C_in)``.
        pads: Whether zeros are put around the input, beside which a constant is not the same everywhere.

    Returns:
        Float64 of shape ``(C_out,)``, NaN of those that depend on it; None if all do.
    """
    open_inputs = constants.isnan() if not pads else constants != 0  # NaN is not 0
    varying = (live & open_inputs).any(1)
    if bool(varying.all()):
        return None
    numbers = constants.masked_fill(open_inputs, 0.0)
    result = torch.full((len(weight),), torch.nan, dtype=torch.float64)
    rows = ~varying
    if bool((numbers != 0).any()):
        summed = (
            weight[rows].detach().double().flatten(2).sum(2) if weight.dim() > 2 else weight[rows].detach().double()
        )
        result[rows] = (summed * (numbers if len(numbers) == 1 else numbers[rows])).sum(1)
    else:
        result[rows] = 0.0
    return result


def _grouped(
    flow: Flow,
    operation: Operation,
    value: Value,
    weight: Value,
    bias: Value | None,
    dim: int,
    groups: int,
    transposed: bool,
    pads: bool,
) -> Result:
    """A convolution in groups: a group goes as a whole, inputs and outputs."""
    plain = weight.state is not None and weight.state.axes == tuple(range(len(weight.shape)))
    if not plain or value.state is not None or (bias is not None and (bias.state is None or len(bias.shape) != 1)):
        return pinned(flow, operation)
    name = weight.state.name if weight.state is not None else ""
    rows = flow.slots_of(name, 0)  # (C_out,), or of a transposed convolution (C_in,)
    count = operation.shape[dim]
    outputs = flow.new(count) if bias is None else bias.ids.expand(count)
    inputs = value.ids.movedim(dim, 0)
    first = rows.reshape(groups, -1)[:, :1]
    flow.unite(first, rows.reshape(groups, -1))
    flow.unite(first, outputs.reshape(groups, -1))
    members = inputs.reshape(groups, len(inputs) // groups, *inputs.shape[1:])
    flow.unite(first.reshape(groups, *[1] * (members.dim() - 1)), members)
    _count(flow, name, 0, value.shape if transposed else operation.shape, dim)
    tensor = flow.tensors[name]
    if transposed:  # (C_in, C_out / groups, *K) to (C_out, C_in / groups, *K)
        tensor = tensor.reshape(groups, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
    constants = per_channel(value.constant, value.shape, dim).reshape(groups, -1)
    constants = constants.repeat_interleave(count // groups, 0)
    live = (tensor != 0).flatten(2).any(2)
    made = _sums(tensor, live, constants, pads=pads)
    if bias is not None:
        made = None if made is None or bias.constant is None else made + bias.constant
    constant = None if made is None else known(along(made, dim).expand(operation.shape))
    return Value(along(outputs, dim).expand(operation.shape), constant)


def _norm(flow: Flow, operation: Operation) -> Result:
    """A batch or instance norm: each channel is moved and scaled on its own."""
    arguments = operation.arguments
    value = arguments["input"]
    names = ("weight", "bias", "running_mean", "running_var")
    states: dict[str, Any] = {name: arguments.get(name) for name in names}
    own = {name: state for name, state in states.items() if state is not None}
    if any(state.state is None for state in own.values()) or value.state is not None:
        return pinned(flow, operation)
    shape, ones = value.shape, [1] * (len(value.shape) - 2)
    moved = {
        name: Value(state.ids.reshape(-1, *ones), _per_channel_view(state.constant, ones), state.state)
        for name, state in own.items()
    }
    ids = value.ids
    for state in own.values():
        flow.unite(state.ids.reshape(-1, *ones), ids)
    owner = next((state.state.name.rpartition(".")[0] for state in own.values()), operation.module)
    if hasattr(flow.modules.get(owner), "num_features"):
        flow.features[owner] = ids.movedim(1, 0).flatten(1)[:, 0]
    statistics = bool(arguments.get("training", arguments.get("use_input_stats"))) or "running_mean" not in own
    scale, shift = (_number(moved.get(name), default) for name, default in (("weight", 1.0), ("bias", 0.0)))
    mean, variance = (_number(moved.get(name), 0.0) for name in ("running_mean", "running_var"))
    number = torch.full((), torch.nan, dtype=torch.float64) if value.constant is None else value.constant
    epsilon = arguments["eps"]

    def compute(number: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        normed = number * 0 if statistics else (number - mean) * (variance + epsilon).rsqrt()
        return torch.where(scale == 0, 0.0, normed * scale) + shift

    if statistics:
        number = _uniform(value, number)
    constant = elementwise(compute, [number, scale, shift, mean, variance], shape)
    result = Value(ids, known(constant))
    if operation.single:
        return result
    return (result, *(flow.unknown(shape, operation.label) for shape in operation.shapes[1:]))


def _uniform(value: Value, number: Tensor) -> Tensor:
    """The constants of channels that are the same at every place, for a norm that measures its input."""
    if value.constant is None:
        return number
    channels = per_channel(value.constant, value.shape, 1 - len(value.shape))
    return channels.reshape(-1, *[1] * (len(value.shape) - 2))


def _per_channel_view(tensor: Tensor | None, ones: list[int]) -> Tensor | None:
    return None if tensor is None else tensor.reshape(-1, *ones)


def _number(value: Value | None, default: float) -> Tensor:
    if value is None or value.constant is None:
        return torch.tensor(default, dtype=torch.float64)
    return value.constant


def _embedding(flow: Flow, operation: Operation) -> Result:
    """A table from which rows are taken: its columns are the channels."""
    weight = operation.arguments["weight"]
    if weight.state is None or weight.state.axes != (0, 1):
        return pinned(flow, operation)
    name = weight.state.name
    table = flow.tensors[name].detach()
    same = (table == table[:1]).all(0)
    constant = known(table[0].double().masked_fill(~same, torch.nan).expand(operation.shape))
    flow.tables.add((name, 1))
    return Value(flow.slots_of(name, 1).expand(operation.shape), constant)


def _matmul(flow: Flow, operation: Operation) -> Result:
    """A product with a matrix of the network, or of two tensors that it computes."""
    left, right = operation.args[0], operation.args[1]
    if right.state is not None and len(right.shape) == 2 and left.state is None and len(left.shape) > 1:
        return _read(flow, operation, left, right, None, dim=-1, pads=False, flip=True)
    if left.state is not None or right.state is not None or min(len(left.shape), len(right.shape)) < 2:
        return pinned(flow, operation)
    return _weighted(flow, operation, left, right)


def _attention(flow: Flow, operation: Operation) -> Result:
    """Attention: queries and keys stay, the channels of values pass."""
    arguments = operation.arguments
    for name in ("query", "key", "attn_mask"):
        if arguments[name] is not None:
            flow.pin(arguments[name], f"{operation.label}, queries and keys")
    value = arguments["value"]
    if value.state is not None or varies(value.ids, -2) or value.shape[:-2] != operation.shape[:-2]:
        return pinned(flow, operation)
    ids = value.ids.select(-2, 0).unsqueeze(-2).expand(operation.shape)
    return Value(ids, _zeros_of(value, operation.shape))


def _weighted(flow: Flow, operation: Operation, left: Value, right: Value) -> Result:
    """A product of two tensors: what is summed over stays, the channels of one side pass."""
    if varies(left.ids, -1):
        flow.pin(left, f"{operation.label}, which sums over it")
    if varies(right.ids, -2):
        flow.pin(right, f"{operation.label}, which sums over it")
    shape = operation.shape
    if varies(right.ids, -1) and not varies(right.ids, -2):
        other, carried, dim = left, right, -2
    elif varies(left.ids, -2) and not varies(left.ids, -1):
        other, carried, dim = right, left, -1
    else:
        return pinned(flow, operation)
    flow.pin(other, f"{operation.label}, beside what it weights")
    row = carried.ids.select(dim, 0).unsqueeze(dim)
    return Value(row.expand(shape), _zeros_of(carried, shape, dim))


def _zeros_of(value: Value, shape: torch.Size, dim: int = -2) -> Tensor | None:
    """Where every weighted sum along ``dim`` is zero, because all its terms are."""
    if value.constant is None:
        return None
    zero = (narrowed(value.constant) == 0).all(dim, keepdim=True)
    numbers = torch.where(zero, 0.0, torch.nan).double()
    return known(compact(numbers.expand(shape)))


RULES: dict[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), _norm),
    "embedding": _embedding,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "scaled_dot_product_attention": _attention,
}
