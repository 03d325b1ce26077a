"""Nested arguments and results of a model, taken apart into rows of tensors and put together again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Slot", "call_arguments", "fill", "place", "take_apart", "unique"]


class Slot:
    """Where a tensor was taken out of a structure; there is but one, in copies of a structure too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        return self


SLOT = Slot()


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: a tensor, a sequence of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def take_apart(
    model: nn.Module, example_inputs: Any
) -> tuple[tuple[Any, ...], dict[str, Any], list[tuple[str, Tensor]]]:
    """The arguments of a call with a slot for each tensor, and the tensors, named as ``forward`` names them."""
    while isinstance(inner := model._modules.get("_orig_mod"), nn.Module):  # a wrapper of torch.compile
        model = inner
    args, kwargs = call_arguments(example_inputs)
    leaves: list[tuple[str, Tensor]] = []
    names = list(inspect.signature(model.forward).parameters)
    names += [f"input_{index}" for index in range(len(names), len(args))]
    row = tuple(place(value, name, leaves) for value, name in zip(args, names, strict=False))
    return row, {name: place(value, name, leaves) for name, value in kwargs.items()}, leaves


def place(value: Any, name: str, leaves: list[tuple[str, Tensor]]) -> Any:
    """The structure with a slot for each tensor; the tensors go to ``leaves``, named by where they were."""
    if isinstance(value, Tensor):
        leaves.append((name, value))
        return SLOT

    def below(key: Any) -> str:
        return f"{name}_{key}" if name else str(key) if isinstance(key, str) else f"output_{key}"

    if isinstance(value, Mapping):
        return {key: place(item, below(key), leaves) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(place(item, below(key), leaves) for key, item in zip(value._fields, value, strict=True)))
    if isinstance(value, list | tuple):
        items = [place(item, name if len(value) == 1 else below(index), leaves) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            place(getattr(value, item.name), below(item.name), leaves)
    return value


def fill(value: Any, row: Iterator[Tensor]) -> Any:
    """The inverse of :func:`place`: each slot takes the next tensor."""
    if value is SLOT:
        return next(row)
    if isinstance(value, Mapping):
        return {key: fill(item, row) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(fill(item, row) for item in value))
    if isinstance(value, list | tuple):
        items = [fill(item, row) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def unique(names: Iterable[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that every format accepts, each once: letters, digits and ``_``, not beginning with a digit."""
    result: list[str] = []
    for name in names:
        plain = "".join(char if char.isalnum() and char.isascii() else "_" for char in name)
        plain = f"_{plain}" if plain[:1].isdigit() else plain
        candidate = plain = f"{plain}_out" if plain in taken else plain
        number = 2
        while candidate in result:
            candidate, number = f"{plain}_{number}", number + 1
        result.append(candidate)
    return tuple(result)
