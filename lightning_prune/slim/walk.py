"""Follow the slots of all parameters through the network, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_prune.slim.classes import classes_of
from lightning_prune.slim.flow import Flow
from lightning_prune.slim.graph import Graph, writes_in_place
from lightning_prune.slim.names import standing_names, states_of
from lightning_prune.slim.ops import operation_of, rule_of, values_in
from lightning_prune.slim.values import Value

__all__ = ["Walk", "walk"]


class Walk:
    """What was found: the flow of slots, and the value of each node.

    Attributes:
        flow: Slots, and what is known of them.
        values: What each node stands for: a :class:`Value` or several.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.values: dict[fx.Node, Any] = {}

    @cached_property
    def classes(self) -> Tensor:
        """The class of each slot: the same number for those that can only go together. Fixed once all is walked."""
        return classes_of(self.flow.size, self.flow.edges)


@torch.no_grad()
def walk(graph: Graph, model: nn.Module) -> Walk:
    """Apply the rule of every operation, in their order."""
    standing = standing_names(model)
    found = Walk(Flow(states_of(model), dict(model.named_modules(remove_duplicate=False))))
    for node in graph.nodes:
        found.values[node] = _value(node, graph, standing, found)
    for node in graph.outputs:
        for value in values_in(found.values[node]):
            found.flow.pin(value, "an output of the model")
    return found


def _value(node: fx.Node, graph: Graph, standing: Mapping[str, str], found: Walk) -> Any:
    flow = found.flow
    if node.op == "placeholder":
        if node.name in graph.states:
            return flow.state(standing[graph.states[node.name]])
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return tensor
        if node.name in graph.constants:
            constant = graph.constants[node.name].detach().cpu()
            numbers = constant.double() if not constant.is_complex() else None
            value = flow.unknown(tensor.shape, "a tensor made in the forward", numbers)
            return Value(value.ids, value.constant, None, from_inputs=False)
        return flow.unknown(tensor.shape, "an input of the model")
    if node.op != "call_function":
        return _unheard_of(node, flow)
    operation = operation_of(node, found.values)
    result = rule_of(operation)(flow, operation)
    if not values_in((operation.args, operation.kwargs)):
        result = _made(result)
    if writes_in_place(node) and node.args and isinstance(node.args[0], fx.Node):
        found.values[node.args[0]] = result
    return result


def _unheard_of(node: fx.Node, flow: Flow) -> Any:
    for operand in node.all_input_nodes:
        for value in values_in(operand):
            flow.pin(value, str(node.target))
    tensor = node.meta.get("val")
    return flow.unknown(tensor.shape, str(node.target)) if isinstance(tensor, Tensor) else tensor


def _made(result: Any) -> Any:
    """What is made of nothing depends on no input."""
    if isinstance(result, Value):
        return Value(result.ids, result.constant, None, from_inputs=False)
    return result
