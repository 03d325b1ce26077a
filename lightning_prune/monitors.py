"""Best means best at target: monitors must not compare a network before its last pruning update with one after it.

Until the last update EarlyStopping does not stop the run, and at that update ModelCheckpoint and EarlyStopping forget
the best score so far. No file is deleted, and no setting of the user is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lightning_prune.class_names import is_a

__all__ = ["TargetGate"]

_NOT_STOPPED = -1


class TargetGate:
    """Holds back the monitors of a Trainer until the target sparsity is reached."""

    def __init__(self) -> None:
        self._was_stopping = False

    def arm(self, trainer: Any) -> None:
        """Call before EarlyStopping may look at its metric."""
        self._was_stopping = trainer.should_stop
        for stopper in _find(trainer, "EarlyStopping"):
            stopper.stopped_epoch = _NOT_STOPPED

    def hold(self, trainer: Any) -> None:
        """Call after it: takes back a stop for which EarlyStopping asked, but not one of a diverged run."""
        for stopper in _find(trainer, "EarlyStopping"):
            asked = stopper.stopped_epoch != _NOT_STOPPED
            reason = getattr(getattr(stopper, "stopping_reason", None), "name", "")
            if asked and reason != "NON_FINITE_METRIC":
                trainer.should_stop = self._was_stopping
                stopper.wait_count = 0
                stopper.stopped_epoch = _NOT_STOPPED

    def close(self, trainer: Any) -> None:
        """Call if the run ends before its last update: leaves no trace."""
        for stopper in _find(trainer, "EarlyStopping"):
            if stopper.stopped_epoch == _NOT_STOPPED:
                stopper.stopped_epoch = 0

    def open(self, trainer: Any) -> list[str]:
        """Call at the last update: monitors start afresh.

        Returns:
            Paths of the checkpoints that were the best before; they stay where they are.
        """
        for stopper in _find(trainer, "EarlyStopping"):
            stopper.wait_count = 0
            stopper.stopped_epoch = 0
            stopper.best_score = torch.tensor(torch.inf if stopper.mode == "min" else -torch.inf)
        forgotten: list[str] = []
        for saver in _find(trainer, "ModelCheckpoint"):
            if saver.monitor is None:
                continue
            forgotten += list(saver.best_k_models)
            # best_model_path stays until there is a new best: if no validation follows, it is better than nothing
            saver.best_k_models = {}
            saver.kth_best_model_path = ""
            saver.kth_value = torch.tensor(torch.inf if saver.mode == "min" else -torch.inf)
        return forgotten


def _find(trainer: Any, name: str) -> Iterator[Any]:
    yield from (callback for callback in trainer.callbacks if is_a(callback, name))
