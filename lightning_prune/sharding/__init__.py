"""Who holds what of a weight, in one process or several: boxes, rounds of collectives, comparing replicas."""

from __future__ import annotations

from lightning_prune.sharding.rounds import Reduce, Rounds, add_up, alone
from lightning_prune.sharding.shardings import (
    Box,
    Shard,
    Sharding,
    find_shardings,
    is_sharded,
    local_part,
    require_same,
    reshard_model,
    run_together,
)

__all__ = [
    "Box",
    "Reduce",
    "Rounds",
    "Shard",
    "Sharding",
    "add_up",
    "alone",
    "find_shardings",
    "is_sharded",
    "local_part",
    "require_same",
    "reshard_model",
    "run_together",
]
