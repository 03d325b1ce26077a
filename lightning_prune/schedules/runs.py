"""The length of a training run, by which fractions and epochs become optimizer steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from lightning_prune.basics import plain_number
from lightning_prune.errors import ConfigError
from lightning_prune.schedules.moments import Moment, check_moment, count_epochs
from lightning_prune.schedules.steps import MOST_UPDATES, within_bounds

__all__ = ["TrainingRun"]


@dataclass(frozen=True)
class TrainingRun:
    """Length of a planned training run, in optimizer steps; None where it is not known in advance.

    Args:
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of each epoch that ``epoch_ends`` does not name.
        is_rehearsal: A schedule need not finish, as with ``fast_dev_run``.
        is_manual: Optimizers are stepped by hand (Lightning's manual optimization), so that the number of steps in an
            epoch is not known.
        epoch_ends: Optimizer steps that are done at the end of the first epoch, of the second, and so on, as far as
            epochs differ in length or are over.

    Example:
        >>> run = TrainingRun(total_steps=None, steps_per_epoch=8, epoch_ends=(4, 10))
        >>> [run.to_steps(f"{epochs} epochs", "begin") for epochs in (1, 1.5, 2, 3)]
        [4, 7, 10, 18]
    """

    total_steps: int | None
    steps_per_epoch: float | None = None
    is_rehearsal: bool = False
    is_manual: bool = False
    epoch_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the lengths."""
        for name in ("total_steps", "steps_per_epoch"):
            value = plain_number(getattr(self, name))
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(
                    f"{name} must be a number of optimizer steps above 0, or None where it is not known, got {value!r}."
                )
            object.__setattr__(self, name, round(value) if name == "total_steps" else value)

    def to_steps(self, moment: Moment, name: str) -> int:
        """Turn a moment of the run into optimizer steps.

        Args:
            moment: An int is optimizer steps, a float a fraction of the run in [0, 1], ``"3 epochs"`` epochs.
            name: How the user spells the value, for the error.

        Raises:
            ConfigError: The moment needs a length that is not known.

        Example:
            >>> run = TrainingRun(total_steps=1000, steps_per_epoch=100)
            >>> run.to_steps(7, "begin"), run.to_steps(0.25, "begin"), run.to_steps("2 epochs", "begin")
            (7, 250, 200)
        """
        moment = check_moment(moment, name)
        if isinstance(moment, int):
            return moment
        if isinstance(moment, float):
            if self.total_steps is None:
                why, or_epochs = (
                    "the length of the run is not known in advance",
                    ", or max_epochs with a sized dataloader",
                )
                if self.is_manual:
                    why, or_epochs = "in manual optimization the number of optimizer steps is not known in advance", ""
                raise ConfigError(
                    f"{name}={moment} is a fraction of the run, but {why}. "
                    f"Give the Trainer max_steps{or_epochs}, or write {name} in steps (an int)."
                )
            return round(moment * self.total_steps)
        return round(self._step_after(count_epochs(moment, name), f"{name}={moment!r}", name))

    def every(self, distance: str, begin: Moment, end: int) -> tuple[int, ...]:
        """Steps that lie a number of epochs apart, from ``begin`` on and before the step ``end``.

        Example:
            >>> TrainingRun(None, steps_per_epoch=8, epoch_ends=(4, 10)).every("1 epoch", "1 epoch", 20)
            (4, 10, 18)
        """
        first = (
            count_epochs(begin, "begin") if isinstance(begin, str) else self._epochs_at(self.to_steps(begin, "begin"))
        )
        written = f"frequency={distance!r}"
        steps: list[int] = []
        step = self.to_steps(begin, "begin")
        while step < end:
            steps.append(step)
            if len(steps) > MOST_UPDATES:
                return within_bounds(steps, "frequency")  # which refuses them
            after = first + len(steps) * count_epochs(distance, "frequency")
            step = max(step + 1, round(self._step_after(after, written, "frequency")))
        return tuple(steps)

    def _step_after(self, epochs: float, written: str, name: str) -> float:
        """Optimizer steps that are done after so many epochs, whole or not."""
        ends = (0, *self.epoch_ends)
        whole, known = int(epochs), len(self.epoch_ends)
        if epochs <= known:
            return ends[whole] + (epochs - whole) * (ends[min(whole + 1, known)] - ends[whole])
        if self.steps_per_epoch is None:
            why, advice = "the length of an epoch is not known in advance", "Give a sized dataloader"
            if self.is_manual:
                why = "in manual optimization the number of optimizer steps in an epoch is not known"
                advice = "Give the Trainer max_steps and write a fraction"
            raise ConfigError(f"{written} is in epochs, but {why}. {advice}, or write {name} in steps (an int).")
        return ends[-1] + (epochs - known) * self.steps_per_epoch

    def _epochs_at(self, step: int) -> float:
        """The epoch, whole or not, to which a step belongs."""
        ends = (0, *self.epoch_ends)
        for epoch, (start, stop) in enumerate(itertools.pairwise(ends)):
            if step < stop:
                return epoch + (step - start) / (stop - start)
        return len(self.epoch_ends) + ((step - ends[-1]) / self.steps_per_epoch if self.steps_per_epoch else 0.0)
