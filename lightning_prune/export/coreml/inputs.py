"""The inputs of a Core ML program, from their ``coremltools`` types: tensors and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.export.coreml.mil import Package
from lightning_prune.export.inputs import ProgramInput, Shape, Values
from lightning_prune.export.shapes import flexible_shapes
from lightning_prune.export.standalone import Standalone

__all__ = ["ImageInput", "dynamic_dims", "is_image", "program_inputs", "to_channel_first"]


@dataclass(frozen=True)
class ImageInput(ProgramInput):
    """An image: the model gets ``scale * pixel + bias``.

    Attributes:
        scale: One factor for all pixels.
        bias: One number a channel, or for all.
        is_channel_last: Whether the model takes ``(N, H, W, C)``; the program takes ``(N, C, H, W)``.
        is_whole: Whether a pixel is a whole number from 0 to 255.
    """

    scale: float = 1.0
    bias: tuple[float, ...] = (0.0,)
    is_channel_last: bool = False
    is_whole: bool = True

    @property
    def is_pixel(self) -> bool:
        """Whether its values are whole numbers from 0 to 255."""
        return self.is_whole

    def to_model(self, value: Tensor) -> Tensor:
        """The model's input that belongs to an input of the program."""
        value = value * self.scale + torch.tensor(self.bias).reshape(-1, 1, 1)
        return value.movedim(-3, -1) if self.is_channel_last else value

    def to_program(self, value: Tensor) -> Tensor:
        """The inverse: the program's input that belongs to one of the model."""
        value = value.movedim(-1, -3) if self.is_channel_last else value
        value = (value - torch.tensor(self.bias).reshape(-1, 1, 1)) / self.scale
        return value.round().clamp(0, 255) if self.is_whole else value


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
            ImageInput(
                name,
                tuple(to_channel_first(shape) for shape in shapes) if last else shapes,
                values=declared,
                not_tried=left,
                scale=float(item.scale),
                bias=tuple(np.atleast_1d(item.bias).astype(float).tolist()),
                is_channel_last=last,
                is_whole=getattr(item.color_layout, "name", "") != "GRAYSCALE_FLOAT16",
            )
        )
    return result


def is_image(item: Any) -> bool:
    """Whether a ``coremltools`` type is that of an image."""
    return type(item).__name__ == "ImageType"


def to_channel_first(shape: Shape) -> Shape:
    """``(*, H, W, C)`` as ``(*, C, H, W)``."""
    return (*shape[:-3], shape[-1], *shape[-3:-1])


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
