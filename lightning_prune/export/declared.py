"""What a user declares of the inputs of an export, checked against the tensors of the example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.export.inputs import Values

__all__ = ["check_given_names", "check_values", "same_number", "values_of"]


def same_number(name: str, given: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise unless there is one item for each tensor."""
    if len(given) != len(tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ConfigError(
            f"export.{name} must have one item for each of the {len(tensors)} tensors ({shapes}), got {len(given)}."
        )


def check_given_names(inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Raise unless the names that are given to inputs and outputs are lists of texts, each of them once."""
    for argument, names in (("input_names", inputs), ("output_names", outputs)):
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names or ()):
            raise ConfigError(f'export.{argument} must be a list of texts, got {shown(names)}. Write ["x"].')
    every = [*(inputs or ()), *(outputs or ())]
    if again := [name for name in every if every.count(name) > 1]:
        raise ConfigError(
            f"export.input_names and export.output_names must differ from each other, got {again[0]!r} more than once. "
            "Write another."
        )


def check_values(values: Mapping[str, Values] | None) -> None:
    """Raise if what is declared of an input is neither ``"fixed"`` nor a range."""
    for name, declared in (values or {}).items():
        if declared != "fixed" and not is_range(declared):
            raise ConfigError(
                f'export.input_values[{name!r}] must be "fixed" or the smallest and the largest value, got '
                f"{declared!r}. Write (0, 9) for 0 to 9."
            )


def is_range(declared: Any) -> bool:
    """Whether it is a pair of finite numbers, the smaller first."""
    if isinstance(declared, str) or not isinstance(declared, Sequence) or len(declared) != 2:
        return False
    if not all(isinstance(bound, int | float | np.number) and math.isfinite(bound) for bound in declared):
        return False
    return bool(declared[0] <= declared[1])


def values_of(values: Mapping[str, Values] | None, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Any]:
    """What was declared of each input, or None.

    Raises:
        ConfigError: A name is no input's, or a range of whole numbers has a bound that is none.
    """
    for name, declared in (values or {}).items():
        if name not in names:
            raise ConfigError(
                f"export.input_values names {name!r}, which is no input.{did_you_mean(name, names)} The inputs are: "
                f"{', '.join(names)}."
            )
        tensor = tensors[list(names).index(name)]
        if declared != "fixed" and not tensor.is_floating_point() and any(bound != int(bound) for bound in declared):
            raise ConfigError(f"export.input_values[{name!r}] must be whole numbers as the input is, got {declared!r}.")
    rows = [(values or {}).get(name) for name in names]
    return [row if row is None or row == "fixed" else tuple(row) for row in rows]
