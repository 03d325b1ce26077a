"""One operation of the network, as its rule sees it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.graph import name_of
from lightning_prune.slim.values import Value

__all__ = ["Operation", "Result", "Rule", "operation_of", "values_in"]

Result = Value | tuple[Value, ...]


@dataclass(frozen=True)
class Operation:
    """One call of an operation.

    Attributes:
        name: Without its overload, as ``conv2d``.
        target: What is called.
        args: Positional arguments, tensors as :class:`Value`.
        kwargs: Keyword arguments, tensors as :class:`Value`.
        arguments: All of them by the names of the operation's schema, with its defaults.
        shapes: Of the results.
        floats: Whether the first result is floating point.
        single: Whether the result is a tensor, rather than several.
        module: Dotted name of the module that calls it.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]
    shapes: tuple[torch.Size, ...]
    floats: bool
    single: bool
    module: str

    @property
    def shape(self) -> torch.Size:
        """The shape of the only result."""
        return self.shapes[0]

    @property
    def label(self) -> str:
        """How a reader knows it: the operation and where it is called."""
        return f"{self.name} in {self.module}" if self.module else self.name

    def run(self, change: Callable[[Value], Tensor]) -> Any:
        """Call the operation on tensors in place of its values."""
        args, kwargs = torch.utils._pytree.tree_map_only(
            Value, change, (self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Value)
        )
        return self.target(*args, **kwargs)


Rule = Callable[[Flow, Operation], Result]


def operation_of(node: fx.Node, values: dict[fx.Node, Any]) -> Operation:
    """The call of a node, with what is known of its operands."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    schema = getattr(node.target, "_schema", None)
    arguments = {}
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        default = argument.default_value if argument.has_default_value() else None
        arguments[argument.name] = kwargs.get(argument.name, args[index] if index < len(args) else default)
    result = node.meta.get("val")
    single = isinstance(result, Tensor)
    results = [item for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, Tensor)]
    stack = node.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    return Operation(
        "getitem" if node.target is operator.getitem else name_of(node),
        node.target,
        tuple(args),
        dict(kwargs),
        arguments,
        tuple(item.shape for item in results),
        bool(results) and results[0].is_floating_point(),
        single,
        module,
    )


def values_in(arguments: Any) -> list[Value]:
    """All tensors among arguments."""
    leaves = torch.utils._pytree.tree_leaves(arguments, is_leaf=lambda leaf: isinstance(leaf, Value))
    return [leaf for leaf in leaves if isinstance(leaf, Value)]
