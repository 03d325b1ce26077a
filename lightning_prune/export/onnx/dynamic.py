"""Dynamic shapes: from how torch takes them to a row of tensors, and to the shapes that are tried."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.export.shapes import FlexibleShapes, flexible_shapes
from lightning_prune.export.structures import Slot

__all__ = ["row_of_shapes", "shapes_to_try"]


@dataclass(frozen=True)
class Range:
    """The sizes that a dimension may have; an upper bound of 0 is none."""

    lower_bound: int
    upper_bound: int
    symbol: str


def row_of_shapes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> list[Any]:
    """The dynamic shape of each tensor that goes into a model, in order.

    Args:
        model: The model.
        args: Positional arguments of a call, with a slot for each tensor, as
            :func:`~lightning_prune.export.structures.take_apart` leaves them.
        kwargs: Those that are given by name.
        dynamic_shapes: As ``torch.export.export`` takes them: for each argument, by name or in order, what is dynamic
            in it, in the structure that the argument has: a dict from dimensions to ``torch.export.Dim``, a list with
            one entry a dimension, or None.

    Raises:
        ConfigError: It is not of the structure of the inputs.
    """
    names = list(_names(model, len(args))) + list(kwargs)
    values = [*args, *kwargs.values()]
    if dynamic_shapes is None:
        given: list[Any] = [None] * len(values)
    elif isinstance(dynamic_shapes, Mapping):
        for name in dynamic_shapes:
            if name not in names:
                hint = did_you_mean(str(name), names) or f" They are {', '.join(names)}."
                raise ConfigError(f"export.dynamic_shapes must name arguments of the model, got {shown(name)}.{hint}")
        given = [dynamic_shapes.get(name) for name in names]
    elif isinstance(dynamic_shapes, (list, tuple)) and len(dynamic_shapes) == len(values):
        given = list(dynamic_shapes)
    else:
        raise ConfigError(
            f"export.dynamic_shapes must have an entry for each of the {len(values)} arguments of the model "
            f'({", ".join(names)}), got {shown(dynamic_shapes)}. Write {{{names[0]!r}: {{0: "batch"}}}}.'
        )
    row: list[Any] = []
    for name, value, spec in zip(names, values, given, strict=True):
        _walk(name, value, spec, row)
    return row


def _names(model: nn.Module, number: int) -> list[str]:
    while isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
        model = inner
    names = list(inspect.signature(model.forward).parameters)
    return (names + [f"input_{index}" for index in range(len(names), number)])[:number]


def _walk(name: str, value: Any, spec: Any, row: list[Any]) -> None:
    """Add the shapes of the tensors in an argument, each of which has a slot."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _walk(f"{name}[{key!r}]", item, _below(name, spec, key), row)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _walk(f"{name}[{index}]", item, _below(name, spec, index), row)
    elif isinstance(value, Slot):
        row.append(spec)


def _below(name: str, spec: Any, key: Any) -> Any:
    try:
        return None if spec is None else spec[key]
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"export.dynamic_shapes must have the structure of the inputs, but has no entry for {name}[{key!r}]."
        ) from error


def shapes_to_try(graph_input: Any, example: Tensor, spec: Any) -> FlexibleShapes:
    """The shapes in which a model is tried, of those that its file allows.

    Args:
        graph_input: The input as the file describes it.
        example: The example.
        spec: What was declared dynamic of it; its ``Dim`` may have ends.
    """
    sizes: list[Any] = []
    for dim, (found, size) in enumerate(zip(graph_input.type.tensor_type.shape.dim, example.shape, strict=True)):
        if not found.dim_param:
            sizes.append(size)
            continue
        declared = _declared(spec, dim)
        if type(declared).__name__ == "_DerivedDim" or not found.dim_param.isidentifier():
            return FlexibleShapes((), f"other shapes, whose dimensions depend on each other ({found.dim_param}),")
        lower, upper = _end(declared, "min"), _end(declared, "max")
        sizes.append(Range(max(1, lower or 1), upper or 0, found.dim_param))
    return flexible_shapes(tuple(sizes), example)


def _declared(spec: Any, dim: int) -> Any:
    if isinstance(spec, Mapping):
        return spec.get(dim)
    return spec[dim] if isinstance(spec, Sequence) and dim < len(spec) else None


def _end(declared: Any, name: str) -> int | None:
    """An end of the sizes of a ``Dim``, if it is a number."""
    end = getattr(declared, name, None)
    return int(end) if isinstance(end, int) and end < 2**31 else None
