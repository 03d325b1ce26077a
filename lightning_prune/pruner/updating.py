"""Masks computed anew: which weights are ranked together, and what that changes.

An update is a list of tasks that run side by side, each on what is ranked together: here a task for each layer. Where
layers share one ranking of single weights, that ranking says beforehand how many zeros each of them gets; where their
channels can only go together, it is chosen beforehand which of these stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_prune.errors import PruningError
from lightning_prune.masks import along_axis, count_zeros, holds_nan, keep_coupled, rank_together, whole_rows
from lightning_prune.plan import Coupled
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.scoring import ranked_values
from lightning_prune.pruner.timeline import Asked
from lightning_prune.sharding import Rounds, add_up, run_together

__all__ = ["update_layers"]


def update_layers(
    asked: Asked, scope: Scope, *, zeros: Sequence[float] | None = None, track_changes: bool = False
) -> tuple[int, int]:
    """Compute the masks of layers anew, in place, from their dense weights or the scores that their rules name.

    Args:
        asked: The layers, and what their schedules ask for.
        scope: What is ranked together.
        zeros: Fraction of zeros that each mask gets at the start, where magnitudes alone are ranked; else the scope
            says it.
        track_changes: Whether to count what changes.

    Returns:
        How many weights are newly pruned, and how many return; both 0 without ``track_changes``.

    Raises:
        PruningError: A weight holds NaN; its mask is unchanged, and every weight agrees with its mask.
    """
    ranked: dict[int, Tensor] = {}  # what is known of it, by the layer
    read = ranked_values if zeros is None else _magnitudes
    try:
        if zeros is None:
            zeros = _rank_globally(asked, ranked) if scope == "global" else [sparsity for _, sparsity in asked]
        kept = _keep_coupled(asked, zeros)
        tasks = [
            (layer.sharding, _update_layer(layer, sparsity, own, kept, track_changes, ranked, read))
            for (layer, sparsity), own in zip(asked, zeros, strict=True)
        ]
        changes = run_together(tasks)
    except BaseException:
        for layer, _ in asked:
            layer.held.settle()
        raise
    return sum(pruned for pruned, _ in changes), sum(returned for _, returned in changes)


def _magnitudes(layer: Layer) -> Tensor:
    return layer.held.dense()


def _named_values(layer: Layer) -> Tensor:
    try:
        return ranked_values(layer)
    except PruningError as error:
        raise type(error)(f"{layer.plan.name} cannot be pruned: {error}") from error


def _rank_globally(asked: Asked, ranked: dict[int, Tensor]) -> list[float]:
    """Move zeros between layers to where one ranking finds the smallest; what was ranked is left in ``ranked``."""
    if not asked:
        return []
    layers = [layer for layer, _ in asked]
    dense = [_named_values(layer) for layer in layers]
    ranked |= {id(layer): values for layer, values in zip(layers, dense, strict=True)}
    try:
        return rank_together(dense, [sparsity for _, sparsity in asked], [layer.sharding for layer in layers])
    except PruningError as error:
        invalid = [layer.plan.name for layer, weight in zip(layers, dense, strict=True) if holds_nan(weight)]
        raise type(error)(f"{', '.join(invalid) or 'The layers'} cannot be pruned: {error}") from error


def _keep_coupled(asked: Asked, zeros: Sequence[float]) -> dict[int, Tensor]:
    """Choose the coupled channels of each set of layers together; bool of shape ``(channels,)`` by the set's number."""
    sets: dict[int, list[tuple[Layer, Coupled, float]]] = defaultdict(list)
    for (layer, _), own in zip(asked, zeros, strict=True):
        if layer.plan.coupled is not None:
            sets[layer.plan.coupled.group].append((layer, layer.plan.coupled, own))
    kept = {}
    for group, members in sets.items():
        weights = [(layer.held.dense(), coupled.axis, coupled.classes) for layer, coupled, _ in members]
        _, coupled, own = members[0]
        try:
            kept[group] = keep_coupled(weights, own, coupled.units)
        except PruningError as error:
            names = ", ".join(layer.plan.name for layer, _, _ in members)
            raise type(error)(f"{names} cannot be pruned: {error}") from error
    return kept


def _update_layer(
    layer: Layer,
    asked: float,
    zeros: float,
    kept: Mapping[int, Tensor],
    track_changes: bool,
    ranked: dict[int, Tensor],
    read: Callable[[Layer], Tensor],
) -> Rounds[tuple[int, int]]:
    """Compute the mask of a layer, by itself or as one of a set; arguments and result as for :func:`update_layers`."""
    held, structure = layer.held, layer.plan.layout
    out = held.mask.view(torch.bool)
    before = out.clone() if track_changes else out
    coupled = layer.plan.coupled
    values = ranked.pop(id(layer), None)
    try:
        if coupled is None:
            yield from structure.compute(read(layer) if values is None else values, zeros, out, layer.sharding)
        else:  # which shows its dense weight since the choice was made
            keep = kept[coupled.group][coupled.classes.clamp(min=0)] | (coupled.classes < 0)
            out.copy_(along_axis(keep, coupled.axis, out.shape))
    except PruningError as error:
        raise type(error)(f"{layer.plan.name} cannot be pruned: {error}") from error
    layer.measured = None
    held.settle()  # at once, while this layer is in the processor's cache
    layer.sparsity = asked
    return (yield from _count_changes(layer, before, out)) if track_changes else (0, 0)


def _count_changes(layer: Layer, before: Tensor, after: Tensor) -> Rounds[tuple[int, int]]:
    """Count weights of the whole layer that are newly pruned, and that returned."""
    shape, whole = layer.plan.shape, layer.plan.layout.mask_shape(layer.plan.shape)
    rows = [whole_rows(flags, layer.sharding, whole, 1) for flags in (before & ~after, after & ~before)]
    counts = [flags.numel() - count_zeros(flags) for flags in rows]
    pruned, returned = yield from add_up(counts, after.device)
    weights = prod(shape) // prod(whole)  # for which a byte of the mask stands
    return pruned * weights, returned * weights
