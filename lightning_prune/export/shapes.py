"""Shapes to try of an input that may take several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.export.inputs import Shape

__all__ = ["MOST_SHAPES", "FlexibleShapes", "flexible_shapes"]


# So many elements of an input are no burden, be it pixels or (in attention, where the square of it counts) tokens.
SMALL_FLOATS = 2**15
SMALL_INTEGERS = 2**11
# Beyond that, so many times the example's size is tried.
REACH = 2
# Enumerated shapes that are tried.
MOST_SHAPES = 16


@dataclass(frozen=True)
class FlexibleShapes:
    """Shapes to try of an input, and in words which of the allowed ones are not tried."""

    shapes: tuple[Shape, ...]
    not_tried: str | None = None


def flexible_shapes(shape: Any, example: Tensor) -> FlexibleShapes:
    """Shapes to try of an input that may take several.

    Of ranges: all at their lower end, all between, all at their upper end, and the first at its lower with the others
    at their upper end, so that dimensions are not taken for each other. The upper end is tried if that many elements
    are no burden; else twice the example's size. Of enumerated shapes: all, or :data:`MOST_SHAPES` evenly among them.

    Example:
        >>> import torch
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
