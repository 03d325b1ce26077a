"""A schedule without a curve: the initial sparsity until a step, the target from then on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lightning_prune.errors import ConfigError, shown
from lightning_prune.schedules.moments import Moment, check_moment, count_epochs
from lightning_prune.schedules.runs import TrainingRun
from lightning_prune.schedules.scheduler import PruningScheduler, SparsityBounds

__all__ = ["ConstantSparsityScheduler"]


@dataclass(frozen=True)
class ConstantSparsityScheduler(PruningScheduler):
    """One shot: ``initial_sparsity`` until ``begin_step``, ``target_sparsity`` from then on.

    Without ``frequency`` the mask is computed once, and holds. With it the mask is computed anew until training ends,
    always at the target and from the dense weights, at the steps ``begin_step + k * frequency``, ``k = 0, 1, 2, ...``.

    Args:
        begin_step: Optimizer step at which the first mask is computed; 0 is the first step, as 1 is. A float is a
            fraction of the run, ``"2 epochs"`` epochs.
        frequency: Distance of the further masks, as ``begin_step``; 1 is every step. Epochs are counted at the length
            of the first ones. None, the default, is no further mask.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> from types import SimpleNamespace
        >>> schedule, config = ConstantSparsityScheduler(2), SimpleNamespace(initial_sparsity=0.0, target_sparsity=0.5)
        >>> [schedule.compute_sparsity(step, 0.0, config) for step in (1, 2, 3)]
        [0.0, 0.5, 0.5]
        >>> [step for step in range(9) if ConstantSparsityScheduler(2, frequency=3).is_due(step)]
        [2, 5, 8]
    """

    begin_step: Moment
    frequency: Moment | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "begin_step", check_moment(self.begin_step, "begin_step"))
        if self.frequency is None:
            return
        frequency = check_moment(self.frequency, "frequency")
        object.__setattr__(self, "frequency", frequency)
        if frequency == 0 or (isinstance(frequency, str) and count_epochs(frequency, "frequency") == 0):
            raise ConfigError(
                f"frequency must be at least 1 optimizer step, got {shown(frequency)}. "
                "Write 1 to compute the mask anew at every step, or leave it out to compute it once."
            )

    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: SparsityBounds) -> float:
        """Give the target from ``begin_step`` on."""
        return config.target_sparsity if step_count >= self._begin else prev_sparsity

    @property
    def _begin(self) -> int:
        if not isinstance(self.begin_step, int):
            raise ConfigError(f"{self} is written in units of a training run. Call resolve() on the pruner first.")
        return max(self.begin_step, 1)

    @property
    def _distance(self) -> int:
        if not isinstance(self.frequency, int):
            raise ConfigError(f"{self} is written in units of a training run. Call resolve() on the pruner first.")
        return self.frequency

    def is_due(self, step_count: int) -> bool:
        """Whether the mask is computed at this step."""
        begin = self._begin
        if self.frequency is None:
            return step_count == begin
        return step_count >= begin and (step_count - begin) % self._distance == 0

    def due_steps(self, first: int, last: int) -> Iterable[int]:
        """The steps from ``first`` to ``last`` at which the mask is computed."""
        begin = self._begin
        if self.frequency is None:
            return (step for step in (begin,) if first <= step <= last)
        return range(max(begin, first + (begin - first) % self._distance), last + 1, self._distance)

    def reselects(self, step_count: int) -> bool:
        """Whether it is computed at this step as one of many."""
        return self.frequency is not None and self.is_due(step_count)

    @property
    def last_update_step(self) -> int | None:
        """The step at which the mask is computed; None if it is computed again and again."""
        return self._begin if self.frequency is None else None

    @property
    def is_resolved(self) -> bool:
        """Whether ``begin_step`` and ``frequency`` are numbers of steps."""
        return isinstance(self.begin_step, int) and (self.frequency is None or isinstance(self.frequency, int))

    def resolve(self, run: TrainingRun) -> ConstantSparsityScheduler:
        """Write ``begin_step`` and ``frequency`` in steps."""
        frequency = None if self.frequency is None else max(1, run.to_steps(self.frequency, "frequency"))
        return replace(self, begin_step=run.to_steps(self.begin_step, "begin_step"), frequency=frequency)

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Keep the first update if it was made; if it should have been made by now, make it at the next step."""
        if not isinstance(before, ConstantSparsityScheduler) or not before.is_resolved or step_count == 0:
            return self
        if step_count >= before._begin:
            return before if self.frequency is None else replace(self, begin_step=before.begin_step)
        return replace(self, begin_step=max(self._begin, step_count + 1))
