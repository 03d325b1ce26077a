"""The timeline of a fit: how many optimizer steps its epochs have, as they happen, and how many it will have in all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_prune.basics import is_a
from lightning_prune.errors import CheckpointError, shown
from lightning_prune.pruner import MOST_STEPS
from lightning_prune.schedules import TrainingRun

__all__ = ["Timeline"]

_FAR = 10_000  # epochs that are forecast one by one, where a table says how they differ


class Timeline:
    """Counts the optimizer steps of a fit, epoch by epoch: those that are over as they were, the rest as forecast.

    The forecast takes each epoch for as long as the epoch that runs, or goes by the table of a
    GradientAccumulationScheduler. Epochs that turn out otherwise (data that grow, an epoch that is cut short) correct
    it. What was planned when the fit began, the number of epochs and of steps, travels in the checkpoint: a run that is
    resumed for longer keeps the schedule that it had.
    """

    def __init__(self) -> None:
        self._ends: list[int] = []  # optimizer steps that were done when the first, the second ... epoch was over
        self._planned: tuple[int | None, int | None] | None = None  # epochs and steps of the whole run
        self._seen: tuple[Any, ...] | None = None

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> TrainingRun:
        """Measure the run as the Trainer plans it, when training starts; its loaders must be there.

        Epochs that are over, of a run that was resumed, are taken to have been of one length; :meth:`load_state_dict`
        knows better.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches = getattr(progress, "processed", 0)  # of this epoch, or all of the epoch before
        here = 0 if batches >= trainer.num_training_batches else batches // trainer.accumulate_grad_batches
        share = (trainer.global_step - here) / max(trainer.current_epoch, 1)
        self._ends = [round(share * (epoch + 1)) for epoch in range(trainer.current_epoch)]
        self._planned, self._seen = _planned_length(trainer), _look(trainer)
        return self._forecast(trainer, pl_module)

    def follow(self, trainer: Trainer, pl_module: LightningModule, step_count: int) -> TrainingRun | None:
        """Look whether the run is another one than was forecast; next to free if it is not.

        Args:
            trainer: The Trainer, at the end of a batch.
            pl_module: The module that it trains.
            step_count: Optimizer steps that were done before this batch.

        Returns:
            The run as it is to be taken from now on; None if nothing was seen that may have changed it.
        """
        seen = _look(trainer)
        if seen == self._seen:
            return None
        self._seen = seen
        self._ends += [step_count] * (trainer.current_epoch - len(self._ends))
        return self._forecast(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give the timeline as plain numbers."""
        epochs, steps = self._planned or (None, None)
        return {"epoch_ends": list(self._ends), "planned_epochs": epochs, "planned_steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            CheckpointError: The state is damaged.
        """
        if not isinstance(state, Mapping):
            raise CheckpointError(f"The timeline of the run is damaged: it must be a dict, got {shown(state)}.")
        try:
            ends, epochs, steps = list(state["epoch_ends"]), state["planned_epochs"], state["planned_steps"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The timeline of the run is damaged: {error!r} while reading it.") from error
        numbers = [*ends, *(number for number in (epochs, steps) if number is not None)]
        if any(type(number) is not int or not 0 <= number <= MOST_STEPS for number in numbers) or ends != sorted(ends):
            raise CheckpointError(
                "The timeline of the run is damaged: it must hold numbers of optimizer steps that do not fall."
            )
        self._ends, self._planned, self._seen = ends, (epochs, steps), None

    def _forecast(self, trainer: Trainer, pl_module: LightningModule) -> TrainingRun:
        epochs, total = self._planned or _planned_length(trainer)
        ends, steps_per_epoch = list(self._ends), None
        is_manual = not pl_module.automatic_optimization  # how many optimizers step in a batch is up to the module
        if not is_manual and math.isfinite(trainer.num_training_batches):
            accumulation, steady_from = _accumulation(trainer)
            batches = int(trainer.num_training_batches)
            for epoch in range(len(ends), min(steady_from, _FAR if epochs is None else epochs)):
                ends.append((ends[-1] if ends else 0) + -(-batches // accumulation(epoch)))
            steps_per_epoch = -(-batches // accumulation(len(ends)))
            if epochs is not None:
                known = TrainingRun(None, steps_per_epoch, epoch_ends=tuple(ends))
                in_all = known.to_steps(f"{epochs} epochs", "max_epochs")
                total = in_all if total is None else min(in_all, total)
        return TrainingRun(
            total or None,
            steps_per_epoch or None,
            is_rehearsal=bool(trainer.fast_dev_run),  # type: ignore[attr-defined]
            is_manual=is_manual,
            epoch_ends=tuple(ends),
        )


def _look(trainer: Trainer) -> tuple[Any, ...]:
    """What the length of an epoch depends on."""
    return trainer.current_epoch, trainer.num_training_batches, trainer.accumulate_grad_batches


def _planned_length(trainer: Trainer) -> tuple[int | None, int | None]:
    """Epochs and optimizer steps after which the Trainer will stop; None where it has no such limit.

    StochasticWeightAveraging adds an epoch to those planned, in which nothing is trained.
    """
    epochs = None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if epochs is not None and is_a(callback, "StochasticWeightAveraging") and callback._max_epochs > 0:
            epochs = min(callback._max_epochs, epochs)
    return epochs, None if trainer.max_steps == -1 else trainer.max_steps


def _accumulation(trainer: Trainer) -> tuple[Callable[[int], int], int]:
    """Batches to an optimizer step, by epoch, and the epoch from which they stay as they are."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, "GradientAccumulationScheduler"):
            return callback.get_accumulate_grad_batches, max(callback.scheduling)
    here = trainer.accumulate_grad_batches
    return (lambda _: here), 0
