"""Masks computed anew: which weights are ranked together, and what that changes.

An update is a list of tasks that run side by side, each on what is ranked together: here a task for each layer. Where
layers share one ranking of single weights, that ranking says beforehand how many zeros each of them gets. What is to
rank rows of several parameters as one is a task of its own kind, made in :func:`update_layers` for the layers that it
takes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from lightning_prune.errors import PruningError
from lightning_prune.masks import count_zeros, holds_nan, rank_together, whole_rows
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.timeline import Asked
from lightning_prune.sharding import Rounds, add_up, run_together

__all__ = ["update_layers"]


def update_layers(
    asked: Asked, scope: Scope, *, zeros: Sequence[float] | None = None, track_changes: bool = False
) -> tuple[int, int]:
    """Compute the masks of layers anew from their dense weights, in place.

    Args:
        asked: The layers, and what their schedules ask for.
        scope: What is ranked together.
        zeros: Fraction of zeros that each mask gets, where the scope is not to say it.
        track_changes: Whether to count what changes.

    Returns:
        How many weights are newly pruned, and how many return; both 0 without ``track_changes``.

    Raises:
        PruningError: A weight holds NaN; its mask is unchanged, and every weight agrees with its mask.
    """
    try:
        if zeros is None:
            zeros = _rank_globally(asked) if scope == "global" else [sparsity for _, sparsity in asked]
        tasks = [
            (layer.sharding, _update_layer(layer, sparsity, own, track_changes))
            for (layer, sparsity), own in zip(asked, zeros, strict=True)
        ]
        changes = run_together(tasks)
    except BaseException:
        for layer, _ in asked:
            layer.held.settle()
        raise
    return sum(pruned for pruned, _ in changes), sum(returned for _, returned in changes)


def _rank_globally(asked: Asked) -> list[float]:
    """Move zeros between layers to where one ranking of all dense weights finds the smallest."""
    if not asked:
        return []
    layers = [layer for layer, _ in asked]
    dense = [layer.held.dense() for layer in layers]
    try:
        return rank_together(dense, [sparsity for _, sparsity in asked], [layer.sharding for layer in layers])
    except PruningError as error:
        invalid = [layer.plan.name for layer, weight in zip(layers, dense, strict=True) if holds_nan(weight)]
        raise type(error)(f"{', '.join(invalid) or 'The layers'} cannot be pruned: {error}") from error


def _update_layer(layer: Layer, asked: float, zeros: float, track_changes: bool) -> Rounds[tuple[int, int]]:
    """Compute the mask of a layer by itself; arguments and result as for :func:`update_layers`."""
    held, structure = layer.held, layer.plan.config.structure
    out = held.mask.view(torch.bool)
    before = out.clone() if track_changes else out
    try:
        yield from structure.compute(held.dense(), zeros, out, layer.sharding)
    except PruningError as error:
        raise type(error)(f"{layer.plan.name} cannot be pruned: {error}") from error
    layer.measured = None
    held.settle()  # at once, while this layer is in the processor's cache
    layer.sparsity = asked
    return (yield from _count_changes(layer, before, out)) if track_changes else (0, 0)


def _count_changes(layer: Layer, before: Tensor, after: Tensor) -> Rounds[tuple[int, int]]:
    """Count weights of the whole layer that are newly pruned, and that returned."""
    shape, whole = layer.plan.shape, layer.plan.config.structure.mask_shape(layer.plan.shape)
    rows = [whole_rows(flags, layer.sharding, whole, 1) for flags in (before & ~after, after & ~before)]
    counts = [flags.numel() - count_zeros(flags) for flags in rows]
    pruned, returned = yield from add_up(counts, after.device)
    weights = prod(shape) // prod(whole)  # for which a byte of the mask stands
    return pruned * weights, returned * weights
