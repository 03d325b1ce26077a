"""Sparsity as torchmetrics: counts, which add up over updates and processes, never averaged ratios.

What is measured is what the network computes with: of a module whose masks are held apart (``weight_orig`` and
``weight_mask``) the pruned weights, and so in the middle of training too.

====================================  ==================================================================
:class:`WeightSparsity`               fraction of weights that are zero
:class:`ChannelSparsity`              fraction of output channels that are all zero
:class:`KernelSparsity`               fraction of convolution kernels that are all zero
:class:`BlockSparsity`                fraction of blocks of neighbouring output channels that are all zero
:class:`NMAdherence`                  fraction of groups of m weights with at least n zeros
:class:`EffectiveParameters`          number of parameters that are not zero
:class:`CompressedBytes`              bytes of all parameters, stored sparse
:class:`DenseMACs`                    multiply-accumulates of one example
:class:`EffectiveMACs`                the same without those by zero
:class:`MaskChurn`                    fraction of mask entries that changed at an update
:class:`ReturnedWeights`              number of mask entries that came back at an update
====================================  ==================================================================

All but the last two take ``update(model)``, the MACs with an example input after it, or one tensor of weights; they
fit in one :class:`torchmetrics.MetricCollection`, whose other metrics' arguments are left alone.
"""

from __future__ import annotations

from lightning_prune.analysis.metrics.changes import MaskChurn, ReturnedWeights, mask_changes
from lightning_prune.analysis.metrics.sizes import CompressedBytes, DenseMACs, EffectiveMACs, EffectiveParameters
from lightning_prune.analysis.metrics.weights import weights_of
from lightning_prune.analysis.metrics.zeros import (
    BlockSparsity,
    ChannelSparsity,
    KernelSparsity,
    NMAdherence,
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
    "mask_changes",
    "weights_of",
]
