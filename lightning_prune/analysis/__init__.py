"""Questions about a model or a file: metrics, MACs, allocation, sensitivity, inspection, plots."""

from __future__ import annotations

from lightning_prune.analysis.allocation import Allocation, Method, allocate, module_patterns
from lightning_prune.analysis.inspection import (
    Inspection,
    inspect_file,
    read_checkpoint,
    read_tensors,
    read_weights,
    report_of,
)
from lightning_prune.analysis.layer_sensitivity import Sensitivity, sensitivity
from lightning_prune.analysis.macs import MACCount, count_macs
from lightning_prune.analysis.metrics import (
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
from lightning_prune.analysis.plots import (
    plan_curves,
    plot_layers,
    plot_mask,
    plot_plan,
    plot_sensitivity,
    plot_slim,
    plot_sparsity,
    plot_tradeoff,
    plot_weights,
)

__all__ = [
    "Allocation",
    "BlockSparsity",
    "ChannelSparsity",
    "CompressedBytes",
    "DenseMACs",
    "EffectiveMACs",
    "EffectiveParameters",
    "Inspection",
    "KernelSparsity",
    "MACCount",
    "MaskChurn",
    "Method",
    "NMAdherence",
    "ReturnedWeights",
    "Sensitivity",
    "WeightSparsity",
    "allocate",
    "count_macs",
    "inspect_file",
    "module_patterns",
    "plan_curves",
    "plot_layers",
    "plot_mask",
    "plot_plan",
    "plot_sensitivity",
    "plot_slim",
    "plot_sparsity",
    "plot_tradeoff",
    "plot_weights",
    "read_checkpoint",
    "read_tensors",
    "read_weights",
    "report_of",
    "sensitivity",
]
