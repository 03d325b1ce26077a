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

_CHECK = "_run_early_stopping_check"  # of EarlyStopping; called wherever in the loop it looks at its metric


class TargetGate:
    """Holds back the monitors of a Trainer until the target sparsity is reached.

    Args:
        trainer: Its EarlyStopping callbacks are held from now on: they take back a stop for which they have asked, but
            not one of a diverged run.
    """

    def __init__(self, trainer: Any) -> None:
        self._held = [one for one in _find(trainer, "EarlyStopping") if hasattr(one, _CHECK)]
        for stopper in self._held:
            if not isinstance(stopper.__dict__.get(_CHECK), _Held):
                setattr(stopper, _CHECK, _Held(stopper))
            stopper.__dict__[_CHECK].gates.append(self)

    def close(self) -> None:
        """Call if the run ends before its last update: leaves no trace."""
        for stopper in self._held:
            held = stopper.__dict__.get(_CHECK)
            if isinstance(held, _Held):
                held.gates = [gate for gate in held.gates if gate is not self]
                if not held.gates:
                    del stopper.__dict__[_CHECK]

    def open(self, trainer: Any) -> list[str]:
        """Call at the last update: monitors start afresh.

        Returns:
            Paths of the checkpoints that were the best before; they stay where they are.
        """
        self.close()
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


class _Held:
    """The check of one EarlyStopping, without its effect as long as a gate is closed; each pruner has one."""

    def __init__(self, stopper: Any) -> None:
        self._stopper = stopper
        self.gates: list[TargetGate] = []

    def __call__(self, trainer: Any) -> None:
        stopper, was_stopping = self._stopper, trainer.should_stop
        getattr(type(stopper), _CHECK)(stopper, trainer)
        if trainer.should_stop and not was_stopping and not _is_lost(stopper, trainer):
            trainer.should_stop = False
            stopper.wait_count = stopper.stopped_epoch = 0


def _is_lost(stopper: Any, trainer: Any) -> bool:
    """Whether the metric is not finite; one beyond a threshold may recover from the last update."""
    current = trainer.callback_metrics.get(stopper.monitor)
    return bool(stopper.check_finite and current is not None and not torch.isfinite(current))


def _find(trainer: Any, name: str) -> Iterator[Any]:
    yield from (callback for callback in trainer.callbacks if is_a(callback, name))
