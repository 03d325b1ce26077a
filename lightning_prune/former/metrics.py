"""``lightning_prune.metrics`` as it was; import from ``lightning_prune.analysis``."""

from __future__ import annotations

from lightning_prune.analysis import (
    BlockSparsity,
    ChannelSparsity,
    CompressedBytes,
    DenseMACs,
    EffectiveMACs,
    EffectiveParameters,
    KernelSparsity,
    MaskChurn,
    NMAdherence,
    ReturnedWeights,
    WeightSparsity,
)

__all__ = [
    "BlockSparsity",
    "ChannelSparsity",
    "CompressedBytes",
    "DenseMACs",
    "EffectiveMACs",
    "EffectiveParameters",
    "KernelSparsity",
    "MaskChurn",
    "NMAdherence",
    "ReturnedWeights",
    "WeightSparsity",
]
