"""The inputs of a Core ML program: what they are to the model, and the shapes and values that they may take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_prune.export.coreml.mil import Package
from lightning_prune.export.standalone import Standalone

__all__ = [
    "FlexibleShapes",
    "ProgramInput",
    "Values",
    "dynamic_dims",
    "flexible_shapes",
    "is_image",
    "program_inputs",
    "to_channel_first",
]

Shape = tuple[int, ...]
# What a user declares of an input: the example's values alone, or the smallest and the largest.
Values = Literal["fixed"] | tuple[float, float]

# So many elements of an input are no burden, be it pixels or (in attention, where the square of it counts) tokens.
SMALL_FLOATS, SMALL_INTEGERS = 2**15, 2**11
# Beyond that, so many times the example's size is tried.
REACH = 2
# Enumerated shapes that are tried.
MOST_SHAPES = 16


@dataclass(frozen=True)
class ProgramInput:
    """How one input of the program relates to one of the model.

    Attributes:
        name: Its name in the package.
        shapes: The shapes that are tried; the first is the example's.
        scale: Of an image: the model gets ``scale * pixel + bias``. None for other inputs.
        bias: Per channel, or one.
        is_channel_last: Of an image, whether the model takes ``(N, H, W, C)``; the program takes ``(N, C, H, W)``.
        is_whole: Of an image, whether a pixel is a whole number from 0 to 255.
        top: Of integers, the largest value that the model is known to take; None if the example alone tells.
        values: What was declared of its values; None if nothing was.
        not_tried: What is said of shapes that are allowed and not tried.
    """

    name: str
    shapes: tuple[Shape, ...]
    scale: float | None = None
    bias: tuple[float, ...] = (0.0,)
    is_channel_last: bool = False
    is_whole: bool = True
    top: int | None = None
    values: Values | None = None
    not_tried: tuple[str, ...] = ()

    def to_model(self, value: Tensor) -> Tensor:
        """The model's input that belongs to an input of the program."""
        if self.scale is None:
            return value
        value = value * self.scale + torch.tensor(self.bias).reshape(-1, 1, 1)
        return value.movedim(-3, -1) if self.is_channel_last else value

    def to_program(self, value: Tensor) -> Tensor:
        """The inverse: the program's input that belongs to one of the model."""
        if self.scale is None:
            return value
        value = value.movedim(-1, -3) if self.is_channel_last else value
        value = (value - torch.tensor(self.bias).reshape(-1, 1, 1)) / self.scale
        return value.round().clamp(0, 255) if self.is_whole else value


@dataclass(frozen=True)
class FlexibleShapes:
    """Shapes to try of an input, and in words which of the allowed ones are not tried."""

    shapes: tuple[Shape, ...]
    not_tried: str | None = None


def program_inputs(
    types: Sequence[Any],
    standalone: Standalone,
    package: Package,
    tops: Sequence[int | None],
    values: Sequence[Values | None],
) -> list[ProgramInput]:
    """What verification must know of the inputs, from their ``coremltools`` types.

    Args:
        types: The ``coremltools`` type of each input.
        standalone: The model, whose example inputs have the first shape.
        package: Names the inputs.
        tops: For each input, the largest integer that the model is known to take.
        values: For each input, what was declared of its values.
    """
    result = []
    rows = zip(types, package.main.inputs, standalone.inputs, tops, values, strict=True)
    for item, (name, _, _), tensor, top, declared in rows:
        example, flexible = tuple(tensor.shape), flexible_shapes(item.shape, tensor)
        shapes = tuple(dict.fromkeys([example, *flexible.shapes]))
        left = () if flexible.not_tried is None else (f"{flexible.not_tried} of {name}",)
        if not is_image(item):
            result.append(ProgramInput(name, shapes, top=top, values=declared, not_tried=left))
            continue
        last = item.channel_first is False
        result.append(
            ProgramInput(
                name,
                tuple(to_channel_first(shape) for shape in shapes) if last else shapes,
                float(item.scale),
                tuple(np.atleast_1d(item.bias).astype(float).tolist()),
                last,
                getattr(item.color_layout, "name", "") != "GRAYSCALE_FLOAT16",
                values=declared,
                not_tried=left,
            )
        )
    return result


def is_image(item: Any) -> bool:
    """Whether a ``coremltools`` type is that of an image."""
    return type(item).__name__ == "ImageType"


def to_channel_first(shape: Shape) -> Shape:
    """``(*, H, W, C)`` as ``(*, C, H, W)``."""
    return (*shape[:-3], shape[-1], *shape[-3:-1])


