"""Schedules: how sparse a weight is at each optimizer step. Pure functions of the step, without torch.

A schedule that is written in raw steps (``update_steps``, ``begin_step``) is ready as it stands. One written in the
units of a training run (fractions, epochs) is turned into steps by :meth:`PruningScheduler.resolve` once the length of
the run is known.
"""

from __future__ import annotations

from lightning_prune.schedules.constant import ConstantSparsityScheduler
from lightning_prune.schedules.curves import CosineDecayScheduler, GeometricDecayScheduler, PolynomialDecayScheduler
from lightning_prune.schedules.runs import TrainingRun
from lightning_prune.schedules.scheduler import PruningScheduler, SparsityBounds

__all__ = [
    "ConstantSparsityScheduler",
    "CosineDecayScheduler",
    "GeometricDecayScheduler",
    "PolynomialDecayScheduler",
    "PruningScheduler",
    "SparsityBounds",
    "TrainingRun",
]
