"""Which magnitudes are largest, exactly and without sorting: a scan on CPUs, rounds of counts elsewhere."""

from __future__ import annotations

from lightning_prune.masks.selection.kth import kth_largest
from lightning_prune.masks.selection.largest import (
    keep_largest,
    keep_largest_of_all,
    keep_largest_of_shards,
    keep_largest_of_shards_in_rounds,
    pruned_count,
    pruned_count_of_all,
)
from lightning_prune.masks.selection.magnitudes import (
    FORMATS,
    GOLDEN,
    Array,
    FlatPair,
    Guard,
    as_fast_to_compare,
    clear_signs,
    holds_nan,
    magnitude_keys,
    mark_changed,
    mask_to_write,
    nan_error,
)
from lightning_prune.masks.selection.scan import FEW, largest_of_few

__all__ = [
    "Array",
    "FEW",
    "FORMATS",
    "GOLDEN",
    "FlatPair",
    "Guard",
    "as_fast_to_compare",
    "clear_signs",
    "holds_nan",
    "keep_largest",
    "keep_largest_of_all",
    "keep_largest_of_shards",
    "keep_largest_of_shards_in_rounds",
    "kth_largest",
    "largest_of_few",
    "magnitude_keys",
    "mark_changed",
    "mask_to_write",
    "nan_error",
    "pruned_count",
    "pruned_count_of_all",
]
