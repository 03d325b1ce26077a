"""Models that another callback averages: kept as sparse as the model itself, or refused where they would be dense."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import nn

from lightning_prune.basics import is_a
from lightning_prune.errors import ConfigError
from lightning_prune.pruner import MagnitudePruner

__all__ = ["mask_averages", "refuse_averages"]


def mask_averages(trainer: Trainer, pruner: MagnitudePruner) -> None:
    """Zero in averaged models what is pruned: an average of pruned weights is sparse until masks change."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module):
            pruner.mask_copy(getattr(average, "module", average))


def refuse_averages(trainer: Trainer) -> None:
    """Refuse averages of a module with hooks: they are made of other names, and would be dense."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, "WeightAveraging"):
            raise ConfigError(
                f'{type(callback).__name__} averages the dense weights that masking="hook" trains, and would validate '
                'and save those. Use masking="resident".'
            )
