"""Break the operations of a captured program that a converter does not know into others, and no more than those."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

__all__ = ["SIMPLER", "decompose_unknown"]

aten, prims = torch.ops.aten, torch.ops.prims
# An operation is broken into others, which may be unknown too; so often at most.
MOST_ROUNDS = 8


def decompose_unknown(
    program: ExportedProgram,
    find_unknown: Callable[[ExportedProgram], Sequence[Any]],
    table: Mapping[Any, Callable[..., Any]],
) -> ExportedProgram:
    """A program in which the unknown operations are broken up as far as the table says how.

    Args:
        program: As ``run_decompositions`` gives it.
        find_unknown: Gives the operations of a program that the converter does not know.
        table: How operations can be broken up.
    """
    for _ in range(MOST_ROUNDS):
        known_ways = {operation: table[operation] for operation in find_unknown(program) if operation in table}
        if not known_ways:
            break
        program = program.run_decompositions(known_ways)
    return program


def variance_and_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """By the squares of the differences from the mean."""
    dims = list(dim) if dim else list(range(x.ndim))
    apart = x - x.mean(dims, keepdim=True)
    number = math.prod(x.shape[axis] for axis in dims)
    squares = (apart * apart).sum(dims, keepdim=keepdim)
    return squares / max(0, number - (1 if correction is None else correction)), x.mean(dims, keepdim=keepdim)


def variance(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """The first of both."""
    return variance_and_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch norm by the statistics of its input, which it is given as a batch."""
    variances, means = variance_and_mean(x, [0, *range(2, x.ndim)], correction=0, keepdim=True)
    scales = (variances + eps).rsqrt()
    normed = (x - means) * scales
    shape = [1, -1] + [1] * (x.ndim - 2)
    if weight is not None:
        normed = normed * weight.view(shape)
    if bias is not None:
        normed = normed + bias.view(shape)
    return normed, means.view(-1), scales.view(-1)


def distances(first: Tensor, second: Tensor, p: float, mode: int | None) -> Tensor:
    """Of all rows of a matrix from all rows of another, by the differences themselves."""
    apart = (first.unsqueeze(-2) - second.unsqueeze(-3)).abs()
    if p == 2:
        return (apart * apart).sum(-1).sqrt()
    if p == 0:
        return (apart != 0).to(first.dtype).sum(-1)
    if p == math.inf:
        return apart.amax(-1)
    return apart.sum(-1) if p == 1 else apart.pow(p).sum(-1).pow(1 / p)


def overlap_and_add(
    x: Tensor, size: list[int], kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Tensor:
    """Columns laid over an image and added: a transposed convolution whose kernels each hold a single one."""
    reach = [spread * (length - 1) + 1 for length, spread in zip(kernel, dilation, strict=True)]
    rows = list(zip(size, reach, padding, stride, strict=True))
    places = [(length + 2 * pad - width) // step + 1 for length, width, pad, step in rows]
    rest = [
        length - ((count - 1) * step - 2 * pad + width)
        for count, (length, width, pad, step) in zip(places, rows, strict=True)
    ]
    inner = math.prod(kernel)
    channels = x.shape[-2] // inner
    numbers = torch.arange(inner, device=x.device)
    ones = (numbers[:, None] == numbers).to(x.dtype).view(inner, 1, *kernel).repeat(channels, 1, 1, 1)
    columns = x.reshape(-1, channels * inner, *places)
    image: Tensor = aten.convolution.default(columns, ones, None, stride, padding, dilation, True, rest, channels)
    return image.reshape(*x.shape[:-2], channels, *size)


def place_among(x: Tensor, bounds: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """How many of the bounds a value has passed."""
    values = x.unsqueeze(-1)
    passed = values >= bounds if right else values > bounds
    return passed.to(torch.int32 if out_int32 else torch.int64).sum(-1).to(torch.int32 if out_int32 else torch.int64)


def remainder_of_sign(x: Tensor, other: Tensor | float) -> Tensor:
    """The remainder that has the sign of what is divided."""
    times = x / other
    return x - times.sign() * times.abs().floor() * other


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """The largest or smallest of as many as there are."""
    if not x.ndim:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, indices = x.topk(x.shape[dim], dim, descending, True)
    return values, indices


def padded(x: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding by a value; every other mode has an operation of its own."""
    if mode != "constant":
        kept: Tensor = NotImplemented  # which tells torch to leave the operation as it is
        return kept
    made: Tensor = aten.constant_pad_nd.default(x, pad, value or 0.0)
    return made


def choose(where: Tensor, first: Tensor | float, second: Tensor | float) -> Tensor:
    """With a tensor for a number, for which there are operations that lead back here."""
    dtype = first.dtype if isinstance(first, Tensor) else second.dtype if isinstance(second, Tensor) else None
    first, second = (
        value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=where.device)
        for value in (first, second)
    )
    return torch.where(where, first, second)


# Operations by others that every converter knows. torch's own ways lead to operations that none does, or to none.
SIMPLER: dict[Any, Callable[..., Any]] = {
    aten.argmin.default: lambda x, dim=None, keepdim=False: (-x).argmax(dim, keepdim),
    aten.bucketize.Tensor: place_among,
    aten._cdist_forward.default: distances,
    aten.col2im.default: overlap_and_add,
    aten.erfc.default: lambda x: 1 - x.erf(),
    aten.fmod.Scalar: remainder_of_sign,
    aten.fmod.Tensor: remainder_of_sign,
    aten.hypot.default: lambda x, other: (x * x + other * other).sqrt(),
    aten.isnan.default: lambda x: x != x,
    aten._native_batch_norm_legit.no_stats: batch_norm,
    aten.pad.default: padded,
    aten.remainder.Scalar: lambda x, other: x.remainder(torch.full_like(x, other)),
    aten.signbit.default: lambda x: x < 0,
    aten.sort.default: sort,
    aten.var.correction: variance,
    aten.var_mean.correction: variance_and_mean,
    # into which torch breaks up the samples of a grid, and others
    prims.convert_element_type.default: lambda x, dtype: x.to(dtype),
    prims.where.default: choose,
}
