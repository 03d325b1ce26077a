from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune import (
    ConfigError,
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    GeometricDecayScheduler,
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


def test_a_constant_schedule_with_a_frequency_chooses_masks_anew_without_end():
    schedule = ConstantSparsityScheduler(3, frequency=2)
    assert play(schedule, 6, bounds()) == [0, 0, 0.8, 0.8, 0.8, 0.8]
    assert [step for step in range(1, 10) if schedule.is_due(step)] == [3, 5, 7, 9]
    assert [step for step in range(1, 10) if schedule.reselects(step)] == [3, 5, 7, 9]
    for first in range(1, 9):
        assert list(schedule.due_steps(first, 8)) == [step for step in range(first, 9) if schedule.is_due(step)]
    assert schedule.last_update_step is None
    every = ConstantSparsityScheduler(0, frequency=1)
    assert [step for step in range(5) if every.is_due(step)] == [1, 2, 3, 4]
    once = ConstantSparsityScheduler(3)
    assert not any(once.reselects(step) for step in range(9))


def test_a_geometric_schedule_prunes_the_same_share_of_what_is_left_at_each_update():
    config = bounds(target=1 - 0.8**5)
    asked = play(GeometricDecayScheduler([2, 3, 4, 6, 7]), 8, config)
    densities = [1 - sparsity for sparsity in asked]
    assert densities == pytest.approx([1, 0.8, 0.64, 0.512, 0.512, 0.8**4, 0.8**5, 0.8**5], abs=1e-4)
    assert GeometricDecayScheduler([2]).compute_sparsity(2, 0.0, config) == config.target_sparsity


def test_a_geometric_schedule_starts_from_the_initial_sparsity_and_counts_no_step_that_never_fires():
    config = bounds(target=0.75, initial=0.25)
    curve = [1 - sparsity for sparsity in play(GeometricDecayScheduler([1, 2]), 2, config)]
    assert curve == pytest.approx([0.75 * (1 / 3) ** 0.5, 0.25], abs=1e-4)
    assert play(GeometricDecayScheduler([0, 1, 2]), 2, config) == play(GeometricDecayScheduler([1, 2]), 2, config)
    assert play(GeometricDecayScheduler([3]), 3, config) == [0.25, 0.25, 0.75]
    run = TrainingRun(100)
    assert GeometricDecayScheduler(begin=20, end=0.8, frequency=20).resolve(run).update_steps == (20, 40, 60, 80)


def test_a_constant_schedule_with_a_frequency_goes_on_when_the_run_turns_out_otherwise():
    before, now = ConstantSparsityScheduler(3, frequency=2), ConstantSparsityScheduler(6, frequency=4)
    assert now.after(before, 0) == now
    assert now.after(before, 2) == now
    assert now.after(before, 3) == ConstantSparsityScheduler(3, frequency=4)
    assert ConstantSparsityScheduler(2, frequency=4).after(ConstantSparsityScheduler(9, frequency=4), 5).begin_step == 6
    assert ConstantSparsityScheduler(6).after(ConstantSparsityScheduler(3), 4) == ConstantSparsityScheduler(3)


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
    often = ConstantSparsityScheduler("1 epoch", frequency=0.1)
    assert often.resolve(TrainingRun(100, 20)) == ConstantSparsityScheduler(20, frequency=10)
    assert ConstantSparsityScheduler(1, frequency=0.1).resolve(TrainingRun(4)).frequency == 1
    assert ConstantSparsityScheduler(1, frequency="2 epochs").resolve(TrainingRun(100, 20)).frequency == 40


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
    assert curve[0] == (initial if len(steps) > 1 else target)
    assert all(min(initial, target) <= point <= max(initial, target) for point in curve)
    assert curve == sorted(curve, reverse=initial > target)
    assert schedule.last_update_step == steps[-1]
    assert [step for step in range(502) if schedule.is_due(step)] == steps


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True).map(sorted), st.floats(0, 1), st.floats(0, 1))
def test_curves_equal_those_of_core_ml_tools(coremltools, steps, initial, target):
    theirs = coremltools.optimize.torch.pruning.PolynomialDecayScheduler(update_steps=steps)
    ours = PolynomialDecayScheduler(steps)
    for step in range(62):
        expected = theirs.compute_sparsity(step, 0.25, bounds(initial, target))
        # of the first update theirs may be off by rounding
        expected = pytest.approx(expected, rel=1e-15, abs=1e-15) if step == steps[0] else expected
        assert ours.compute_sparsity(step, 0.25, bounds(initial, target)) == expected


