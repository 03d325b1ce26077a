"""Where layers start: at what their rules say, or at the zeros that an earlier pruning left."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.masking import MaskingWay
from lightning_prune.plan import PrunedParameter, PruningPlan
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.scoring import need_scorable
from lightning_prune.sharding import Rounds, Sharding, find_shardings, local_part, run_together

__all__ = ["Start", "attach_layers", "find_starts"]


@dataclass(frozen=True)
class Start:
    """Where a layer starts.

    Attributes:
        sharding: Who holds which part of its weight.
        sparsity: Fraction of zeros from which its schedule goes on.
        kept: Fraction of zeros that an earlier pruning left, which its first mask takes over; None where there are
            none, and weights are ranked as at every update.
    """

    sharding: Sharding
    sparsity: float
    kept: float | None = None


def find_starts(plan: PruningPlan, scope: Scope, *, keep_zeros: bool) -> list[Start]:
    """Find where each layer starts; every process that holds a part of a weight must do so.

    With ``scope="global"`` the zeros of an earlier pruning stay where they are, and schedules go on from the share of
    all layers together, as what a layer has more than others is no target of its own. The ranking of an update would
    not always find the same zeros: it leaves each layer a share of its weights, takes no layer beyond its target, and
    may find those of a layer that is all zero from its initialisation.

    Raises:
        ConfigError: A rule cannot be ranked with those of other layers, as ``scope="global"`` asks for.
    """
    for planned in plan:
        need_scorable(planned)
    if scope == "global":
        _need_single_weights(plan)
        _need_one_score(plan)
    shardings = find_shardings([planned.parameter for planned in plan])
    initial = [planned.config.initial_sparsity for planned in plan]
    zeros = [0.0] * len(shardings)
    if keep_zeros:
        pairs = zip(plan, shardings, strict=True)
        present = run_together([(sharding, _present_sparsity(planned, sharding)) for planned, sharding in pairs])
        zeros = _meant_zeros(plan, _together(plan, present), scope)
    kept = [max(*both) for both in zip(initial, zeros, strict=True)]
    if scope == "layer" or not any(zeros):
        return [Start(*both) for both in zip(shardings, kept, strict=True)]
    share = sum(zeros * planned.numel for zeros, planned in zip(kept, plan, strict=True)) / sum(
        planned.numel for planned in plan
    )
    shared = [max(planned.config.initial_sparsity, min(share, planned.config.target_sparsity)) for planned in plan]
    return [Start(*three) for three in zip(shardings, shared, kept, strict=True)]


def _together(plan: PruningPlan, present: list[float]) -> list[float]:
    """The same fractions, but for channels that can only go together: those of which all parts are zero."""
    sets: dict[int, list[PrunedParameter]] = defaultdict(list)
    for planned in plan:
        if planned.coupled is not None:
            sets[planned.coupled.group].append(planned)
    found = {group: _zero_channels(members) for group, members in sets.items()}
    pairs = zip(plan, present, strict=True)
    return [own if planned.coupled is None else found[planned.coupled.group] for planned, own in pairs]


def _zero_channels(members: Sequence[PrunedParameter]) -> float:
    """Fraction of coupled channels of which every part is zero; 0 where all are."""
    alive: Tensor | None = None
    for planned in members:
        coupled = planned.coupled
        if coupled is None:
            continue
        alive = torch.zeros(len(coupled.units), dtype=torch.bool) if alive is None else alive
        rows = planned.parameter.detach().movedim(coupled.axis, 0).flatten(1) if len(planned.shape) > 1 else None
        used = planned.parameter.detach() != 0 if rows is None else (rows != 0).any(1)
        alive[coupled.classes[used.cpu() & (coupled.classes >= 0)]] = True
    return 0.0 if alive is None or not bool(alive.any()) else 1.0 - float(alive.double().mean())


def attach_layers(plan: PruningPlan, way: MaskingWay, starts: Sequence[Start]) -> list[Layer]:
    """Put masks of ones on all planned parameters, or on none where that fails."""
    layers: list[Layer] = []
    try:
        for planned, start in zip(plan, starts, strict=True):
            held = way.attach(planned)
            layers.append(Layer(planned, held, start.sparsity, planned.config.schedule, start.sharding))
    except BaseException:
        for layer in layers:
            layer.held.undo()
        raise
    return layers


def _need_single_weights(plan: PruningPlan) -> None:
    """Refuse rules whose groups are no single weights, or whose sparsity is fixed."""
    for planned in plan:
        if not planned.layout.ranks_single_weights:
            raise ConfigError(
                f'{planned.rule}: scope="global" ranks the single weights of all layers together, but {planned.name} '
                f'is pruned as {planned.structure}. Write scope="layer", or granularity per_scalar without block_size '
                "and n_m_ratio."
            )


def _need_one_score(plan: PruningPlan) -> None:
    """Refuse to rank magnitudes and scores, or scores of different sorts, in one row."""
    first = next(iter(plan))
    for planned in plan:
        if planned.config.score != first.config.score:
            raise ConfigError(
                f'scope="global" ranks all layers together, so {first.rule} and {planned.rule} must have the same '
                'score, or both none. Write scope="layer", or one score for all.'
            )


def _meant_zeros(plan: PruningPlan, present: list[float], scope: Scope) -> list[float]:
    """Fractions of zeros that an earlier pruning left; where a rule never makes as many, they are an initialisation."""
    weights, targets = [planned.numel for planned in plan], [planned.config.target_sparsity for planned in plan]
    if scope == "global":
        asked = sum(target * weight for target, weight in zip(targets, weights, strict=True))
        is_meant = sum(zeros * weight for zeros, weight in zip(present, weights, strict=True)) <= asked
        kept = present if is_meant else [0.0] * len(present)
    else:
        kept = [zeros if zeros <= target else 0.0 for zeros, target in zip(present, targets, strict=True)]
    changes = zip(plan, present, kept, strict=True)
    lost = [f"{planned.name} ({zeros:.1%})" for planned, zeros, new in changes if zeros > new]
    if lost:
        warnings.warn(
            f"More zeros than the target asks for: {', '.join(lost)}. They count as initialised so, and are trained "
            "from here on. To keep the zeros of an earlier pruning, ask for as many.",
            stacklevel=4,
        )
    return kept


def _present_sparsity(planned: PrunedParameter, sharding: Sharding) -> Rounds[float]:
    """Fraction of groups of a weight that are zero already; 0 where all are, which says nothing about what to keep."""
    zeros, groups = yield from planned.layout.present_zeros(local_part(planned.weight), sharding)
    return 0.0 if zeros == groups else zeros / groups
