"""Masks computed anew: which layers are due, how sparse they are to be, and what that changes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lightning_prune.errors import CheckpointError, ConfigError, PruningError
from lightning_prune.masks import count_zeros, holds_nan, rank_together, whole_rows
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.state import ParameterState
from lightning_prune.schedules import PruningScheduler
from lightning_prune.sharding import Rounds, add_up

__all__ = ["find_behind", "need_fractions", "need_numbers", "rank_layers", "update_layer"]


def find_behind(
    groups: list[tuple[PruningScheduler, list[Layer]]], chosen: list[Layer], first: int, last: int
) -> list[tuple[Layer, float]]:
    """Find which of the chosen layers have less sparsity than their schedules, played from one step to another, say."""
    asked: list[tuple[Layer, float]] = []
    for scheduler, layers in groups:
        behind = [one for one in layers if any(one is other for other in chosen)]
        due = list(scheduler.due_steps(first, last)) if behind else []
        for layer in behind:
            sparsity = layer.sparsity
            for step in due:
                sparsity = float(scheduler.compute_sparsity(step, sparsity, layer))
            if sparsity > layer.sparsity:
                asked.append((layer, sparsity))
    need_fractions(asked)
    return asked


def need_fractions(asked: list[tuple[Layer, float]]) -> None:
    """Refuse a sparsity that a schedule of the user's own has given and that is none."""
    for layer, sparsity in asked:
        if not 0.0 <= sparsity <= 1.0:
            raise ConfigError(
                f"{layer.plan.rule}.scheduler gave a sparsity of {sparsity}; it must be a fraction in [0, 1]."
            )


def need_numbers(layers: list[Layer], states: Mapping[int, ParameterState]) -> None:
    """Refuse a state from which a layer is to be pruned further, but cannot be ranked."""
    for layer in layers:
        values = states[id(layer)].pruned_values
        if layer.sharding.is_whole and (
            holds_nan(layer.held.parameter.detach()) or (values is not None and holds_nan(values))
        ):
            raise CheckpointError(
                f"{layer.plan.name} holds NaN, so it cannot be pruned as far as the rule of now asks. Resume from a "
                "checkpoint of before, or with the rule of the checkpoint."
            )


def rank_layers(asked: list[tuple[Layer, float]]) -> list[float]:
    """Move zeros between layers to where one ranking of all dense weights finds the smallest."""
    if not asked:
        return []
    layers = [layer for layer, _ in asked]
    dense = [layer.held.dense() for layer in layers]
    try:
        return rank_together(dense, [sparsity for _, sparsity in asked], [layer.sharding for layer in layers])
    except PruningError as error:
        invalid = [layer.plan.name for layer, one in zip(layers, dense, strict=True) if holds_nan(one)]
        raise type(error)(f"{', '.join(invalid) or 'The layers'} cannot be pruned: {error}") from error


def update_layer(layer: Layer, asked: float, sparsity: float, track_changes: bool) -> Rounds[tuple[int, int]]:
    """Compute one mask from the dense weights, in place.

    Args:
        layer: Whose mask.
        asked: Sparsity that its schedule asks for.
        sparsity: Sparsity that it gets.
        track_changes: Whether to count.

    Returns:
        How many weights are newly pruned, and how many return.
    """
    held, structure = layer.held, layer.plan.config.structure
    out = held.mask.view(torch.bool)
    before = out.clone() if track_changes else out
    try:
        yield from structure.compute(held.dense(), sparsity, out, layer.sharding)
    except PruningError as error:
        raise type(error)(f"{layer.plan.name} cannot be pruned: {error}") from error
    layer.measured = None
    held.settle()  # at once, while this layer is in the processor's cache
    layer.sparsity = asked
    return (yield from _count_changes(layer, before, out)) if track_changes else (0, 0)


def _count_changes(layer: Layer, before: Tensor, after: Tensor) -> Rounds[tuple[int, int]]:
    """Weights of the whole layer that are newly pruned, and that returned."""
    shape, whole = layer.plan.shape, layer.plan.config.structure.mask_shape(layer.plan.shape)
    rows = [whole_rows(flags, layer.sharding, whole, 1) for flags in (before & ~after, after & ~before)]
    counts = [flags.numel() - count_zeros(flags) for flags in rows]
    pruned, returned = yield from add_up(counts, after.device)
    weights = prod(shape) // prod(whole)  # for which one byte of the mask stands
    return pruned * weights, returned * weights
