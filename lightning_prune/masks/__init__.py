"""Weight, structure and count become a mask. Pure functions of tensors: no configuration, no module."""

from __future__ import annotations

from lightning_prune.masks.compute import Granularity, magnitude_mask
from lightning_prune.masks.coupled import along_axis, keep_coupled
from lightning_prune.masks.given import Given
from lightning_prune.masks.n_m import n_m_mask
from lightning_prune.masks.selection import FORMATS, GOLDEN, holds_nan, pruned_count
from lightning_prune.masks.shards import gather_state, whole_rows
from lightning_prune.masks.spreads import (
    Bound,
    default_maximum,
    erdos_renyi_kernel_zeros,
    global_zeros,
    rank_together,
    uniform_zeros,
)
from lightning_prune.masks.structure import Channels, Structure, compute_mask, structure_of
from lightning_prune.masks.zeros import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_counts, zero_kernels

__all__ = [
    "Bound",
    "Channels",
    "FORMATS",
    "GOLDEN",
    "Given",
    "Granularity",
    "Structure",
    "along_axis",
    "compute_mask",
    "count_zeros",
    "default_maximum",
    "erdos_renyi_kernel_zeros",
    "gather_state",
    "global_zeros",
    "holds_nan",
    "keep_coupled",
    "magnitude_mask",
    "n_m_groups",
    "n_m_mask",
    "pruned_count",
    "rank_together",
    "structure_of",
    "uniform_zeros",
    "whole_rows",
    "zero_blocks",
    "zero_channels",
    "zero_counts",
    "zero_kernels",
]
