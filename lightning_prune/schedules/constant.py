"""A schedule of one update: the initial sparsity until a step, the target from then on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lightning_prune.errors import ConfigError
from lightning_prune.schedules.moments import Moment, check_moment
from lightning_prune.schedules.runs import TrainingRun
from lightning_prune.schedules.scheduler import PruningScheduler, SparsityBounds

__all__ = ["ConstantSparsityScheduler"]


@dataclass(frozen=True)
class ConstantSparsityScheduler(PruningScheduler):
    """One shot: ``initial_sparsity`` until ``begin_step``, ``target_sparsity`` from then on, by one mask.

    Args:
        begin_step: Optimizer step at which the mask is computed; 0 is the first step. A float is a fraction of the run,
            ``"2 epochs"`` epochs.

    Example:
        >>> from types import SimpleNamespace
        >>> schedule, config = ConstantSparsityScheduler(2), SimpleNamespace(initial_sparsity=0.0, target_sparsity=0.5)
        >>> [schedule.compute_sparsity(step, 0.0, config) for step in (1, 2, 3)]
        [0.0, 0.5, 0.5]
    """

    begin_step: Moment

    def __post_init__(self) -> None:
        """Check the value."""
        object.__setattr__(self, "begin_step", check_moment(self.begin_step, "begin_step"))

    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: SparsityBounds) -> float:
        """Give the target from ``begin_step`` on."""
        return config.target_sparsity if step_count >= self._begin else prev_sparsity

    @property
    def _begin(self) -> int:
        if not isinstance(self.begin_step, int):
            raise ConfigError(f"{self} is written in units of a training run. Call resolve() on the pruner first.")
        return max(self.begin_step, 1)

    def is_due(self, step_count: int) -> bool:
        """Whether this is the step at which the mask is computed."""
        return step_count == self._begin

    def due_steps(self, first: int, last: int) -> Iterable[int]:
        """The update step, if it lies from ``first`` to ``last``."""
        return (step for step in (self._begin,) if first <= step <= last)

    @property
    def last_update_step(self) -> int | None:
        """The update step."""
        return self._begin

    @property
    def is_resolved(self) -> bool:
        """Whether ``begin_step`` is a number of steps."""
        return isinstance(self.begin_step, int)

    def resolve(self, run: TrainingRun) -> ConstantSparsityScheduler:
        """Write ``begin_step`` in steps."""
        return replace(self, begin_step=run.to_steps(self.begin_step, "begin_step"))

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Keep the update if it was made; if it should have been made by now, make it at the next step."""
        if not before.is_resolved or step_count == 0:
            return self
        done = before.last_update_step is not None and step_count >= before.last_update_step
        return before if done else replace(self, begin_step=max(self._begin, step_count + 1))
