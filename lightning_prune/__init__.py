"""Magnitude pruning for PyTorch Lightning: add one callback, get a sparse network.

The pruner, its configuration and its schedules need torch alone. What needs Lightning, matplotlib or the packages of
a format is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_prune.basics import lazy_names
from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig
from lightning_prune.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    LifecycleError,
    PageError,
    PruningError,
    SlimError,
)
from lightning_prune.masking import convert_checkpoint
from lightning_prune.plan import PruningPlan, plan_pruning
from lightning_prune.pruner import MagnitudePruner, Rewind, SparsityReport
from lightning_prune.schedules import (
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    GeometricDecayScheduler,
    PolynomialDecayScheduler,
    PruningScheduler,
    TrainingRun,
)

if TYPE_CHECKING:
    from lightning_prune.analysis import WeightSparsity, allocate
    from lightning_prune.callback import MagnitudePruningCallback
    from lightning_prune.export import (
        CoreAIExport,
        CoreMLExport,
        ExportResult,
        ONNXExport,
        SparseExport,
        load_sparse,
        save_sparse,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConstantSparsityScheduler",
    "CoreAIExport",
    "CoreMLExport",
    "CosineDecayScheduler",
    "ExportError",
    "ExportResult",
    "GeometricDecayScheduler",
    "LifecycleError",
    "MagnitudePruner",
    "MagnitudePrunerConfig",
    "MagnitudePruningCallback",
    "ModuleMagnitudePrunerConfig",
    "ONNXExport",
    "PageError",
    "PolynomialDecayScheduler",
    "PruningError",
    "PruningPlan",
    "PruningScheduler",
    "Rewind",
    "SlimError",
    "SparseExport",
    "SparsityReport",
    "TrainingRun",
    "WeightSparsity",
    "allocate",
    "convert_checkpoint",
    "load_sparse",
    "plan_pruning",
    "save_sparse",
]

__version__ = "0.1.0"

__path__ += [f"{folder}/former" for folder in __path__]  # modules that lie in rooms now, under their former paths

_LAZY = {
    "CoreAIExport": "lightning_prune.export",
    "CoreMLExport": "lightning_prune.export",
    "ExportResult": "lightning_prune.export",
    "MagnitudePruningCallback": "lightning_prune.callback",
    "ONNXExport": "lightning_prune.export",
    "SparseExport": "lightning_prune.export",
    "WeightSparsity": "lightning_prune.analysis",
    "allocate": "lightning_prune.analysis",
    "load_sparse": "lightning_prune.export",
    "save_sparse": "lightning_prune.export",
}

__getattr__ = lazy_names(globals(), _LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
