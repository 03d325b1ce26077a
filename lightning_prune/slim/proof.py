"""Whether the slim network computes the same: both are run in double precision on inputs of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.slim.choosing import Choice
from lightning_prune.slim.cutting import Cut
from lightning_prune.slim.flow import Pin
from lightning_prune.slim.graph import Call, leaves_of, to_double

__all__ = ["Doubled", "Proof", "difference", "inputs_of", "larger_batch", "outputs_of"]

FRESH_INPUTS = 6
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Proof:
    """A cut that computes the same.

    Attributes:
        cut: What is cut.
        choice: Which classes go.
        pins: What had to stay besides what operations pin: what was named, and what leads to sizes in the forward.
        difference: The largest difference of outputs, as a fraction of the largest output.
        checks: What was compared, in words.
    """

    cut: Cut
    choice: Choice
    pins: tuple[Pin, ...]
    difference: float
    checks: tuple[str, ...]


class Doubled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let a forward that asks for single precision have double precision, so that rounding hides nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, with any narrower type that it asks for widened."""
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _NARROW:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def inputs_of(call: Call) -> Iterator[Call]:
    """The example, and further inputs of its shapes: like it, larger, far away; then another batch size.

    Whole numbers are drawn from those of the example.
    """
    generator = torch.Generator().manual_seed(0)
    yield call.map(to_double)
    for index in range(FRESH_INPUTS - 1):
        scale = (1.0, 1.0, 3.0, 0.1, 10.0)[index % 5]
        yield call.map(lambda tensor, scale=scale: _drawn(tensor, scale, generator))


def larger_batch(call: Call) -> Call | None:
    """The example with each tensor twice along its first dimension, if all tensors agree in it; else None."""
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in call.tensors()}
    if len(sizes) != 1 or 0 in sizes:
        return None
    return call.map(lambda tensor: to_double(torch.cat([tensor, tensor.flip(0)])))


def _drawn(tensor: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        spread = tensor.double().std(correction=0) if tensor.numel() > 1 else torch.tensor(0.0)
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor.double().mean() + scale * (spread if spread > 0 else 1.0) * noise
    if tensor.numel() == 0 or tensor.is_complex():
        return tensor.clone()
    places = torch.randint(tensor.numel(), tensor.shape, generator=generator)
    return tensor.flatten()[places]


def outputs_of(model: nn.Module, call: Call) -> list[Tensor]:
    """All tensors that a model answers with, in double precision, drawing the same random numbers each time.

    What it writes into its buffers is taken back.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), Doubled():
        torch.manual_seed(0)
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves_of(call.of(model))]
    with torch.no_grad():
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer.copy_(values)
    return [leaf.double() if leaf.is_floating_point() else leaf for leaf in leaves if isinstance(leaf, Tensor)]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of outputs, as a fraction of the largest value of each; infinite if shapes differ."""
    if len(ours) != len(theirs):
        return float("inf")
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return float("inf")
        if not mine.numel():
            continue
        if not mine.is_floating_point():
            largest = max(largest, 0.0 if torch.equal(mine, other) else float("inf"))
            continue
        same = (mine == other) | (mine.isnan() & other.isnan())
        gap = (mine - other).abs().masked_fill(same, 0.0).max()
        size = other.abs().nan_to_num(0.0, 0.0, 0.0).max()
        found = float(gap / size) if size > 0 else float(gap)
        largest = max(largest, float("inf") if found != found else found)
    return largest
