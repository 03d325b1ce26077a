"""What Core ML Tools 9.0 stumbles over, mended in the captured program or around the conversion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.mil import import_coremltools
from lightning_prune.export.decompositions import SIMPLER, decompose_unknown

__all__ = ["decompose_needed", "drop_aliases", "whole_numbers"]


def drop_aliases(program: Any) -> None:
    """Take ``aten.alias`` out of an exported program, in place: it gives what it takes, and has no converter."""
    graph, signature = program.graph, program.graph_signature
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.alias.default:
            continue
        (source,) = node.args
        is_result = any(user.op == "output" for user in node.users)
        if is_result and source.op == "placeholder":
            continue  # a result that is an input needs an operation between
        if is_result:
            signature.replace_all_uses(node.name, source.name)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    program.graph_module.recompile()


def decompose_needed(program: Any, table: Mapping[Any, Callable[..., Any]]) -> Any:
    """An exported program in which the operations without a converter are broken into others, and no others are.

    Args:
        program: An exported program, as ``run_decompositions({})`` gives it.
        table: How operations can be broken up, where there is no simpler way.

    Raises:
        ExportError: There is a converter for every operation.
    """
    if not unknown_operations(program):
        raise ExportError('the converter knows every operation, so none is broken up. Write frontend="export".')

    def find_unknown(program: Any) -> list[Any]:
        drop_aliases(program)
        return unknown_operations(program)

    return decompose_unknown(program, find_unknown, {**table, **SIMPLER})


def unknown_operations(program: Any) -> list[Any]:
    """The operations of an exported program for which there is no converter."""
    import_coremltools()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    used = {node.target: None for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    names = {operation: operation.name() for operation in used}  # type: ignore[no-untyped-call]
    return [operation for operation, name in names.items() if _TORCH_OPS_REGISTRY.get_func(name) is None]


@contextlib.contextmanager
def whole_numbers() -> Iterator[None]:
    """Let the converter read a number out of an array of one element.

    It calls ``int(array)``, which NumPy 2.4 allows of arrays without dimensions only: a traced
    ``x.view(x.size(0) * x.size(1), -1)`` then fails.
    """
    import_coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch import ops

    honest = getattr(ops, "_cast", None)
    if honest is None:  # of another version
        yield
        return

    def cast(context: Any, node: Any, dtype: Any, dtype_name: str) -> None:
        value = context[node.inputs[0]].val
        if isinstance(value, np.ndarray) and value.ndim and value.size == 1:
            context.add(Builder.const(val=dtype(value.item()), name=node.name), node.name)
        else:
            honest(context, node, dtype, dtype_name)

    ops._cast = cast
    try:
        yield
    finally:
        ops._cast = honest
