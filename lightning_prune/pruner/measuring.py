"""Counts of the zeros of masks that several processes hold together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_prune.masks import whole_rows
from lightning_prune.plan import PrunedParameter
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.report import LayerSparsity, measure_layer
from lightning_prune.sharding import Rounds, Sharding, run_together

__all__ = ["measure_sharded"]


def measure_sharded(layers: list[Layer]) -> None:
    """Count the zeros of sharded layers right after an update, so that a report never has to ask other processes."""
    changed = [(one, one.sharding) for one in layers if one.sharding is not None and one.measured is None]
    tasks = [(sharding, _measure_one(one.plan, one.held.mask.view(torch.bool), sharding)) for one, sharding in changed]
    for (one, _), measured in zip(changed, run_together(tasks), strict=True):
        one.measured = measured


def _measure_one(one: PrunedParameter, mask: Tensor, sharding: Sharding) -> Rounds[LayerSparsity]:
    whole = one.config.structure.mask_shape(one.shape)
    rows = whole_rows(mask, sharding, whole, 2)
    local = replace(one, shape=(len(rows), *one.shape[1:]))
    counts = torch.zeros(3, dtype=torch.int64, device=mask.device)
    if len(rows):
        here = measure_layer(local, rows)
        counts += torch.tensor([here.zeros, here.zero_channels, here.zero_pairs or 0], device=mask.device)
    zeros, channels, pairs = (yield counts).tolist()
    return LayerSparsity.of(one, zeros, channels, pairs)
