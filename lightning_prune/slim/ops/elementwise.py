"""Operations that compute each element from the elements at its place: all of them are one channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.ops.operation import Operation, Result, Rule, values_in
from lightning_prune.slim.values import Value, elementwise, known, varies

__all__ = ["RULES", "aligned"]

# Functions of real numbers: what is constant before them is constant behind them.
_FUNCTIONS = (
    "relu relu6 hardtanh gelu silu sigmoid tanh hardswish hardsigmoid elu leaky_relu softplus softsign mish celu selu "
    "logsigmoid log_sigmoid tanhshrink hardshrink softshrink threshold exp exp2 expm1 log log2 log10 log1p sqrt rsqrt "
    "abs neg sin cos tan atan sinh cosh asinh erf erfc square pow clamp clamp_min clamp_max reciprocal sign sgn round "
    "floor ceil trunc frac nan_to_num add sub rsub div divide true_divide subtract maximum minimum lerp addcmul "
    "addcdiv zeros_like ones_like full_like positive negative logit relu_6"
).split()
# The same number, in another place or of another type.
_SAME = (
    "contiguous clone alias detach lift_fresh_copy to _to_copy dropout feature_dropout alpha_dropout "
    "feature_alpha_dropout type_as float double half bfloat16 dropout_"
).split()
# Their results follow the places, but are not followed as constants.
_PLACES = (
    "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not isnan "
    "isinf fmod remainder floor_divide atan2 rand_like randn_like bernoulli copy heaviside"
).split()


def aligned(flow: Flow, operation: Operation, operands: Sequence[Value], shape: torch.Size) -> Tensor | None:
    """Unite the slots of operands that broadcast to one shape.

    An operand that is repeated over several channels belongs to none of them: it is pinned.

    Returns:
        The slots of the result, or None where no operand has them for all dimensions.
    """
    values = [value for value in operands if not _is_table(value)]
    tables = [value for value in operands if _is_table(value)]
    wide = [value.ids.expand(shape) for value in values]
    dims = range(len(shape))
    changing = {dim for dim in dims if any(varies(ids, dim) for ids in wide)}
    for table in tables:
        shown = [dim for dim in changing if table.shape[dim - len(shape)] > 1] if len(table.shape) else []
        shown = [dim for dim in shown if len(shape) - dim <= len(table.shape)]
        if len(shown) == 1:
            values.append(table)
            wide.append(flow.shown_along(table, shown[0] - len(shape)).expand(shape))
        elif shown:
            flow.pin(table, f"{operation.label}, of a parameter in several dimensions")
            values.append(table)
            wide.append(table.ids.expand(shape))
    united: list[Tensor] = []
    for value, ids in zip(values, wide, strict=True):
        if any(_is_repeated(value.shape, len(shape), dim) for dim in changing):
            if any(varies(ids, dim) for dim in dims) or value.from_inputs or value.state is not None:
                flow.pin(value, f"{operation.label}, which repeats it over channels")
            continue
        united.append(ids)
    if not united:
        return None if changing else (wide[0] if wide else None)
    result = max(united, key=lambda ids: sum(varies(ids, dim) for dim in dims))
    if any(not varies(result, dim) for dim in changing):
        return None
    for ids in united:
        if ids is not result:
            flow.unite(result, ids)
    return result


def _is_table(value: Value) -> bool:
    """Whether it is a parameter with several axes, which has slots along each of them."""
    return value.state is not None and sum(size > 1 for size in value.shape) > 1


def _is_repeated(shape: torch.Size, rank: int, dim: int) -> bool:
    """Whether an operand has a single element along a dimension of a result of a higher rank."""
    own = dim - (rank - len(shape))
    return own < 0 or shape[own] == 1


def _function(flow: Flow, operation: Operation) -> Result:
    return _computed(flow, operation, operation.run)


def _product(flow: Flow, operation: Operation) -> Result:
    return _computed(flow, operation, operation.run, zero_wins=True)


def _places(flow: Flow, operation: Operation) -> Result:
    return _computed(flow, operation, None)


def _same(flow: Flow, operation: Operation) -> Result:
    value = values_in(operation.args)[0]
    if value.shape != operation.shape:
        return _places(flow, operation)
    if value.constant is not None and not operation.floats:  # cut to whole numbers, or to true and false
        whole = torch.where(value.constant == 0, 0.0, torch.nan).double()
        return Value(value.ids, known(whole), None, value.from_inputs)
    return value


def _computed(
    flow: Flow,
    operation: Operation,
    run: Callable[[Callable[[Value], Tensor]], Tensor] | None,
    *,
    zero_wins: bool = False,
) -> Result:
    operands = values_in((operation.args, operation.kwargs))
    shape = operation.shape
    ids = aligned(flow, operation, operands, shape)
    if ids is None:
        for value in operands:
            flow.pin(value, operation.label)
        ids = flow.unknown(shape, operation.label).ids
    constant = None
    some = any(value.constant is not None for value in operands)
    if run is not None and some:
        operands = [flow.with_numbers(value) if _is_table(value) else value for value in operands]
    if run is not None and some and (zero_wins or all(value.constant is not None for value in operands)):
        constant = _constant(run, operands, shape, zero_wins=zero_wins)
    return Value(ids, constant, None, any(value.from_inputs for value in operands))


def _constant(
    run: Callable[[Callable[[Value], Tensor]], Tensor], operands: Sequence[Value], shape: torch.Size, *, zero_wins: bool
) -> Tensor | None:
    """The constants of a result: computed by the operation itself where all operands are constant."""
    nothing = torch.full((), torch.nan, dtype=torch.float64)
    numbers = [nothing if value.constant is None else value.constant for value in operands]

    def compute(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        result = run(lambda _: next(given))
        unknown = torch.stack([part.isnan().expand(result.shape) for part in tensors]).any(0)
        result = result.double().masked_fill(unknown, torch.nan)
        if zero_wins:
            zero = torch.stack([(part == 0).expand(result.shape) for part in tensors]).any(0)
            result = result.masked_fill(zero, 0.0)
        return result

    return known(elementwise(compute, numbers, shape))


def _prelu(flow: Flow, operation: Operation) -> Result:
    value, weight = operation.arguments["self"], operation.arguments["weight"]
    shape = [1] * len(value.shape)
    if weight.shape.numel() > 1:
        shape[1] = -1
    slope = Value(weight.ids.reshape(shape), None if weight.constant is None else weight.constant.reshape(shape))
    if weight.state is not None and weight.shape.numel() == 1:
        flow.pin(weight, operation.label)
    ids = aligned(flow, operation, [value, slope], operation.shape)
    if ids is None:
        raise LookupError("a slope per channel has the slots of its channel")
    constant = None
    if value.constant is not None and slope.constant is not None:
        constant = elementwise(
            lambda number, factor: torch.where(number >= 0, number, factor * number) + 0 * number,
            [value.constant, slope.constant],
            operation.shape,
        )
    return Value(ids, constant, None, value.from_inputs)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_FUNCTIONS, _function),
    **dict.fromkeys(_PLACES, _places),
    **dict.fromkeys(_SAME, _same),
    "mul": _product,
    "multiply": _product,
    "prelu": _prelu,
    "_prelu_kernel": _places,
}
