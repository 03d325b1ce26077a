"""The inputs of a Core ML program: what they are to the model, their shapes, and fresh values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.mil import Package
from lightning_prune.standalone import Standalone, kept_buffers

__all__ = ["DRAWS", "ProgramInput", "dynamic_dims", "fresh_inputs", "integer_range", "program_inputs"]

# Mean (in standard deviations from the example's mean) and scale (in standard deviations) of the fresh inputs.
DRAWS = ((0.0, 1.0), (3.0, 0.5), (-3.0, 2.0), (0.0, 8.0))
# Largest values to try of an integer input whose example is all zeros, after those that the model's embeddings take.
TOPS = (99, 9, 1)


@dataclass(frozen=True)
class ProgramInput:
    """How one input of the program relates to one of the model.

    Attributes:
        name: Its name in the package.
        shapes: The shapes that it may take; the first is the example's.
        scale: Of an image: the model gets ``scale * pixel + bias``. None for other inputs.
        bias: Per channel, or one.
        top: Of integers, the largest value that the model is known to take; None if the example alone tells.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    scale: float | None = None
    bias: tuple[float, ...] = (0.0,)
    top: int | None = None

    def to_model(self, value: Tensor) -> Tensor:
        """The model's input that belongs to an input of the program."""
        if self.scale is None:
            return value
        return value * self.scale + torch.tensor(self.bias).reshape(1, -1, 1, 1)


def program_inputs(types: Sequence[Any], standalone: Standalone, package: Package) -> list[ProgramInput]:
    """What verification must know of the inputs, from their ``coremltools`` types."""
    result = []
    tops = largest_values(standalone)
    for item, (name, _, _), tensor, top in zip(types, package.main.inputs, standalone.inputs, tops, strict=True):
        example = tuple(tensor.shape)
        if type(item).__name__ == "ImageType":
            bias = tuple(np.atleast_1d(item.bias).astype(float).tolist())
            result.append(ProgramInput(name, (example,), float(item.scale), bias))
        else:
            result.append(ProgramInput(name, tuple(dict.fromkeys([example, *shapes_of(item.shape, example)])), top=top))
    return result


def largest_values(standalone: Standalone) -> list[int | None]:
    """For each input that is an integer 0 everywhere in the example, a larger value that the model accepts.

    Zeros are what one writes for tokens of which only the number matters; what the network makes of other tokens would
    never be compared.
    """
    rows = (module.num_embeddings for module in standalone.modules() if isinstance(module, nn.Embedding))
    smallest = min(rows, default=1) - 1
    given, result = list(standalone.inputs), list[int | None]()
    for at, example in enumerate(standalone.inputs):
        result.append(None)
        if example.is_floating_point() or example.dtype == torch.bool or not is_one_value(example) or example.max() > 0:
            continue
        for top in (smallest, *TOPS):
            top = min(top, torch.iinfo(example.dtype).max)
            given[at] = torch.full_like(example, top)
            if top > 0 and accepts(standalone, given):
                result[at] = top
                break
        else:
            given[at] = example
    return result


def is_one_value(tensor: Tensor) -> bool:
    """Whether all elements are the same."""
    return tensor.numel() > 0 and bool(tensor.min() == tensor.max())


def accepts(standalone: Standalone, inputs: Sequence[Tensor]) -> bool:
    """Whether the model can be called with these inputs."""
    try:
        with torch.no_grad(), kept_buffers(standalone):
            standalone(*inputs)
    except Exception:
        return False
    return True


def integer_range(spec: ProgramInput, example: Tensor) -> tuple[int, int]:
    """The smallest and the largest of the fresh integers."""
    bottom, top = int(example.min()), int(example.max())
    if bottom == top:
        bottom, top = min(bottom, 0), spec.top or top
    return bottom, top


def shapes_of(shape: Any, example: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes to try of a flexible input: every enumerated one, or the smallest and a large one of each range."""
    if shape is None:
        return []
    if hasattr(shape, "shapes"):
        return [tuple(int(size) for size in item.shape) for item in shape.shapes]
    small, large = list(example), list(example)
    for dim, size in enumerate(getattr(shape, "shape", shape)):
        if hasattr(size, "upper_bound"):
            small[dim] = size.lower_bound
            # A range may be open above; and what is large for a device is too large for a check.
            large[dim] = min(size.upper_bound, 2 * example[dim]) if size.upper_bound > 0 else example[dim] + 1
    return [tuple(small), tuple(large)]


def dynamic_dims(types: Sequence[Any]) -> list[frozenset[int]]:
    """For each input, the dimensions whose size may differ from the example's."""
    result = []
    for item in types:
        shape = item.shape
        if hasattr(shape, "shapes"):
            sizes = list(zip(*(each.shape for each in shape.shapes), strict=True))
            result.append(frozenset(dim for dim, seen in enumerate(sizes) if len(set(seen)) > 1))
        else:
            given = getattr(shape, "shape", shape) or ()
            result.append(frozenset(dim for dim, size in enumerate(given) if hasattr(size, "upper_bound")))
    return result


def fresh_inputs(
    inputs: Sequence[ProgramInput], examples: Sequence[Tensor], draw: int, variant: int = 0
) -> list[Tensor]:
    """Inputs that were not seen when the network was captured, reproducible.

    Args:
        inputs: The program's inputs.
        examples: The example inputs, which set mean, spread and range.
        draw: Which of ``DRAWS``; beyond them, even numbers between the example's smallest and largest value.
        variant: Which of the shapes, for inputs that have several.
    """
    generator = torch.Generator().manual_seed(1 + draw)
    result = []
    for spec, example in zip(inputs, examples, strict=True):
        shape = spec.shapes[variant % len(spec.shapes)]
        if spec.scale is not None:
            result.append(torch.randint(0, 256, shape, generator=generator).float())
        elif example.dtype == torch.bool:
            result.append(torch.rand(shape, generator=generator) < 0.5)
        elif not example.is_floating_point():
            bottom, top = integer_range(spec, example)
            result.append(torch.randint(bottom, top + 1, shape, generator=generator).to(example.dtype))
        elif draw >= len(DRAWS):
            low, high = float(example.min()), float(example.max())
            result.append(torch.rand(shape, generator=generator) * (high - low) + low)
        else:
            spread = float(example.std()) if example.numel() > 1 and float(example.std()) > 0 else 1.0
            offset, scale = DRAWS[draw]
            result.append(
                torch.randn(shape, generator=generator) * (scale * spread) + float(example.mean()) + offset * spread
            )
    return result
