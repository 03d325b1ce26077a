"""Operations over places, which keep channels apart, as pooling; and those over channels, which do not."""

from __future__ import annotations

import torch

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.ops.operation import Operation, Result, Rule, values_in
from lightning_prune.slim.ops.pinned import pinned
from lightning_prune.slim.values import Value, known, narrowed, varies

__all__ = ["RULES"]

_POOLS = (
    "max_pool{} max_pool{}_with_indices avg_pool{} adaptive_avg_pool{} adaptive_max_pool{} _adaptive_avg_pool{} "
    "upsample_nearest{} _upsample_nearest_exact{} lp_pool{}"
)
_RESIZES = (
    "upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d upsample_trilinear3d".split()
)
_REDUCTIONS = (
    "mean sum amax amin max min var std norm linalg_vector_norm logsumexp prod any all nansum var_mean".split()
)
_KEEP_CONSTANTS = ("mean", "amax", "amin", "max", "min")
_NORMALIZATIONS = "softmax _softmax log_softmax _log_softmax cumsum cumprod layer_norm group_norm rms_norm".split()


def _pool(flow: Flow, operation: Operation) -> Result:
    value = values_in(operation.args)[0]
    rank = next((rank for rank in (1, 2, 3) if f"{rank}d" in operation.name), 0)
    dims = range(len(value.shape) - rank, len(value.shape))
    if value.state is not None or not rank or any(varies(value.ids, dim) for dim in dims):
        return pinned(flow, operation)
    constant = None
    if value.constant is not None:
        same = [not varies(value.constant, dim) for dim in dims]
        kept = narrowed(value.constant) if all(same) else None
        if kept is not None and _dilutes(operation):
            kept = torch.where(kept == 0, 0.0, torch.nan).double()
        constant = kept
    ids = value.ids
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    results = tuple(
        Value(ids.expand(shape), None if constant is None else known(constant.expand(shape)))
        for shape in operation.shapes
    )
    return results[0] if operation.single else results


def _dilutes(operation: Operation) -> bool:
    """Whether zeros of padding, or a divisor of its own, are mixed into a mean of places."""
    arguments = operation.arguments
    padding = arguments.get("padding") or 0
    pads = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    if operation.name.startswith("lp_pool"):
        return True
    averages = operation.name.startswith("avg_pool")
    counted = arguments.get("count_include_pad", True)
    return averages and ((pads and counted) or arguments.get("divisor_override") is not None)


def _reduction(flow: Flow, operation: Operation) -> Result:
    value = values_in(operation.args)[0]
    given = operation.arguments.get("dim")
    rank = len(value.shape)
    dims = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted({dim % rank for dim in dims}) if rank else []
    others = values_in((operation.args, operation.kwargs))[1:]
    if value.state is not None or others or any(varies(value.ids, dim) for dim in dims):
        return pinned(flow, operation)
    ids, constant = value.ids, value.constant
    same = constant is not None and all(not varies(constant, dim) for dim in dims)
    keepdim = bool(operation.arguments.get("keepdim"))
    for dim in reversed(dims):
        ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
        if constant is not None:
            constant = constant.narrow(dim, 0, 1) if keepdim else constant.select(dim, 0)
    if constant is not None and operation.name not in _KEEP_CONSTANTS:
        constant = torch.where(constant == 0, 0.0, torch.nan).double() if operation.name == "sum" else None
    results = tuple(Value(ids.expand(shape), known(constant) if same else None) for shape in operation.shapes)
    return results[0] if operation.single else results


def _normalization(flow: Flow, operation: Operation) -> Result:
    """What is divided by a sum over several channels depends on all of them."""
    value, *tables = values_in((operation.args, operation.kwargs))
    arguments = operation.arguments
    rank = len(value.shape)
    if "normalized_shape" in arguments:
        dims = list(range(rank - len(arguments["normalized_shape"]), rank))
    elif "dim" in arguments:
        dims = [arguments["dim"] % rank]
    else:
        dims = list(range(1, rank))
    for table in tables:
        flow.pin(table, operation.label)
    if value.state is not None or any(varies(value.ids, dim) for dim in dims):
        flow.pin(value, operation.label)
    if value.state is not None:
        return flow.unknown(operation.shape, operation.label)
    results = tuple(Value(value.ids.expand(shape)) for shape in operation.shapes if shape == value.shape)
    if len(results) != len(operation.shapes):
        return pinned(flow, operation)
    return results[0] if operation.single else results


def _gated(flow: Flow, operation: Operation) -> Result:
    """A gated linear unit: the first half of the channels times the sigmoid of the other half."""
    value, dim = operation.arguments["self"], operation.arguments["dim"]
    if value.state is not None:
        return pinned(flow, operation)
    first, second = value.ids.chunk(2, dim)
    flow.unite(first, second)
    constant = None
    if value.constant is not None:
        number, gate = value.constant.chunk(2, dim)
        constant = torch.where(number == 0, 0.0, number * gate.sigmoid())
    return Value(first, known(constant))


RULES: dict[str, Rule] = {
    **{name.format(f"{rank}d"): _pool for name in _POOLS.split() for rank in (1, 2, 3)},
    **dict.fromkeys(_RESIZES, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_NORMALIZATIONS, _normalization),
    "glu": _gated,
}
