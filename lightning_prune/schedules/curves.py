"""Schedules: how sparse a weight is at each optimizer step. Pure functions of the step, without torch.

A schedule that is written in raw steps (``update_steps``, ``begin_step``) is ready as it stands. One written in the
units of a training run (fractions, epochs) is turned into steps by :meth:`PruningScheduler.resolve` once the length of
the run is known.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from lightning_prune.basics import plain_list, plain_number, plain_text, yaml_hint
from lightning_prune.errors import ConfigError, shown

__all__ = [
    "ConstantSparsityScheduler",
    "CosineDecayScheduler",
    "PolynomialDecayScheduler",
    "PruningScheduler",
    "SparsityBounds",
    "TrainingRun",
]

_RANGE = re.compile(r"\s*range\(\s*(-?\d{1,18})\s*(?:,\s*(-?\d{1,18})\s*)?(?:,\s*(-?\d{1,18})\s*)?,?\s*\)\s*")
_EPOCHS = re.compile(r"\s*(\d{1,9}(?:\.\d{1,18})?)\s*(?:ep|epochs?)\s*")

# Where no distance of updates is given: at most so many steps, and so near that there are so many updates.
_MOST_DISTANT, _LEAST_UPDATES = 100, 10

_MOST_UPDATES = 10**6  # each is kept; more would be a slip, and may be more than there is memory for

Moment = int | float | str


class SparsityBounds(Protocol):
    """What a schedule reads of a configuration: where sparsity starts and where it goes, fractions in [0, 1]."""

    @property
    def initial_sparsity(self) -> float: ...  # noqa: D102

    @property
    def target_sparsity(self) -> float: ...  # noqa: D102


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
        moment = _check_moment(moment, name)
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
        return round(self._step_after(_epochs(moment, name), f"{name}={moment!r}", name))

    def every(self, distance: str, begin: Moment, end: int) -> tuple[int, ...]:
        """Steps that lie a number of epochs apart, from ``begin`` on and before the step ``end``.

        Example:
            >>> TrainingRun(None, steps_per_epoch=8, epoch_ends=(4, 10)).every("1 epoch", "1 epoch", 20)
            (4, 10, 18)
        """
        first = _epochs(begin, "begin") if isinstance(begin, str) else self._epochs_at(self.to_steps(begin, "begin"))
        written = f"frequency={distance!r}"
        steps: list[int] = []
        step = self.to_steps(begin, "begin")
        while step < end:
            steps.append(step)
            if len(steps) > _MOST_UPDATES:
                return _within_bounds(steps, "frequency")  # which refuses them
            after = first + len(steps) * _epochs(distance, "frequency")
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
            A schedule with the updates that ``before`` has made, and from the next step on those of this one.
        """
        return self


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
            object.__setattr__(self, "update_steps", _parse_steps(self.update_steps))
            return
        if not spans:
            raise ConfigError(
                "update_steps must name the steps at which masks change, got nothing. "
                'Write update_steps=[100, 200, 300], "range(100, 5000, 100)", or begin=, end= and frequency=.'
            )
        for name, default in (("begin", 0), ("end", 1.0), ("frequency", None)):
            value = getattr(self, name)
            object.__setattr__(self, name, default if value is None else _check_moment(value, name))
        begin, end = ((type(one), _epochs(one, "") if isinstance(one, str) else one) for one in (self.begin, self.end))
        if begin[0] is end[0] and end[1] < begin[1]:  # type: ignore[operator]
            raise ConfigError(
                f"end must not come before begin, got begin={shown(self.begin)} and end={shown(self.end)}."
            )
        if self.frequency == 0 or (isinstance(self.frequency, str) and _epochs(self.frequency, "frequency") == 0):
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
        """The update steps between, which are known."""
        return (step for step in self._index if first <= step <= last)

    def reselects(self, step_count: int) -> bool:
        """True at every update but the first, where sparsity is the initial one, whose mask holds already."""
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
            steps = _within_bounds(range(begin, end, max(1, frequency)), "frequency")
        return replace(self, update_steps=(*steps, end), begin=None, end=None, frequency=None)

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Keep the updates that were made; those that should have been made by now are made up for by one."""
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

    At update ``k`` of ``K`` (counted from 0, so that the last one lands on the target)::

        sparsity = target + (initial - target) * (1 - k / (K - 1)) ** power

    A schedule of one update goes straight to the target. Between updates sparsity and masks hold.

    Args:
        update_steps: Optimizer steps, counted from 1 and strictly increasing, at which masks are computed anew; a list,
            a ``range``, or the text of one: ``"range(0, 5000, 100)"``. A step 0 stands for the moment of ``prepare``:
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
        object.__setattr__(self, "begin_step", _check_moment(self.begin_step, "begin_step"))

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
        """The one step, if it lies between."""
        return (step for step in (self._begin,) if first <= step <= last)

    @property
    def last_update_step(self) -> int | None:
        """The one update step."""
        return self._begin

    @property
    def is_resolved(self) -> bool:
        """Whether ``begin_step`` is a number of steps."""
        return isinstance(self.begin_step, int)

    def resolve(self, run: TrainingRun) -> ConstantSparsityScheduler:
        """Write ``begin_step`` in steps."""
        return replace(self, begin_step=run.to_steps(self.begin_step, "begin_step"))

    def after(self, before: PruningScheduler, step_count: int) -> PruningScheduler:
        """Keep the update if it was made; one that should have been made by now is made at the next step."""
        if not before.is_resolved or step_count == 0:
            return self
        done = before.last_update_step is not None and step_count >= before.last_update_step
        return before if done else replace(self, begin_step=max(self._begin, step_count + 1))


def _parse_steps(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        match = _RANGE.fullmatch(value)
        if match is None:
            raise ConfigError(
                f'update_steps must be a list of steps or a text like "range(0, 5000, 100)", got {shown(value)}.'
            )
        bounds = [int(number) for number in match.groups() if number is not None]
        if len(bounds) == 3 and bounds[2] == 0:
            raise ConfigError(f"update_steps has a range whose step is 0: {shown(value)}. Write a step of at least 1.")
        value = range(*bounds)
    elif getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value[: _MOST_UPDATES + 1]  # of which not more is made than there may be
    value = plain_list(value)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise ConfigError(f"update_steps must be a list of optimizer steps, got {shown(value)}. Write [100, 200, 300].")
    steps = tuple(plain_number(step) for step in _within_bounds(value, "update_steps"))
    for step in steps:
        is_whole = type(step) is int or (isinstance(step, float) and step.is_integer())
        if not is_whole or step < 0:
            raise ConfigError(
                f"update_steps must hold whole optimizer steps of at least 0, got {shown(step)} in {shown(value)}."
                f"{yaml_hint(step)}"
            )
    steps = tuple(int(step) for step in steps)
    if not steps:
        raise ConfigError("update_steps must not be empty: nothing would ever be pruned. Write [100, 200, 300].")
    if steps == (0,):
        raise ConfigError("update_steps=[0] would never fire: optimizer steps count from 1. Write [1].")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise ConfigError(
            f"update_steps must be strictly increasing, got {shown(list(steps))}. Sort them, name each one once."
        )
    return steps


def _within_bounds(steps: Iterable[Any], name: str) -> tuple[Any, ...]:
    """The update steps as a tuple, of which not more is made than there may be."""
    found = tuple(itertools.islice(steps, _MOST_UPDATES + 1))
    if len(found) > _MOST_UPDATES:
        raise ConfigError(
            f"{name} must give at most {_MOST_UPDATES:,} updates, but gives more. Write them further apart: a hundred "
            "updates are many."
        )
    return found


def _check_moment(moment: Any, name: str) -> Moment:
    value = plain_text(plain_number(moment))
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(
            f'{name} must be steps (an int), a fraction of the run (a float) or "N epochs", got {shown(value)}.'
            f"{yaml_hint(value)}"
        )
    if isinstance(value, str):
        _epochs(value, name)
    elif isinstance(value, float) and not 0.0 <= value <= 1.0:
        steps = int(value) if value > 1.0 and value.is_integer() else "an int"
        raise ConfigError(
            f"{name} as a float is a fraction of the run in [0, 1], got {shown(value)}. "
            f"Write {steps} for optimizer steps."
        )
    elif isinstance(value, int) and value < 0:
        least = 1 if name == "frequency" else 0
        raise ConfigError(f"{name} must be at least {least} optimizer steps, got {shown(value)}.")
    return value


def _epochs(text: str, name: str) -> float:
    match = _EPOCHS.fullmatch(text)
    if match is None:
        raise ConfigError(
            f'{name} as a text is a number of epochs such as "3 epochs", got {shown(text)}.{yaml_hint(text)}'
        )
    return float(match.group(1))
