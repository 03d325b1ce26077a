"""Where a pruner starts: from the zeros that an earlier pruning left, layer by layer or of all together."""

from __future__ import annotations

import warnings

from lightning_prune.errors import ConfigError
from lightning_prune.plan import PrunedParameter, PruningPlan
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.layer import Layer
from lightning_prune.sharding import Rounds, Sharding, local_part

__all__ = ["kept_sparsities", "need_single_weights", "present_sparsity", "share_schedule"]


def need_single_weights(plan: PruningPlan) -> None:
    """Refuse rules whose groups are no single weights, or whose sparsity is fixed."""
    for one in plan:
        if not one.config.structure.ranks_single_weights:
            raise ConfigError(
                f'{one.rule}: scope="global" ranks the single weights of all layers together, but {one.name} is pruned '
                f'as {one.structure}. Write scope="layer", or granularity per_scalar without block_size and n_m_ratio.'
            )


def kept_sparsities(plan: PruningPlan, present: list[float], scope: Scope) -> list[float]:
    """Fractions of zeros that an earlier pruning left; where a rule never makes as many, they are an initialisation."""
    weights, targets = [one.numel for one in plan], [one.config.target_sparsity for one in plan]
    if scope == "global":
        asked = sum(target * weight for target, weight in zip(targets, weights, strict=True))
        is_meant = sum(zeros * weight for zeros, weight in zip(present, weights, strict=True)) <= asked
        kept = present if is_meant else [0.0] * len(present)
    else:
        kept = [zeros if zeros <= target else 0.0 for zeros, target in zip(present, targets, strict=True)]
    lost = [f"{one.name} ({zeros:.1%})" for one, zeros, new in zip(plan, present, kept, strict=True) if zeros > new]
    if lost:
        warnings.warn(
            f"More zeros than the target asks for: {', '.join(lost)}. They count as initialised so, and are trained "
            "from here on. To keep the zeros of an earlier pruning, ask for as many.",
            stacklevel=4,
        )
    return kept


def share_schedule(layers: list[Layer]) -> None:
    """Let schedules go on from the zeros of all layers together: what one of them has more than others is no target."""
    weights = sum(layer.plan.numel for layer in layers)
    share = sum(layer.initial_sparsity * layer.plan.numel for layer in layers) / weights
    for layer in layers:
        start = max(layer.plan.config.initial_sparsity, min(share, layer.target_sparsity))
        layer.initial_sparsity = layer.sparsity = start


def present_sparsity(one: PrunedParameter, sharding: Sharding) -> Rounds[float]:
    """Fraction of groups of a weight that are zero already; 0 where all are, which says nothing about what to keep."""
    zeros, groups = yield from one.config.structure.present_zeros(local_part(one.weight), sharding)
    return 0.0 if zeros == groups else zeros / groups
