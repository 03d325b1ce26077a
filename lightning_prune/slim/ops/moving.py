"""Operations that only move elements: they are run on the slots themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.ops.operation import Operation, Result, Rule, values_in
from lightning_prune.slim.ops.pinned import pinned
from lightning_prune.slim.values import State, Value, compact, known, varies

__all__ = ["RULES"]

_MOVES = (
    "view reshape _unsafe_view flatten unflatten permute transpose t mT numpy_T movedim moveaxis swapaxes squeeze "
    "unsqueeze expand expand_as repeat tile repeat_interleave select slice narrow unbind flip roll rot90 pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle diagonal unfold view_as reshape_as tensor_split "
    "hsplit vsplit"
).split()
_SPLITS = "chunk split split_with_sizes unsafe_chunk unsafe_split unsafe_split_with_sizes".split()
_SAME_AXES = "permute transpose t movedim squeeze unsqueeze expand expand_as view reshape flatten unflatten".split()


def _move(flow: Flow, operation: Operation) -> Result:
    operands = values_in((operation.args, operation.kwargs))
    if len(operands) == 1 and operands[0].state is not None and operation.single:
        shown = _moved_state(operation, operands[0])
        if shown is not None:
            return shown
    operands = [_as_activation(flow, operation, value) for value in operands]
    given = iter(operands)
    table = {id(value): next(given) for value in values_in((operation.args, operation.kwargs))}
    slots = _run(operation, lambda value: table[id(value)].ids)
    constants: Any = None
    if any(value.constant is not None for value in operands):
        constants = _run(operation, lambda value: _filled(table[id(value)]))
    from_inputs = any(value.from_inputs for value in operands)
    if operation.single:
        return _value(slots, constants, from_inputs)
    parts = constants if constants is not None else [None] * len(slots)
    return tuple(_value(ids, part, from_inputs) for ids, part in zip(slots, parts, strict=True))


def _run(operation: Operation, change: Callable[[Value], Tensor]) -> Any:
    """Run a move; a view of what is repeated by stride 0 is a copy."""
    try:
        return operation.run(change)
    except RuntimeError:
        return operation.run(lambda value: change(value).contiguous())


def _join(flow: Flow, operation: Operation) -> Result:
    """Pieces put side by side where none of them has channels: row by row they are the same channels."""
    pieces = [_as_activation(flow, operation, value) for value in values_in(operation.args)]
    dim = operation.arguments.get("dim", 0) % len(operation.shape)
    stacks = operation.name == "stack"
    wide = [piece.ids.unsqueeze(dim) if stacks else piece.ids for piece in pieces if piece.shape != (0,)]
    if len(wide) > 1 and not any(varies(ids, dim) for ids in wide):
        rows = [ids.narrow(dim, 0, 1) for ids in wide]
        for other in rows[1:]:
            flow.unite(rows[0], other)
        constants = [_filled(piece) for piece in pieces]
        joined = torch.stack(constants, dim) if stacks else torch.cat(constants, dim)
        return _value(rows[0].expand(operation.shape), joined, any(piece.from_inputs for piece in pieces))
    return _move(flow, operation)


def _split(flow: Flow, operation: Operation) -> Result:
    """Parts of equal size stay equal: what the forward counts in parts, it counts again."""
    value, dim = operation.arguments["self"], operation.arguments["dim"]
    sizes = {shape[dim] for shape in operation.shapes}
    if len(sizes) == 1 and value.state is None and varies(value.ids, dim % len(value.shape)):
        parts = value.ids.unflatten(dim, (len(operation.shapes), -1))
        flow.keep_even(parts)
    return _move(flow, operation)


def _value(ids: Tensor, constant: Tensor | None, from_inputs: bool) -> Value:
    return Value(compact(ids), known(constant), None, from_inputs)


def _filled(value: Value) -> Tensor:
    if value.constant is not None:
        return value.constant
    return torch.full((), torch.nan, dtype=torch.float64).expand(value.shape)


def _as_activation(flow: Flow, operation: Operation, value: Value) -> Value:
    """A parameter in several dimensions, moved in ways in which its axes are no longer seen, stays as it is."""
    if value.state is None:
        return value
    if sum(size > 1 for size in value.shape) > 1:
        flow.pin(value, f"{operation.label}, of a parameter in several dimensions")
    return Value(value.ids, value.constant, None, from_inputs=False)


def _expanded(count: Tensor, value: Value) -> Tensor:
    return count.expand(value.shape)


def _moved_state(operation: Operation, value: Value) -> Value | None:
    """A parameter whose axes stand in another order, or with dimensions of size 1 between them; else None."""
    state = value.state
    if state is None or operation.name not in _SAME_AXES:
        return None
    # Each axis is told by a number of its own, put through the operation along that axis alone.
    axes: list[int | None] = [None] * len(operation.shape)
    for dim, axis in enumerate(state.axes):
        if value.shape[dim] == 1:
            continue
        count = torch.arange(value.shape[dim]).reshape([-1 if other == dim else 1 for other in range(len(value.shape))])
        moved = compact(_run(operation, partial(_expanded, count)))
        places = [place for place in range(moved.dim()) if varies(moved, place)]
        if len(places) != 1 or moved.shape[places[0]] != value.shape[dim] or axes[places[0]] is not None:
            return None
        axes[places[0]] = axis
    ids = compact(_run(operation, lambda item: item.ids))
    constant = None if value.constant is None else compact(_run(operation, _filled))
    return Value(ids, constant, State(state.name, tuple(axes)), from_inputs=False)


def _pad(flow: Flow, operation: Operation) -> Result:
    """Padding belongs to the channel that it surrounds; new channels made by padding stay."""
    arguments = operation.arguments
    value, sizes = arguments["self"], list(arguments["pad"] if "pad" in arguments else arguments["padding"])
    if value.state is not None:
        return pinned(flow, operation)
    rank = len(value.shape)
    padded = [rank - 1 - index // 2 for index, size in enumerate(sizes) if size != 0]
    if any(varies(value.ids, dim) for dim in padded):
        return pinned(flow, operation)
    ids = value.ids
    for dim in padded:
        ids = ids.narrow(dim, 0, 1)
    constant = None if value.constant is None else known(operation.run(_filled))
    return Value(compact(ids.expand(operation.shape)), constant, None, value.from_inputs)


def _item(flow: Flow, operation: Operation) -> Result:
    sequence, index = operation.args
    result: Value = sequence[index]
    return result


RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_SPLITS, _split),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _join),
    "getitem": _item,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys((f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)), _pad),
}
