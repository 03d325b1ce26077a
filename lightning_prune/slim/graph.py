"""The network as a graph: what calls what, captured by ``torch.export`` with the sizes of one example."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from lightning_prune.basics import copy_untrained
from lightning_prune.basics.quiet import quiet_torch
from lightning_prune.errors import SlimError

__all__ = [
    "Call",
    "Graph",
    "as_call",
    "capture",
    "leaves_of",
    "name_of",
    "plain_copy",
    "to_double",
    "writes_in_place",
]

# Their result shares the memory of their input: a later write to it is a write to that input as well.
_VIEWS = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t movedim squeeze unsqueeze expand expand_as select "
    "slice narrow chunk split split_with_sizes tensor_split unbind diagonal unfold alias detach view_as numpy_T mT "
    "getitem contiguous to".split()
)


@dataclass(frozen=True)
class Call:
    """One call of the model: positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, change: Any) -> Call:
        """The call with each of its tensors replaced by ``change(tensor)``."""
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Call(args, kwargs)

    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        return [leaf for leaf in torch.utils._pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def of(self, model: nn.Module) -> Any:
        """What the model answers to it."""
        return model(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Graph:
    """The operations of a model in eval mode, in the order in which they run.

    Attributes:
        nodes: The calls of operations, and the inputs before them.
        states: The parameter or buffer that an input node stands for, by the node's name.
        constants: Tensors that the forward made itself, by the node's name.
        outputs: The nodes that the model answers with.
    """

    nodes: tuple[fx.Node, ...]
    states: Mapping[str, str]
    constants: Mapping[str, Tensor]
    outputs: tuple[fx.Node, ...]
    program: ExportedProgram

    def results_of(self, module: str) -> list[fx.Node]:
        """What the calls of a module give to operations outside of it, or to the caller of the model."""
        stacks = ((node, node.meta.get("nn_module_stack") or {}) for node in self.nodes)
        inside = {node for node, stack in stacks if any(path == module for path, _ in stack.values())}
        return [node for node in self.nodes if node in inside and (node in self.outputs or not inside >= {*node.users})]


def as_call(example_inputs: Any) -> Call:
    """The call that a user means: a tensor, a sequence of positional arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        call = Call((), dict(example_inputs))
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        call = Call(tuple(example_inputs), {})
    else:
        call = Call((example_inputs,), {})
    if not call.tensors():
        raise SlimError(
            "example_inputs must be a tensor, a sequence of positional arguments or a dict of keyword arguments with a "
            f"tensor in it, got {type(example_inputs).__name__}."
        )
    return call


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, which shares no memory with the model, without what wraps or trains it."""
    try:
        return copy_untrained(model, _to_cpu)[0].eval()
    except Exception as error:
        raise SlimError(
            f"{type(model).__name__} must be a module that copy.deepcopy can copy, but it raised "
            f"{type(error).__name__}: {error}."
        ) from error


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def to_double(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in double precision if its numbers are floating point."""
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def capture(model: nn.Module, call: Call) -> Graph:
    """Capture the model's operations on an example.

    Args:
        model: In eval mode, on the CPU.
        call: The example; its sizes are those of the graph.

    Raises:
        SlimError: The model cannot be called with the example, or cannot be captured.
    """
    program = _export(model, call)
    for node in program.graph.nodes:
        tensors = (leaf for leaf in leaves_of(node.meta.get("val")) if isinstance(leaf, Tensor))
        if any(isinstance(size, torch.SymInt) for tensor in tensors for size in tensor.shape):
            raise SlimError(
                f"{type(model).__name__} must compute tensors whose sizes do not depend on values, but {name_of(node)} "
                "gives one. Write it with torch.where, or slim the submodule that has no such code."
            )
    if _writes_through_views(program.graph):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions({})  # nothing is decomposed; writes become values
    signature = program.graph_signature
    states, constants = {}, {}
    for spec in signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            states[spec.arg.name] = spec.target
        elif spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            constants[spec.arg.name] = program.constants[spec.target]
    nodes = tuple(node for node in program.graph.nodes if node.op != "output")
    last = next(node for node in program.graph.nodes if node.op == "output")
    return Graph(nodes, states, constants, tuple(last.all_input_nodes), program)


def _export(model: nn.Module, call: Call) -> ExportedProgram:
    with torch.no_grad():
        try:
            call.of(model)
        except Exception as error:
            raise SlimError(
                f"example_inputs must be what {type(model).__name__}.forward takes, but calling it raised "
                f"{type(error).__name__}: {_first_line(error)}."
            ) from error
    own = vars(model).get("forward")
    forward = model.forward
    # The exporter knows fewer types of answers than models have.
    model.forward = functools.wraps(forward)(lambda *args, **kwargs: leaves_of(forward(*args, **kwargs)))
    try:
        with warnings.catch_warnings(), torch.enable_grad(), quiet_torch():
            warnings.simplefilter("ignore")
            return torch.export.export(model, call.args, call.kwargs, strict=False)
    except Exception as error:
        raise SlimError(
            f"{type(model).__name__} cannot be captured by torch.export: {_first_line(error)}. A forward whose way "
            "depends on the values of tensors (if, while, .item(), nonzero) has no graph: write it with torch.where, "
            "or slim the submodule that has no such code."
        ) from error
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def leaves_of(output: Any) -> list[Any]:
    """All tensors and other values in an answer, whatever they are packed in."""
    if dataclasses.is_dataclass(output) and not isinstance(output, (Mapping, type)):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    elif isinstance(output, Mapping):
        output = list(output.values())
    elif not isinstance(output, (list, tuple)):
        leaves = torch.utils._pytree.tree_leaves(output)
        return leaves if len(leaves) == 1 and leaves[0] is output else leaves_of(leaves)
    return [leaf for item in output for leaf in leaves_of(item)]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def name_of(node: fx.Node) -> str:
    """The operation's name without its overload: ``add`` of ``aten.add.Tensor``."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _writes_through_views(graph: fx.Graph) -> bool:
    """Whether an operation writes into a tensor that shares its memory with another one."""
    for node in graph.nodes:
        if node.op == "call_function" and writes_in_place(node):
            written = node.args[0] if node.args else node.kwargs.get("self")
            if not isinstance(written, fx.Node) or written.op == "placeholder" or name_of(written) in _VIEWS:
                return True
            if any(name_of(user) in _VIEWS for user in written.users if user is not node and user < node):
                return True
    return False


def writes_in_place(node: fx.Node) -> bool:
    """Whether an operation writes its result into its first argument."""
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None
        and bool(schema.arguments)
        and any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments)
    )
