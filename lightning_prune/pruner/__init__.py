"""The pruner: prepare, step, finalize, its state and its report. No Lightning."""

from __future__ import annotations

from lightning_prune.pruner.choices import Scope, check_choices
from lightning_prune.pruner.coupling import Planner
from lightning_prune.pruner.pruner import MagnitudePruner
from lightning_prune.pruner.report import LayerSparsity, MaskChanges, SparsityReport, describe_structure, stored_bytes
from lightning_prune.pruner.rewind import Rewind
from lightning_prune.pruner.state_values import MOST_STEPS

__all__ = [
    "LayerSparsity",
    "MOST_STEPS",
    "MagnitudePruner",
    "MaskChanges",
    "Planner",
    "Rewind",
    "Scope",
    "SparsityReport",
    "check_choices",
    "describe_structure",
    "stored_bytes",
]
