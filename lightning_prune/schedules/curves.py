"""Schedules along a curve: update by update from the initial sparsity to the target."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from lightning_prune.basics import plain_number, yaml_hint
from lightning_prune.errors import ConfigError, shown
from lightning_prune.schedules.moments import Moment, check_moment, count_epochs
from lightning_prune.schedules.runs import TrainingRun
from lightning_prune.schedules.scheduler import PruningScheduler, SparsityBounds
from lightning_prune.schedules.steps import parse_steps, within_bounds

__all__ = ["CosineDecayScheduler", "GeometricDecayScheduler", "PolynomialDecayScheduler"]

# Where no distance of updates is given: at most so many steps, and so near that there are so many updates.
_MOST_DISTANT, _LEAST_UPDATES = 100, 10

_Stepped = TypeVar("_Stepped", bound="_SteppedScheduler")


@dataclass(frozen=True)
class _SteppedScheduler(PruningScheduler):
    """Sparsity that moves from initial to target along a curve, one point of it at each update step."""

    update_steps: Sequence[int] | str | None = None
    begin: Moment | None = field(default=None, kw_only=True)
    end: Moment | None = field(default=None, kw_only=True)
    frequency: Moment | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        spans = [name for name in ("begin", "end", "frequency") if getattr(self, name) is not None]
        if self.update_steps is not None:
            if spans:
                raise ConfigError(f"update_steps and {spans[0]} say the same thing twice. Write one of the two forms.")
            object.__setattr__(self, "update_steps", parse_steps(self.update_steps))
            return
        if not spans:
            raise ConfigError(
                "update_steps must name the steps at which masks change, got nothing. "
                'Write update_steps=[100, 200, 300], "range(100, 5000, 100)", or begin=, end= and frequency=.'
            )
        for name, default in (("begin", 0), ("end", 1.0), ("frequency", None)):
            value = getattr(self, name)
            object.__setattr__(self, name, default if value is None else check_moment(value, name))
        begin, end = (
            count_epochs(moment, "") if isinstance(moment, str) else moment for moment in (self.begin, self.end)
        )
        if type(self.begin) is type(self.end) and end < begin:  # type: ignore[operator]
            raise ConfigError(
                f"end must not come before begin, got begin={shown(self.begin)} and end={shown(self.end)}."
            )
        if self.frequency == 0 or (isinstance(self.frequency, str) and count_epochs(self.frequency, "frequency") == 0):
            raise ConfigError(
                f"frequency must be at least 1 optimizer step, got {shown(self.frequency)}. "
                "Write 1 to update at every step."
            )

    def remaining(self, progress: float) -> float:
        """Share of the way from initial to target that is still to go, given progress in [0, 1]."""
        raise NotImplementedError

    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: SparsityBounds) -> float:
        """Give the point of the curve that belongs to an update step; between update steps nothing changes."""
        index = self._index.get(step_count)
        if index is None:
            return prev_sparsity
        progress = index / (len(self._index) - 1) if len(self._index) > 1 else 1.0
        initial, target = config.initial_sparsity, config.target_sparsity
        if progress == 0.0:  # the sum below may differ from it by rounding
            return initial
        sparsity = target + (initial - target) * self.remaining(progress)
        return min(max(sparsity, min(initial, target)), max(initial, target))

    @cached_property
    def _index(self) -> dict[int, int]:
        if self.update_steps is None or isinstance(self.update_steps, str):
            raise ConfigError(
                f"{self} is written in units of a training run. Call pruner.resolve(TrainingRun(total_steps=...)) "
                "to turn it into steps; the callback does so by itself."
            )
        return {step: index for index, step in enumerate(self.update_steps)}

    def is_due(self, step_count: int) -> bool:
        """Whether this is an update step."""
        return step_count in self._index

    def due_steps(self, first: int, last: int) -> Iterable[int]:
        """The update steps from ``first`` to ``last``, both included."""
        return (step for step in self._index if first <= step <= last)

    def reselects(self, step_count: int) -> bool:
        """True at every update but the first, where the mask of the initial sparsity holds already."""
        return self._index.get(step_count, 0) > 0

    @property
    def last_update_step(self) -> int | None:
        """The last of the update steps."""
        return max(self._index)

    @property
    def is_resolved(self) -> bool:
        """Whether the update steps are known."""
        return self.update_steps is not None

    def resolve(self: _Stepped, run: TrainingRun) -> _Stepped:
        """Write ``begin``, ``end``, ``frequency`` as update steps: ``begin, begin + frequency, ...``, and ``end``."""
        if self.begin is None or self.end is None:
            return self
        begin, end = run.to_steps(self.begin, "begin"), run.to_steps(self.end, "end")
        if run.is_rehearsal:
            end = max(begin, end, 1)
        elif not isinstance(self.end, int):
            end = max(end, 1)  # a fraction of a very short run may be no whole step
        if end < begin:
            raise ConfigError(f"end must not come before begin, got begin={begin} and end={end} optimizer steps.")
        if end == 0:
            raise ConfigError("end=0 would never fire: optimizer steps count from 1. Write end=1.")
        if run.total_steps is not None and end > run.total_steps and not run.is_rehearsal:
            raise ConfigError(
                f"end={self.end!r} is optimizer step {end}, but the run has {run.total_steps}: "
                "the target would never be reached. Train longer, or write an earlier end."
            )
        if isinstance(self.frequency, str):
            steps = run.every(self.frequency, self.begin, end)
        else:
            frequency = min(_MOST_DISTANT, (end - begin) // _LEAST_UPDATES)
            if self.frequency is not None:
                frequency = run.to_steps(self.frequency, "frequency")
            steps = within_bounds(range(begin, end, max(1, frequency)), "frequency")
        return replace(self, update_steps=(*steps, end), begin=None, end=None, frequency=None)

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Keep the updates that were made; one update makes up for all that should have been made by now."""
        steps: Any = getattr(before, "update_steps", None)
        if steps is None or step_count == 0:
            return self
        if step_count >= steps[-1]:
            return before
        ahead = [step for step in self._index if step > step_count] or [step_count + 1]
        return replace(self, update_steps=(*(step for step in steps if step <= step_count), *ahead))


