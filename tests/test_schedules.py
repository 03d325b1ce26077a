from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune import (
    ConfigError,
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    PolynomialDecayScheduler,
    PruningScheduler,
)
from lightning_prune.schedules import TrainingRun


def bounds(initial: float = 0.0, target: float = 0.8) -> SimpleNamespace:
    return SimpleNamespace(initial_sparsity=initial, target_sparsity=target)


def play(schedule: PruningScheduler, steps: int, config: SimpleNamespace) -> list[float]:
    sparsity, curve = config.initial_sparsity, []
    for step in range(1, steps + 1):
        sparsity = schedule.compute_sparsity(step, sparsity, config)
        curve.append(round(sparsity, 4))
    return curve


def test_cubic_schedule_follows_the_paper_and_holds_between_updates():
    schedule = PolynomialDecayScheduler([2, 4, 6, 8, 10])
    assert play(schedule, 11, bounds()) == [0, 0, 0, 0.4625, 0.4625, 0.7, 0.7, 0.7875, 0.7875, 0.8, 0.8]


def test_one_update_goes_straight_to_the_target():
    assert play(PolynomialDecayScheduler([3]), 4, bounds()) == [0, 0, 0.8, 0.8]


def test_power_one_is_linear():
    assert play(PolynomialDecayScheduler([1, 2, 3], power=1), 3, bounds(0.2)) == [0.2, 0.5, 0.8]


def test_constant_schedule_is_one_shot():
    assert play(ConstantSparsityScheduler(3), 4, bounds()) == [0, 0, 0.8, 0.8]
    assert play(ConstantSparsityScheduler(0), 2, bounds()) == [0.8, 0.8]


def test_cosine_is_symmetric():
    assert play(CosineDecayScheduler([1, 2, 3, 4, 5]), 5, bounds(0, 1)) == [0, 0.1464, 0.5, 0.8536, 1]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("range(0, 5000, 100)", tuple(range(0, 5000, 100))),
        ("range(5)", (0, 1, 2, 3, 4)),
        (" range( 2 , 4 ) ", (2, 3)),
    ],
)
def test_range_texts_are_parsed(text: str, steps: tuple[int, ...]):
    assert PolynomialDecayScheduler(text).update_steps == steps


@pytest.mark.parametrize("steps", [[1, 5], (1, 5), torch.tensor([1, 5]), range(1, 6, 4), [1.0, 5.0]])
def test_update_steps_may_be_any_sequence(steps: object):
    assert PolynomialDecayScheduler(steps).update_steps == (1, 5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "must not be empty"),
        ("range(0)", "must not be empty"),
        ([0], "would never fire"),
        ([3, 3], "strictly increasing"),
        ([5, 3], "strictly increasing"),
        ([-1, 3], "at least 0"),
        ([1.5], "whole optimizer steps"),
        ([True], "whole optimizer steps"),
        ("range(1, 5, 0)", "step is 0"),
        ("__import__('os').system('true')", "must be a list of steps or a text like"),
        (7, "must be a list"),
    ],
)
def test_update_steps_that_cannot_work_are_refused(steps: object, message: str):
    with pytest.raises(ConfigError, match=message):
        PolynomialDecayScheduler(steps)


@pytest.mark.parametrize("power", [0, -1, "3", True, float("inf")])
def test_power_must_be_positive(power: object):
    with pytest.raises(ConfigError, match="power must be a number above 0"):
        PolynomialDecayScheduler([1], power=power)


def test_units_of_a_run_become_steps():
    schedule = PolynomialDecayScheduler(begin=0.1, end=0.5, frequency=15)
    assert not schedule.is_resolved
    assert schedule.resolve(TrainingRun(100)).update_steps == (10, 25, 40, 50)
    epochs = PolynomialDecayScheduler(begin="1 epoch", end="3 epochs", frequency="1ep")
    assert epochs.resolve(TrainingRun(None, 20)).update_steps == (20, 40, 60)
    assert ConstantSparsityScheduler(0.5).resolve(TrainingRun(100)).begin_step == 50


