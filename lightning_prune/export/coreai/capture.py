"""From a standalone module to a graph that the converter takes as it is, without copies of weights."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from lightning_prune.basics.quiet import quiet_torch
from lightning_prune.errors import ExportError
from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.coreai.gaps import decompose
from lightning_prune.export.coreai.installed import CoreAI
from lightning_prune.export.standalone import Standalone

__all__ = ["PREFIXES", "capture"]

aten = torch.ops.aten
# What the names of the model's parameters begin with in a captured program, by the precision that it computes in.
PREFIXES = {"float32": "model.", "float16": "standalone.model."}
# What only gives the values of a tensor another shape, or repeats them.
RESHAPING = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.clone.default,
)


def capture(standalone: Standalone, core: CoreAI, *, precision: str) -> torch.export.ExportedProgram:
    """Capture the computation as operations that the converter knows, as far as they can be broken into such.

    Args:
        standalone: What to capture; not changed.
        core: The converter.
        precision: ``"float32"``, or ``"float16"`` for a network that computes in it, between inputs and outputs that
            are float32.

    Raises:
        ExportError: The model changes its buffers in eval mode.
    """
    module: nn.Module = Halved(standalone) if precision == "float16" else standalone
    with warnings.catch_warnings(), torch.no_grad(), quiet_torch(), kept_buffers(standalone):
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), standalone.inputs, strict=False)
        program = decompose(core, exported)
    if changed := program.graph_signature.buffers_to_mutate.values():
        raise ExportError(
            f"The model must leave its buffers as they are in eval mode, but its forward changes {', '.join(changed)}. "
            "CoreAIExport writes no states: return them as outputs and take them as inputs."
        )
    drop_relayouts(program.graph)
    multiply_once(program.graph)
    part_outputs(program)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


class Halved(nn.Module):
    """A module in float16 between inputs and outputs in float32."""

    def __init__(self, standalone: Standalone) -> None:
        super().__init__()
        self.standalone = copy.deepcopy(standalone).half()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the module in float16, as float32."""
        halved = (tensor.half() if tensor.is_floating_point() else tensor for tensor in tensors)
        outputs = self.standalone(*halved)
        return tuple(output.float() if output.dtype == torch.float16 else output for output in outputs)


def drop_relayouts(graph: Graph) -> None:
    """Make a view of each ``as_strided`` that only names other strides, which the converter does not know."""
    for node in list(graph.nodes):
        if node.target is not aten.as_strided.default or len(node.args) != 3:
            continue
        source, size, stride = node.args
        value = value_of(source)
        laid_out = torch.empty_strided(value.shape, value.stride(), dtype=torch.int64)
        numbers = torch.arange(value.numel())
        laid_out.copy_(numbers.view(value.shape))
        if torch.equal(laid_out.as_strided(size, stride).reshape(-1), numbers):
            replace(node, insert(node, aten.view.default, source, list(size), value=value_of(node)))


def multiply_once(graph: Graph) -> None:
    """Multiply a batch by a matrix as one larger matrix, instead of by a copy of the matrix for each sample.

    ``torch.export`` makes of a Linear on three dimensions a product of batches, and expands the weight; the converter
    then computes the expansion, and writes the weight once for every sample or step of a sequence.
    """
    for node in list(graph.nodes):
        if node.target is not aten.bmm.default:
            continue
        left, right = node.args
        if (matrix := expanded_matrix(right)) is not None:
            replace(node, product(node, left, matrix))
        elif (matrix := expanded_matrix(left)) is not None:
            turned = product(node, transposed(node, right, 1, 2), transposed(node, matrix, 0, 1))
            replace(node, transposed(node, turned, 1, 2))


def expanded_matrix(node: Node) -> Node | None:
    """The matrix behind a batch of its copies; None where it is no such batch."""
    batch, is_expanded = value_of(node), False
    while node.target in RESHAPING:
        is_expanded |= node.target is aten.expand.default
        node = node.args[0]  # type: ignore[assignment]
        if is_expanded and value_of(node).shape == batch.shape[1:]:
            return node
    return None


def product(before: Node, batch: Node, matrix: Node) -> Node:
    """A batch ``(B, M, K)`` times a matrix ``(K, N)``: ``(B, M, N)``."""
    values, columns = value_of(batch), value_of(matrix).shape[1]
    samples, rows, inner = values.shape
    flat = insert(before, aten.view.default, batch, [samples * rows, inner], value=values.flatten(0, 1))
    multiplied = insert(before, aten.mm.default, flat, matrix, value=values.new_empty(samples * rows, columns))
    shape = [samples, rows, columns]
    return insert(before, aten.view.default, multiplied, shape, value=values.new_empty(shape))


def transposed(before: Node, node: Node, first: int, second: int) -> Node:
    """A tensor with two of its dimensions exchanged."""
    value = value_of(node)
    dims = list(range(value.ndim))
    dims[first], dims[second] = second, first
    return insert(before, aten.permute.default, node, dims, value=value.permute(dims))


def part_outputs(program: torch.export.ExportedProgram) -> None:
    """Give each output a node of its own: the converter writes a tensor that is returned twice only once."""
    output = program.graph.output_node()
    row: list[Any] = list(output.args[0])
    for at, node in enumerate(row):
        if node in row[:at]:
            row[at] = insert(output, aten.clone.default, node, value=value_of(node))
            program.graph_signature.output_specs[at].arg.name = row[at].name
    output.args = (tuple(row),)


def value_of(node: Node) -> Tensor:
    """The shape, strides and type of what a node gives, as a fake tensor."""
    value: Tensor = node.meta["val"]
    return value


def insert(before: Node, target: Any, *args: Any, value: Tensor) -> Node:
    """A new node in front of another one."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    node.meta["val"] = value
    return node


def replace(node: Node, other: Node) -> None:
    """Let all that reads a node read another one."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
