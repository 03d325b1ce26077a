"""How far two results may be apart, and how far rounding alone moves those of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_prune.export.draws import call
from lightning_prune.export.standalone import Standalone

__all__ = [
    "SAYS_LITTLE",
    "SLICE_FLOOR",
    "SLICE_REACH",
    "TOLERANCE",
    "difference",
    "rounding_reach",
    "slice_peaks",
    "unexplained",
]


# Largest difference of an output, as a fraction of its largest value, that rounding explains in an ordinary network.
TOLERANCE = {"float16": 5e-3, "float32": 1e-4}
# In a network that amplifies rounding, what moving its weights by so many roundings does to the model itself.
ROUNDINGS = 10
# Relative size of one rounding.
ROUNDING = {"float16": 2.0**-11, "float32": 2.0**-22}
# What a slice of an output may always be off by, as a fraction of the output's largest value: a sum of large numbers
# that comes out small is no more exact than they are.
SLICE_FLOOR = 2.0**-18
# How many times as far as rounding its weights moves it, for numbers in the program are rounded too.
SLICE_REACH = 4
# Where rounding moves an output this far, as a fraction of its largest value, its numbers prove little.
SAYS_LITTLE = 0.1


def difference(found: Tensor, expected: Tensor) -> float | None:
    """How far two results are apart: the largest difference as a fraction of the largest expected value.

    Infinities and NaN must be in the same places, else the difference is infinite. Of integers it is the fraction that
    differs. None if there is nothing finite to compare.
    """
    found = found.reshape(expected.shape) if found.numel() == expected.numel() else found
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((found != expected).float().mean()) if expected.numel() else None
    finite = expected.isfinite()
    if not finite.any():
        return None
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    scale = expected[finite].abs().max().clamp(min=1e-12)
    return float((found[finite] - expected[finite]).abs().max() / scale)


def rounding_reach(
    standalone: Standalone,
    inputs: Sequence[Tensor],
    at: int,
    want: Tensor,
    precision: str,
    tries: int = 4,
    calls: int = 1,
    enough: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """How far each value of one output moves when parameters and buffers move by ``ROUNDINGS`` roundings, at most.

    Args:
        standalone: The model.
        inputs: Its inputs.
        at: Which of its outputs.
        want: That output, without any moves.
        precision: ``"float16"`` or ``"float32"``: of the roundings.
        tries: How often everything is moved, each time in other directions.
        calls: How often the model is called with the inputs, one call after the other.
        enough: Whether what was found so far will do, so that no more is tried: it only grows.
    """
    generator = torch.Generator().manual_seed(0)
    reach = torch.zeros(want.shape)
    values = [*standalone.named_parameters(), *standalone.named_buffers()]
    for _ in range(tries):
        state = {}
        for name, value in values:
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator) * 2 - 1
                state[name] = value.detach() * (1 + ROUNDINGS * ROUNDING[precision] * noise)
        moved = (call(standalone, inputs, state, calls)[at].double() - want.double()).abs()
        reach = torch.maximum(reach, moved.nan_to_num(nan=torch.inf).float())
        if enough is not None and enough(reach):
            break
    return reach


def unexplained(found: Tensor, want: Tensor, reach: Tensor, error: float, allowed: float) -> tuple[float, float]:
    """The error and its bound once it is known how far rounding reaches.

    Floating point numbers may be as far off as rounding moves any of them. Integers may differ where rounding changes
    them, such as the position of the largest of two nearly equal values.
    """
    if not want.is_floating_point():
        return float(((found.reshape(want.shape) != want) & (reach == 0)).float().mean()), allowed
    finite = want.isfinite()
    scale = want[finite].abs().max().clamp(min=1e-12)
    return error, max(allowed, float(reach[finite].max() / scale))


def slice_peaks(values: Tensor) -> Tensor:
    """The largest finite magnitude of each slice along the dimension of channels, then along the last dimension."""
    dims = sorted({min(1, values.ndim - 1), values.ndim - 1}) if values.numel() and values.ndim else []
    size = values.abs().nan_to_num(0.0, 0.0)
    return torch.cat([torch.zeros(0), *(size.movedim(dim, 0).reshape(size.shape[dim], -1).amax(1) for dim in dims)])
