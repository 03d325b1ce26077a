"""Best means best at target: monitors must not compare networks before and after the last update.

Until the last update EarlyStopping does not stop the run and ReduceLROnPlateau does not lower the learning rate, and at
that update both and ModelCheckpoint forget the best score so far. No file is deleted, and no setting of the user is
changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_prune.basics import is_a
from lightning_prune.errors import CheckpointError, shown

__all__ = ["TargetGate", "check_gate"]

_CHECK = "_run_early_stopping_check"  # of EarlyStopping; called wherever in the loop it looks at its metric


class TargetGate:
    """Holds back the monitors of a Trainer until the target sparsity is reached.

    Args:
        trainer: Its EarlyStopping callbacks are held from now on: they take back a stop for which they have asked, but
            not one of a diverged run. Its ReduceLROnPlateau schedulers are held by :meth:`hold`.
        state: Of a gate that was open already when :meth:`state_dict` was taken.

    Attributes:
        is_done: Whether nothing is left to do.
    """

    def __init__(self, trainer: Any, state: Mapping[str, Any] | None = None) -> None:
        self.is_done = False
        self._opened_in: int | None = None  # the epoch
        self._freed: set[int] = set()  # places of schedules in the Trainer's list
        self._old_scores: dict[str, float] = {}  # what schedules would be shown that was logged before the last update
        self._is_validated = False
        self._held: list[Any] = []
        if state is not None:
            self._opened_in, self._is_validated = state["opened_in"], state["is_validated"]
            self._freed = set(state["freed"])
            return
        self._held = [stopper for stopper in _find(trainer, "EarlyStopping") if hasattr(stopper, _CHECK)]
        for stopper in self._held:
            if not isinstance(stopper.__dict__.get(_CHECK), _Held):
                setattr(stopper, _CHECK, _Held(stopper))
            stopper.__dict__[_CHECK].gates.append(self)
        self.hold(trainer)

    @property
    def is_open(self) -> bool:
        """Whether the target is reached."""
        return self._opened_in is not None

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run must know of an open gate, to forget the same scores at the same time."""
        return {"opened_in": self._opened_in, "is_validated": self._is_validated, "freed": sorted(self._freed)}

    def hold(self, trainer: Any) -> None:
        """Call after each batch until all is done: a ReduceLROnPlateau that knows no best score lowers nothing.

        Lightning steps it once between two batches, and whatever score it is shown is the best that it knows. It is
        not wrapped: what hangs on it is saved in checkpoints. One that looks once an epoch is held until the epoch of
        the last update is over, whose means are of both networks, and until a validation has replaced what was logged
        before. One that looks at steps is held until its score is another one than at the last update.
        """
        self._forget_plateaus(trainer)
        is_over = self._opened_in is not None and trainer.current_epoch > self._opened_in
        self.is_done = is_over and (self._is_validated or not trainer.enable_validation)
        if self.is_open:
            self._freed |= {
                place for place, config in _steppers(trainer) if self._has_new_score(trainer, config.monitor)
            }

    def start_validation(self, trainer: Any) -> None:
        """Call when a validation starts: at the target its score is the first."""
        if self.is_open:
            self._forget_plateaus(trainer)
            self._is_validated = True
            self._freed |= {place for place, _ in _steppers(trainer)}

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
        self._opened_in = trainer.current_epoch
        self._old_scores = {
            config.monitor: float(trainer.callback_metrics[config.monitor])
            for config in trainer.lr_scheduler_configs
            if config.monitor in trainer.callback_metrics
        }
        self._forget_plateaus(trainer)
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

    def _forget_plateaus(self, trainer: Any) -> None:
        for place, config in enumerate(trainer.lr_scheduler_configs):
            if place not in self._freed:
                for plateau in _plateaus(config.scheduler):
                    plateau.best = plateau.mode_worse
                    plateau.num_bad_epochs = 0

    def _has_new_score(self, trainer: Any, monitor: str) -> bool:
        score = trainer.callback_metrics.get(monitor)
        return score is not None and float(score) != self._old_scores.get(monitor)


def check_gate(state: Any) -> Mapping[str, Any] | None:
    """Check the state of an open gate, or None where there was none.

    Raises:
        CheckpointError: It is damaged.
    """
    if state is None:
        return None
    if not isinstance(state, Mapping) or type(state.get("opened_in")) is not int or "is_validated" not in state:
        raise CheckpointError("The state of the monitors is damaged: it must hold the epoch in which they were freed.")
    freed = state.get("freed", [])
    if not isinstance(freed, (list, tuple)) or any(type(place) is not int for place in freed):
        raise CheckpointError(f"The state of the monitors is damaged: freed must be whole numbers, got {shown(freed)}.")
    return {"opened_in": state["opened_in"], "is_validated": bool(state["is_validated"]), "freed": list(freed)}


class _Held:
    """The check of one EarlyStopping, without its effect as long as a gate is closed; each pruner has a gate."""

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
    """Whether the metric is not finite; a metric beyond a threshold may recover after the last update."""
    current = trainer.callback_metrics.get(stopper.monitor)
    return bool(stopper.check_finite and current is not None and not torch.isfinite(current))


def _steppers(trainer: Any) -> Iterator[tuple[int, Any]]:
    """What the Trainer holds of each schedule that looks at steps, and its place in the Trainer's list."""
    yield from (item for item in enumerate(trainer.lr_scheduler_configs) if item[1].interval == "step")


def _plateaus(scheduler: object, seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """A ReduceLROnPlateau, and those that a scheduler holds, as one of a warm-up does."""
    if isinstance(scheduler, ReduceLROnPlateau):
        yield scheduler
        return
    for value in vars(scheduler).values() if hasattr(scheduler, "__dict__") else ():
        for held in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(held, LRScheduler) and id(held) not in seen:
                yield from _plateaus(held, seen | {id(scheduler), id(held)})


def _find(trainer: Any, name: str) -> Iterator[Any]:
    yield from (callback for callback in trainer.callbacks if is_a(callback, name))
