"""Where a cut network first goes another way than the whole one, so that what led there can be kept."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_prune.errors import SlimError
from lightning_prune.slim.choosing import Choice
from lightning_prune.slim.flow import Pin
from lightning_prune.slim.graph import Call, Graph, capture
from lightning_prune.slim.ops.operation import operation_of, values_in
from lightning_prune.slim.proof import Doubled
from lightning_prune.slim.walk import Walk

__all__ = ["first_difference", "nodes_at", "pins_at"]


def nodes_at(error: BaseException, graph: Graph) -> list[fx.Node]:
    """The operations at the line of the model that raised an error: those of the deepest line that has any."""
    frames = [
        (frame.f_code.co_filename, line, frame.f_locals.get("self"))
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    for file, line, _ in reversed(frames):
        place = f'File "{file}", line {line}, '
        found = [node for node in graph.nodes if place in (node.meta.get("stack_trace") or "")]
        if found:
            return found
    return []


def first_difference(
    graph: Graph, found: Walk, choice: Choice, whole: nn.Module, slim: nn.Module, call: Call, tolerance: float
) -> fx.Node | None:
    """The first operation whose result is not what is left of the whole network's, or None if all are."""
    try:
        other = capture(slim, call)
    except SlimError as error:
        cause = error.__cause__
        places = nodes_at(cause, graph) if cause is not None else []
        return places[0] if places else None
    ours, theirs = _results(graph, whole, call), _results(other, slim, call)
    calls = [[node for node in each.nodes if node.op == "call_function"] for each in (graph, other)]
    for node, twin in zip(*calls, strict=False):
        if node.target != twin.target:
            return node
        expected, came = ours[node], theirs[twin]
        values = found.values[node]
        pairs = (
            zip(values, expected, came, strict=False) if isinstance(values, tuple) else [(values, expected, came)]
        )
        for value, full, part in pairs:
            if not isinstance(full, Tensor) or not isinstance(part, Tensor) or not hasattr(value, "ids"):
                continue
            left = full[choice.stays(value.ids)]
            if left.numel() != part.numel() or not _close(left, part.flatten(), tolerance):
                return node
    return None


def _close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    if not left.is_floating_point():
        return torch.equal(left, right)
    left, right = left.double().nan_to_num(), right.double().nan_to_num()
    size = float(left.abs().max()) if left.numel() else 0.0
    return not left.numel() or float((left - right).abs().max()) <= tolerance * max(size, 1e-30)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)


def _results(graph: Graph, model: nn.Module, call: Call) -> dict[fx.Node, Any]:
    """What each operation computes."""
    module = graph.program.graph_module
    states = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    flat = iter(torch.utils._pytree.tree_leaves((call.args, call.kwargs)))
    given = []
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in graph.states:
            given.append(states[graph.states[node.name]].detach())
        elif node.name in graph.constants:
            given.append(graph.constants[node.name])
        else:
            given.append(next(flat))
    recorder = _Recorder(module)
    with torch.no_grad(), Doubled():
        recorder.run(*given)
    return recorder.env


def pins_at(nodes: Sequence[fx.Node], found: Walk, choice: Choice) -> list[Pin]:
    """Pins for what goes into operations, if anything of it was to go."""
    pins = []
    for node in nodes:
        operation = operation_of(node, found.values)
        reason = f"{operation.label}, whose sizes are written in the forward"
        for value in values_in((operation.args, operation.kwargs, found.values[node])):
            ids = value.ids.unique()
            if bool((~choice.stays(ids)).any()):
                pins.append(Pin(ids, reason))
    return pins
