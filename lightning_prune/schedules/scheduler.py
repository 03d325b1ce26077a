"""What every schedule is: a rule that says how sparse a weight is after each optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

from lightning_prune.schedules.runs import TrainingRun

__all__ = ["PruningScheduler", "SparsityBounds"]


class SparsityBounds(Protocol):
    """What a schedule reads of a configuration: where sparsity starts and where it goes, fractions in [0, 1]."""

    @property
    def initial_sparsity(self) -> float: ...  # noqa: D102

    @property
    def target_sparsity(self) -> float: ...  # noqa: D102


class PruningScheduler(ABC):
    """A rule that says how sparse a weight is after each optimizer step.

    Subclass it and write :meth:`compute_sparsity` to prune by a rule of your own; the other methods may stay as they
    are. A schedule keeps no state: the same step always gives the same answer.
    """

    @abstractmethod
    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: SparsityBounds) -> float:
        """Give the sparsity that holds from this step on.

        Args:
            step_count: Optimizer steps done, counted from 1.
            prev_sparsity: Sparsity after the previous step, fraction in [0, 1].
            config: Anything with ``initial_sparsity`` and ``target_sparsity``.

        Returns:
            Fraction of zeros in [0, 1].
        """

    def is_due(self, step_count: int) -> bool:
        """Whether :meth:`compute_sparsity` must be asked at this step; a cheap look-up, True where unknown."""
        return True

    def due_steps(self, first: int, last: int) -> Iterable[int]:
        """The steps from ``first`` to ``last``, both included, at which the schedule is due, in order."""
        return (step for step in range(first, last + 1) if self.is_due(step))

    def reselects(self, step_count: int) -> bool:
        """Whether masks are computed anew at this step even if sparsity stays as it is, so that weights may return."""
        return False

    @property
    def last_update_step(self) -> int | None:
        """Step after which masks never change again; None if that is not known."""
        return None

    @property
    def is_resolved(self) -> bool:
        """Whether the schedule is written in steps, so that it can run."""
        return True

    def resolve(self, run: TrainingRun) -> PruningScheduler:
        """Write the schedule in steps, given the length of the run; a schedule in steps returns itself."""
        return self

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Go on from a forecast that has proved wrong: epochs are longer or shorter than they were thought to be.

        Args:
            before: The same schedule, resolved for the run as it was thought to be.
            step_count: Optimizer steps done.

        Returns:
            A schedule with the updates that ``before`` has made, and from the next step on those of this schedule.
        """
        return self
