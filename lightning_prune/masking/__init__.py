"""How a mask acts on a module, in one of two ways, and what other libraries call the same things."""

from __future__ import annotations

from lightning_prune.masking.foreign import ForeignWeights, convert_checkpoint, plain_state_dict
from lightning_prune.masking.held import HeldMask
from lightning_prune.masking.hook import hooked_names, remove_hooks
from lightning_prune.masking.metadata import register_coreml_metadata
from lightning_prune.masking.optimizers import OptimizerLink
from lightning_prune.masking.ways import Masking, MaskingWay, way_of

__all__ = [
    "ForeignWeights",
    "HeldMask",
    "Masking",
    "MaskingWay",
    "OptimizerLink",
    "convert_checkpoint",
    "hooked_names",
    "plain_state_dict",
    "register_coreml_metadata",
    "remove_hooks",
    "way_of",
]