def test_updates_are_a_hundred_steps_apart_or_ten_at_least_unless_told_otherwise():
    schedule = PolynomialDecayScheduler(begin=0.1, end=0.6)
    assert schedule.resolve(TrainingRun(10_000)).update_steps == (*range(1000, 6000, 100), 6000)
    assert schedule.resolve(TrainingRun(100)).update_steps == (*range(10, 60, 5), 60)
    assert schedule.resolve(TrainingRun(10)).update_steps == (1, 2, 3, 4, 5, 6)
    with pytest.raises(ConfigError, match="frequency must be at least 1 optimizer step, got 0. Write 1"):
        PolynomialDecayScheduler(begin=0.1, frequency=0)
    with pytest.raises(ConfigError, match="frequency must be at least 1 optimizer step, got '0 epochs'"):
        PolynomialDecayScheduler(begin=0.1, frequency="0 epochs")
    with pytest.raises(ConfigError, match="end=0 would never fire"):
        PolynomialDecayScheduler(begin=0, end=0).resolve(TrainingRun(100))


def test_units_need_a_run_of_known_length():
    with pytest.raises(ConfigError, match="length of the run is not known"):
        PolynomialDecayScheduler(end=0.5).resolve(TrainingRun(None))
    with pytest.raises(ConfigError, match="length of an epoch is not known"):
        PolynomialDecayScheduler(end="3 epochs").resolve(TrainingRun(100))
    with pytest.raises(ConfigError, match=r"Call pruner.resolve"):
        PolynomialDecayScheduler(end=0.5).is_due(1)


def test_a_schedule_that_cannot_finish_is_refused():
    with pytest.raises(ConfigError, match="the run has 100: the target would never be reached"):
        PolynomialDecayScheduler(end=200).resolve(TrainingRun(100))
    for begin, end in ((0.9, 0.2), (6, 2), ("2 epochs", "1 epochs")):
        with pytest.raises(ConfigError, match=f"end must not come before begin, got begin={begin!r} and end={end!r}"):
            PolynomialDecayScheduler(begin=begin, end=end)
    for end in (0.3, "2 epochs"):
        with pytest.raises(
            ConfigError, match="end must not come before begin, got begin=60 and end=.0 optimizer steps"
        ):
            PolynomialDecayScheduler(begin=60, end=end).resolve(TrainingRun(100, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "must name the steps"),
        ({"update_steps": [1], "end": 5}, "say the same thing twice"),
        ({"end": 1.5}, "fraction of the run in"),
        ({"end": "soon"}, "number of epochs"),
        ({"end": -3}, "at least 0"),
        ({"frequency": None, "begin": [1]}, "must be steps"),
    ],
)
def test_forms_that_cannot_work_are_refused(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        PolynomialDecayScheduler(**arguments)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=20, unique=True).map(sorted),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.1, 10),
)
def test_every_curve_stays_between_its_ends_and_lands_on_the_target(steps, initial, target, power):
    schedule, config = PolynomialDecayScheduler(steps, power), bounds(initial, target)
    curve = [schedule.compute_sparsity(step, initial, config) for step in steps]
    assert curve[-1] == target
    assert all(min(initial, target) - 1e-12 <= point <= max(initial, target) + 1e-12 for point in curve)
    assert curve == sorted(curve, reverse=initial > target)
    assert schedule.last_update_step == steps[-1]
    assert [step for step in range(502) if schedule.is_due(step)] == steps


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True).map(sorted), st.floats(0, 1), st.floats(0, 1))
def test_curves_equal_those_of_core_ml_tools(coremltools, steps, initial, target):
    theirs = coremltools.optimize.torch.pruning.PolynomialDecayScheduler(update_steps=steps)
    ours = PolynomialDecayScheduler(steps)
    for step in range(62):
        expected = theirs.compute_sparsity(step, 0.25, bounds(initial, target))
        assert ours.compute_sparsity(step, 0.25, bounds(initial, target)) == expected
