"""A configuration meets a model: what is pruned, by which rule, and why the rest is not."""

from __future__ import annotations

from lightning_prune.plan.coupling import couple_plan
from lightning_prune.plan.names import SUPPORTED_MODULES
from lightning_prune.plan.patterns import dense_advice, exact_pattern, shared_patterns
from lightning_prune.plan.planning import plan_pruning
from lightning_prune.plan.reach import warn_of_dense
from lightning_prune.plan.rows import Coupled, Owner, PrunedParameter, PruningPlan, SkippedModule
from lightning_prune.plan.weight_norm import (
    computed_weight,
    computed_weights,
    copy_module,
    fill_zero_rows,
    normed_names,
    normed_weight,
    prune_normed,
    recompute_weights,
    row_axis,
    split_mask,
)

__all__ = [
    "Coupled",
    "Owner",
    "PrunedParameter",
    "PruningPlan",
    "SUPPORTED_MODULES",
    "SkippedModule",
    "computed_weight",
    "computed_weights",
    "copy_module",
    "couple_plan",
    "dense_advice",
    "exact_pattern",
    "fill_zero_rows",
    "normed_names",
    "normed_weight",
    "plan_pruning",
    "prune_normed",
    "recompute_weights",
    "row_axis",
    "shared_patterns",
    "split_mask",
    "warn_of_dense",
]
