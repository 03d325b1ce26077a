"""Where a cut network first goes another way than the whole network, so that what led there can be kept."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.slim.choosing import Choice
from lightning_prune.slim.flow import Pin
from lightning_prune.slim.graph import Call, Graph, writes_in_place
from lightning_prune.slim.names import standing_names, states_of
from lightning_prune.slim.ops import operation_of, values_in
from lightning_prune.slim.proof import Doubled
from lightning_prune.slim.walk import Walk

__all__ = ["WholeRun", "pins_at"]


_TORCH = str(Path(nn.__file__).parent)


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of each basic operation that runs, and of its result."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.tell(str(func), result)
        return result


class _Found(Exception):
    """The run has gone another way; nothing after that matters."""


class _Nodes(fx.Interpreter):
    """Runs a graph and keeps every result, with the basic operations that each node runs."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.program.graph_module, garbage_collect_values=False)
        self.names: list[str] = []
        self.owners: list[fx.Node] = []
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, listening. What only looks at sizes and types is left out, for types are wider here."""
        if n.op == "call_function" and n.meta.get("val") is None:
            return None

        def tell(name: str, _: Any) -> None:
            self.names.append(name)
            self.owners.append(n)

        with _Listener(tell):
            result = super().run_node(n)
        written = isinstance(result, Tensor) and any(writes_in_place(user) for user in n.users)
        self.kept[n] = result.clone() if written else result
        return result


class WholeRun:
    """A run of the whole network, with which runs of cut networks are compared.

    All are run as they are, and their basic operations are compared in the order in which they run.

    Args:
        graph: Of the whole network.
        found: What was found in it.
        whole: The network in double precision.
        call: An input in double precision.
    """

    @torch.no_grad()
    def __init__(self, graph: Graph, found: Walk, whole: nn.Module, call: Call) -> None:
        self._found, self._call = found, call
        nodes = _Nodes(graph)
        with Doubled():
            nodes.run(*_inputs(graph, whole, call))
        self._results = nodes.kept
        self._names: list[str] = []
        with Doubled(), _Listener(lambda name, _: self._names.append(name)):
            call.of(whole)
        self._owners = _owners(self._names, nodes)
        self._last = {node: index for index, node in enumerate(self._owners) if node is not None}

    @torch.no_grad()
    def first_difference(self, slim: nn.Module, choice: Choice, tolerance: float) -> fx.Node | None:
        """The first operation that a cut network runs otherwise, or whose result is not what is left.

        Args:
            slim: The network in double precision, cut.
            choice: What went.
            tolerance: The largest difference that counts as none.
        """
        position = 0

        def tell(name: str, result: Any) -> None:
            nonlocal position
            if position >= len(self._names) or name != self._names[position]:
                raise _Found
            node = self._owners[position]
            if node is not None and self._last[node] == position:
                values, full = self._found.values[node], self._results[node]
                if not _is_left(values, full, result, choice, tolerance):
                    raise _Found
            position += 1

        try:
            with Doubled(), _Listener(tell):
                self._call.of(slim)
        except Exception:  # _Found, or what the forward itself raised at this place
            return next((node for node in self._owners[position:] if node is not None), None)
        return None


def _inputs(graph: Graph, model: nn.Module, call: Call) -> list[Any]:
    """What the graph is called with."""
    states, standing = states_of(model), standing_names(model)
    flat = iter(torch.utils._pytree.tree_leaves((call.args, call.kwargs)))
    return [
        states[standing[graph.states[node.name]]].detach()
        if node.name in graph.states
        else graph.constants[node.name]
        if node.name in graph.constants
        else next(flat)
        for node in graph.nodes
        if node.op == "placeholder"
    ]


def _owners(names: list[str], nodes: _Nodes) -> list[fx.Node | None]:
    """The node that each basic operation of a run belongs to, as far as the two runs are alike."""
    owners: list[fx.Node | None] = [None] * len(names)
    if names == nodes.names:
        return list(nodes.owners)
    matcher = difflib.SequenceMatcher(None, names, nodes.names, autojunk=False)
    for block in matcher.get_matching_blocks():
        owners[block.a : block.a + block.size] = nodes.owners[block.b : block.b + block.size]
    return owners


def _is_left(values: Any, full: Any, result: Any, choice: Choice, tolerance: float) -> bool:
    """Whether a result is what the choice leaves of the whole network's."""
    if not isinstance(values, tuple):
        values, full, result = (values,), (full,), (result,)
    if not isinstance(full, (tuple, list)) or not isinstance(result, (tuple, list)) or len(full) != len(result):
        return len(values) != 1 or isinstance(result, Tensor)
    for value, whole, part in zip(values, full, result, strict=False):
        ids = getattr(value, "ids", None)
        if ids is None or not isinstance(whole, Tensor) or not isinstance(part, Tensor) or whole.shape != ids.shape:
            continue
        left = whole[choice.stays(ids)]
        if left.numel() != part.numel() or not _is_close(left, part.flatten(), tolerance):
            return False
    return True


def _is_close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    if not left.is_floating_point() or not left.numel():
        return torch.equal(left, right)
    left, right = left.double().nan_to_num(), right.double().nan_to_num()
    return float((left - right).abs().max()) <= tolerance * max(float(left.abs().max()), 1e-30)


def pins_at(graph: Graph, node: fx.Node, found: Walk, choice: Choice) -> list[Pin]:
    """Pins for what goes into an operation, and into those that the same line of the model calls.

    If nothing of it was to go, the nearest operation before it from which something went is taken.
    """
    before = graph.nodes[: graph.nodes.index(node) + 1]
    for earlier in reversed(before):
        if earlier.op == "call_function" and (pins := _pins(earlier, found, choice)):
            return pins + [pin for twin in _twins(earlier, graph) for pin in _pins(twin, found, choice)]
    return []


def _pins(node: fx.Node, found: Walk, choice: Choice) -> list[Pin]:
    operation = operation_of(node, found.values)
    reason = f"{operation.label}, whose sizes are written in the forward"
    ids = [torch.unique(value.ids) for value in values_in((operation.args, operation.kwargs, found.values[node]))]
    return [Pin(part, reason) for part in ids if bool((~choice.stays(part)).any())]


def _twins(node: fx.Node, graph: Graph) -> list[fx.Node]:
    """Other operations that the same line of the model's own code calls."""
    line = _line(node)
    if line is None:
        return []
    return [
        other for other in graph.nodes if other is not node and other.target == node.target and _line(other) == line
    ]


def _line(node: fx.Node) -> str | None:
    """The line of code that calls an operation, if it is not one of torch itself."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File " in line]
    return lines[-1] if lines and _TORCH not in lines[-1] else None