def flexible_shapes(shape: Any, example: Tensor) -> FlexibleShapes:
    """Shapes to try of an input that may take several.

    Of ranges: all at their lower end, all between, all at their upper end, and the first at its lower with the others
    at their upper end, so that dimensions are not taken for each other. The upper end is tried if that many elements
    are no burden; else twice the example's size. Of enumerated shapes: all, or :data:`MOST_SHAPES` evenly among them.

    Example:
        >>> class Range:
        ...     lower_bound, upper_bound = 16, 64
        >>> flexible_shapes((1, Range(), Range()), torch.zeros(1, 32, 32)).shapes
        ((1, 16, 16), (1, 48, 48), (1, 64, 64), (1, 16, 64))
    """
    if shape is None:
        return FlexibleShapes(())
    if hasattr(shape, "shapes"):
        return enumerated_shapes(shape.shapes, example)
    sizes = getattr(shape, "shape", shape)
    ranges = {dim: size for dim, size in enumerate(sizes) if hasattr(size, "upper_bound")}
    if not ranges:
        return FlexibleShapes(())
    lower = {dim: int(size.lower_bound) for dim, size in ranges.items()}
    # A range may be open above.
    highest = {dim: int(size.upper_bound) for dim, size in ranges.items() if size.upper_bound > 0}
    upper = {dim: highest.get(dim, REACH * example.shape[dim]) for dim in ranges}
    small = SMALL_FLOATS if example.is_floating_point() else SMALL_INTEGERS
    if math.prod(resized(example, upper)) > small:
        upper = {dim: max(lower[dim], min(size, REACH * example.shape[dim])) for dim, size in upper.items()}
    between = {dim: between_of(lower[dim], example.shape[dim], upper[dim]) for dim in ranges}
    first = min(ranges)
    rows = [lower, between, upper, {**upper, first: lower[first]}]
    # Dimensions that share a symbol are always equal.
    symbols = {dim: getattr(size, "symbol", dim) for dim, size in ranges.items()}
    rows[3].update({dim: lower[dim] for dim in ranges if symbols[dim] == symbols[first]})
    largest = resized(example, upper)
    left = None
    if upper != highest:
        end = str(resized(example, highest)) if len(highest) == len(ranges) else "any"
        left = f"shapes larger than {largest}, up to {end},"
    return FlexibleShapes(tuple(dict.fromkeys(resized(example, row) for row in rows)), left)


def enumerated_shapes(shapes: Sequence[Any], example: Tensor) -> FlexibleShapes:
    """All of the enumerated shapes, or evenly many among them."""
    found: list[Shape] = []
    for item in shapes:
        sizes = getattr(item, "shape", item)
        if any(hasattr(size, "upper_bound") for size in sizes):
            found.extend(flexible_shapes(item, example).shapes)
        else:
            found.append(tuple(int(size) for size in sizes))
    found = list(dict.fromkeys(found))
    if len(found) <= MOST_SHAPES:
        return FlexibleShapes(tuple(found))
    picked = sorted({round(at) for at in np.linspace(0, len(found) - 1, MOST_SHAPES)})
    return FlexibleShapes(
        tuple(found[at] for at in picked), f"{len(found) - len(picked)} of the {len(found)} enumerated shapes"
    )


def resized(example: Tensor, sizes: Mapping[int, int]) -> Shape:
    """The example's shape with other sizes of some dimensions."""
    return tuple(sizes.get(dim, size) for dim, size in enumerate(example.shape))


def between_of(lower: int, given: int, upper: int) -> int:
    """A size between the ends that is not the example's, a multiple of what divides all three.

    Example:
        >>> between_of(32, 64, 256), between_of(1, 5, 9), between_of(1, 2, 3)
        (128, 6, 2)
    """
    step = math.gcd(lower, given, upper) or 1
    middle = (lower + upper) // 2 // step * step
    if middle == given and middle + step < upper:
        return middle + step
    return max(middle, lower)


def dynamic_dims(types: Sequence[Any]) -> list[frozenset[int]]:
    """For each input, the dimensions whose size may differ from the example's."""
    result = []
    for item in types:
        shape = item.shape
        rows = shape.shapes if hasattr(shape, "shapes") else [shape or ()]
        sizes = list(zip_longest(*(getattr(row, "shape", row) for row in rows)))
        result.append(
            frozenset(
                dim
                for dim, seen in enumerate(sizes)
                if len(set(seen)) > 1 or any(hasattr(size, "upper_bound") for size in seen)
            )
        )
    return result
