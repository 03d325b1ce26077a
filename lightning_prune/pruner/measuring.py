"""Counts of the zeros of masks, in one process or in several that hold them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_prune.errors import LifecycleError
from lightning_prune.masks import whole_rows
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.report import LayerSparsity, SparsityReport, measure_layer
from lightning_prune.sharding import Rounds, add_up, run_together

__all__ = ["measure_sharded", "measure_whole", "report_layers"]


def report_layers(layers: Sequence[Layer], *, has_targets: bool) -> SparsityReport:
    """Count the zeros of layers, but for those that wait to be trained.

    Args:
        layers: The layers.
        has_targets: Whether each of them has a target of its own.

    Raises:
        LifecycleError: An update of a sharded model failed, so that the processes could not count together.
    """
    measure_whole(layers)
    pruned = [layer for layer in layers if not layer.is_waiting]
    measured = [layer.measured for layer in pruned if layer.measured is not None]
    if len(measured) < len(pruned):
        raise LifecycleError("report() cannot count the zeros of a sharded model whose last update failed.")
    return SparsityReport(measured if has_targets else [replace(layer, target_sparsity=None) for layer in measured])


def _measure(layers: Sequence[Layer]) -> None:
    """Count the zeros of those layers whose masks have changed; every process that holds a part must do so."""
    changed = [layer for layer in layers if layer.measured is None]
    found = run_together([(layer.sharding, _count_zeros(layer)) for layer in changed])
    for layer, measured in zip(changed, found, strict=True):
        layer.measured = measured


def measure_sharded(layers: Sequence[Layer]) -> None:
    """Count the zeros of sharded layers right after an update, so that a report never has to ask other processes."""
    _measure([layer for layer in layers if not layer.sharding.is_whole])


def measure_whole(layers: Sequence[Layer]) -> None:
    """Count the zeros of the layers that lie wholly in this process, when they are asked for."""
    _measure([layer for layer in layers if layer.sharding.is_whole])


def _count_zeros(layer: Layer) -> Rounds[LayerSparsity]:
    parameter, mask = layer.plan, layer.held.mask.view(torch.bool)
    whole = parameter.layout.mask_shape(parameter.shape)
    rows = whole_rows(mask, layer.sharding, whole, 2)  # pairs of rows are counted
    counts = [0, 0, 0]
    if len(rows):
        here = measure_layer(replace(parameter, shape=(len(rows), *parameter.shape[1:])), rows)
        counts = [here.zeros, here.zero_channels, here.zero_pairs or 0]
    zeros, channels, pairs = yield from add_up(counts, mask.device)
    return LayerSparsity.of(parameter, zeros, channels, pairs)
