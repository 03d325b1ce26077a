"""What each operation does to channels: one rule a kind of operation; what has none is pinned."""

from __future__ import annotations

from lightning_prune.slim.flow import Flow
from lightning_prune.slim.ops import elementwise, layers, moving, reducing
from lightning_prune.slim.ops.operation import Operation, Result, Rule, operation_of, values_in
from lightning_prune.slim.ops.pinned import pinned

__all__ = ["Operation", "Result", "operation_of", "rule_of", "values_in"]

_RULES: dict[str, Rule] = {**elementwise.RULES, **layers.RULES, **moving.RULES, **reducing.RULES}


def _checked(flow: Flow, operation: Operation) -> Result:
    """What gives no tensor only looks at sizes and types; the run of the slim network shows whether it minds."""
    return ()


def rule_of(operation: Operation) -> Rule:
    """The rule for an operation, of which the writing form (``relu_``) is the same."""
    if not operation.shapes:
        return _checked
    return _RULES.get(operation.name) or _RULES.get(operation.name.removesuffix("_")) or pinned