@pytest.mark.parametrize("schedule", [PolynomialDecayScheduler([1, 2, 3]), CosineDecayScheduler([1, 2, 3])])
def test_the_first_update_is_exactly_at_the_initial_sparsity_and_the_last_at_the_target(schedule):
    for initial in range(101):
        for target in range(101):
            config = bounds(initial / 100, target / 100)
            first, middle, last = (schedule.compute_sparsity(step, 0.5, config) for step in (1, 2, 3))
            assert (first, last) == (initial / 100, target / 100)
            assert min(first, last) <= middle <= max(first, last)


def test_numbers_of_numpy_are_kept_as_plain_ones():
    schedule = PolynomialDecayScheduler(
        begin=np.float32(0.1), end=np.int64(50), frequency=np.int16(5), power=np.float64(2)
    )
    kinds = [type(number) for number in (schedule.begin, schedule.end, schedule.frequency, schedule.power)]
    assert kinds == [float, int, int, float]
    assert schedule.begin == 0.1, "as it prints, not as float32 holds it"
    steps = schedule.resolve(TrainingRun(np.int64(100), np.float64(10))).update_steps
    assert steps == (10, 15, 20, 25, 30, 35, 40, 45, 50)
    assert {type(step) for step in PolynomialDecayScheduler(np.array([1, 5])).update_steps} == {int}
    assert {type(step) for step in PolynomialDecayScheduler([np.int32(1), np.float32(5)]).update_steps} == {int}
    assert type(ConstantSparsityScheduler(np.int64(3)).begin_step) is int
    assert TrainingRun(100).to_steps(np.float32(0.5), "begin") == 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PolynomialDecayScheduler([1, float("inf")]), "whole optimizer steps of at least 0, got inf"),
        (lambda: PolynomialDecayScheduler([float("nan")]), "whole optimizer steps of at least 0, got nan"),
        (lambda: PolynomialDecayScheduler([np.True_]), "whole optimizer steps of at least 0, got True"),
        (lambda: PolynomialDecayScheduler(["1e2"]), "got '1e2' in .* It is a text, which YAML makes of 1e2: write 100"),
        (lambda: PolynomialDecayScheduler(b"12"), "must be a list of optimizer steps, got b'12'"),
        (lambda: PolynomialDecayScheduler({1: 2}), "must be a list of optimizer steps, got {1: 2}"),
        (lambda: PolynomialDecayScheduler([1], power=10**400), "power must be a number above 0"),
        (lambda: PolynomialDecayScheduler([1], power="3e0"), "power .* got '3e0'.* write 3"),
        (lambda: PolynomialDecayScheduler(begin="1e2"), "begin .* got '1e2'.* which YAML makes of 1e2: write 100"),
        (lambda: PolynomialDecayScheduler(begin="0100"), "In YAML a number with a leading 0 is octal: write 100"),
        (lambda: PolynomialDecayScheduler(begin=100.0), "as a float is a fraction .* Write 100 for optimizer steps"),
        (lambda: PolynomialDecayScheduler(begin=float("inf")), "as a float is a fraction .* got inf"),
        (lambda: ConstantSparsityScheduler(1, frequency=0), "frequency must be at least 1 .* got 0. Write 1"),
        (lambda: ConstantSparsityScheduler(1, frequency="0 epochs"), "frequency must be at least 1 .* got '0 epochs'"),
        (lambda: ConstantSparsityScheduler(1, frequency=True), "frequency .* got True"),
        (lambda: ConstantSparsityScheduler(1, frequency=1.5), "frequency as a float is a fraction"),
        (lambda: ConstantSparsityScheduler(True), "begin_step .* got True. YAML makes True of yes, on and true"),
        (lambda: ConstantSparsityScheduler(None), "begin_step .* got None. YAML makes None of nothing"),
        (lambda: TrainingRun("100"), "total_steps must be a number of optimizer steps above 0, .* got '100'"),
        (lambda: TrainingRun(100, steps_per_epoch=float("nan")), "steps_per_epoch must be a number .* got nan"),
    ],
)
def test_what_is_no_number_is_named(call, message: str):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 6000])
def test_numbers_of_more_digits_than_any_run_has_steps_are_refused(digits):
    with pytest.raises(ConfigError, match=r"update_steps must be a list of steps or a text like .*got 'range\("):
        PolynomialDecayScheduler(f"range({digits})")
    with pytest.raises(ConfigError, match="begin as a text is a number of epochs"):
        PolynomialDecayScheduler(begin=f"{digits} epochs")
