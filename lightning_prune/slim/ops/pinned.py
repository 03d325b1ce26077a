"""What is not followed: its operands stay as they are, and so do its results."""

from __future__ import annotations

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.ops.operation import Operation, Result, values_in

__all__ = ["pinned"]


def pinned(flow: Flow, operation: Operation) -> Result:
    """Pin every slot that the operation touches."""
    operands = values_in((operation.args, operation.kwargs))
    for value in operands:
        flow.pin(value, operation.label)
    results = tuple(flow.unknown(shape, operation.label) for shape in operation.shapes)
    return results[0] if operation.single else results