@dataclass(frozen=True)
class PolynomialDecayScheduler(_SteppedScheduler):
    r"""Prune quickly at first, then ever more slowly, along a polynomial.

    At update ``k`` of ``K`` (counted from 0, so that the last update lands on the target)::

        sparsity = target + (initial - target) * (1 - k / (K - 1)) ** power

    A schedule of one update goes straight to the target. Between updates sparsity and masks hold.

    Args:
        update_steps: Optimizer steps, counted from 1 and strictly increasing, at which masks are computed anew; a list,
            a ``range``, or its text: ``"range(0, 5000, 100)"``. A step 0 stands for the moment of ``prepare``:
            it takes its place on the curve, where ``initial_sparsity`` holds.
        power: Exponent of the curve, above 0; 1 is linear, 3 the cubic of the paper.
        begin: First update: an int is optimizer steps, a float a fraction of the run, ``"2 epochs"`` epochs.
        end: Last update, at which the target is reached; as ``begin``.
        frequency: Distance between updates; as ``begin``. Defaults to 100 steps, or to a tenth of the way from
            ``begin`` to ``end`` where that is less.

    Raises:
        ConfigError: A value cannot work, or both forms (``update_steps`` and ``begin``/``end``) are given.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, equation 1, https://arxiv.org/abs/1710.01878

    Example:
        >>> from types import SimpleNamespace
        >>> schedule = PolynomialDecayScheduler([2, 4, 6])
        >>> config = SimpleNamespace(initial_sparsity=0.0, target_sparsity=0.8)
        >>> [round(schedule.compute_sparsity(step, 0.0, config), 2) for step in (2, 4, 6)]
        [0.0, 0.7, 0.8]
        >>> PolynomialDecayScheduler(begin=0.25, end=0.75, frequency=20).resolve(TrainingRun(100)).update_steps
        (25, 45, 65, 75)
    """

    power: float = 3

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        power = plain_number(self.power)
        if isinstance(power, bool) or not isinstance(power, (int, float)) or not 0 < power <= sys.float_info.max:
            raise ConfigError(
                f"power must be a number above 0, got {shown(self.power)}. Write 3 for the cubic, 1 for linear."
                f"{yaml_hint(self.power)}"
            )
        object.__setattr__(self, "power", power)

    def remaining(self, progress: float) -> float:
        """``(1 - progress) ** power``."""
        return float((1.0 - progress) ** self.power)


@dataclass(frozen=True)
class CosineDecayScheduler(_SteppedScheduler):
    """Prune slowly at first, quickly in the middle and slowly at the end, along half a cosine.

    At update ``k`` of ``K``: ``sparsity = target + (initial - target) * (1 + cos(pi * k / (K - 1))) / 2``.
    The arguments are those of :class:`PolynomialDecayScheduler`, without ``power``.

    Example:
        >>> from types import SimpleNamespace
        >>> schedule = CosineDecayScheduler([1, 2, 3])
        >>> config = SimpleNamespace(initial_sparsity=0.0, target_sparsity=0.8)
        >>> [round(schedule.compute_sparsity(step, 0.0, config), 2) for step in (1, 2, 3)]
        [0.0, 0.4, 0.8]
    """

    def remaining(self, progress: float) -> float:
        """``(1 + cos(pi * progress)) / 2``."""
        return (1.0 + math.cos(math.pi * progress)) / 2.0 if progress < 1.0 else 0.0


@dataclass(frozen=True)
class GeometricDecayScheduler(_SteppedScheduler):
    """Prune the same share of what is left at each update: the rounds of iterative magnitude pruning.

    At update ``k`` of ``K``, counted from 1, so that the first one prunes already and the last lands on the target::

        sparsity = 1 - (1 - initial) ** (1 - k / K) * (1 - target) ** (k / K)

    From an initial sparsity of 0 each update prunes ``1 - (1 - target) ** (1 / K)`` of what is left: for ``K`` rounds
    of 20 % write ``target_sparsity = 1 - 0.8 ** K``. The arguments are those of :class:`PolynomialDecayScheduler`,
    without ``power``; a step 0, which never fires, is no update here.

    References:
        Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019, https://arxiv.org/abs/1803.03635

    Example:
        >>> from types import SimpleNamespace
        >>> schedule = GeometricDecayScheduler([100, 200, 300])
        >>> config = SimpleNamespace(initial_sparsity=0.0, target_sparsity=0.488)
        >>> [round(schedule.compute_sparsity(step, 0.0, config), 3) for step in (100, 200, 300)]
        [0.2, 0.36, 0.488]
    """

    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: SparsityBounds) -> float:
        """Give the sparsity of an update step; between update steps nothing changes."""
        index = self._index.get(step_count)
        if index is None:
            return prev_sparsity
        skipped = 1 if 0 in self._index else 0
        progress = (index + 1 - skipped) / (len(self._index) - skipped)
        initial, target = config.initial_sparsity, config.target_sparsity
        if progress in (0.0, 1.0):
            return target if progress else initial
        density = float((1.0 - initial) ** (1.0 - progress) * (1.0 - target) ** progress)
        return min(max(1.0 - density, min(initial, target)), max(initial, target))
