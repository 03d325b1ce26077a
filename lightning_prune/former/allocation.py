"""``lightning_prune.allocation`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import Allocation, allocate
from lightning_prune.masks import erdos_renyi_kernel_zeros, global_zeros, uniform_zeros

__all__ = ["Allocation", "allocate", "erdos_renyi_kernel_zeros", "global_zeros", "uniform_zeros"]
