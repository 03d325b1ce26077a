"""The inputs of a program in a file: what they are to the model, and the shapes and values that they may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["ProgramInput", "Shape", "Values"]

Shape = tuple[int, ...]
# What a user declares of an input: the example's values alone, or the smallest and the largest.
Values = Literal["fixed"] | tuple[float, float]


@dataclass(frozen=True)
class ProgramInput:
    """How one input of the program relates to one of the model: it is the same, but for its name.

    Attributes:
        name: Its name in the file.
        shapes: The shapes that are tried; the first is the example's.
        top: Of integers, the largest value that the model is known to take; None if the example alone tells.
        values: What was declared of its values; None if nothing was.
        not_tried: What is said of shapes that are allowed and not tried.
    """

    name: str
    shapes: tuple[Shape, ...]
    top: int | None = None
    values: Values | None = None
    not_tried: tuple[str, ...] = ()

    @property
    def is_pixel(self) -> bool:
        """Whether its values are whole numbers from 0 to 255, held as floating point."""
        return False

    def to_model(self, value: Tensor) -> Tensor:
        """The model's input that belongs to an input of the program."""
        return value

    def to_program(self, value: Tensor) -> Tensor:
        """The inverse: the program's input that belongs to one of the model."""
        return value
