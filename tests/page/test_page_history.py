"""The history of a run: it stays small, follows what is logged anew, and refuses damage."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from lightning_prune import CheckpointError, ConstantSparsityScheduler, MagnitudePrunerConfig, plan_pruning
from lightning_prune.page import Curve, History, planned_curve
from lightning_prune.page.history import MOST_METRICS, MOST_POINTS
from lightning_prune.schedules import PruningScheduler


def test_a_long_history_keeps_its_ends_and_spreads_evenly():
    history = History()
    for step in range(1, 5001):
        history.add_sparsity(step, step / 5000)
    steps = history.actual.steps
    assert len(steps) == MOST_POINTS
    assert (steps[0], steps[-1]) == (1, 5000)
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) <= 5000 / MOST_POINTS * 3
    assert history.actual.values == tuple(step / 5000 for step in steps)


def test_a_full_history_is_at_most_30_kilobytes_of_a_checkpoint():
    history = History()
    for step in range(1, 301):
        history.add_sparsity(step, step / 300)
        logged = {f"some_long_name_of_metric_{at}": torch.tensor(math.sqrt(step + at)) for at in range(50)}
        history.add_metrics(step, logged, prefix="sparsity")
    assert len(history.metrics) == MOST_METRICS
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    assert file.tell() < 30_000


def test_only_what_was_logged_anew_is_noted():
    history, logged = History(), {"accuracy": torch.tensor(0.5), "loss": torch.tensor(2.0)}
    history.add_metrics(10, logged, prefix="sparsity")
    logged["accuracy"] = torch.tensor(0.5)  # the same value, measured again
    history.add_metrics(20, logged, prefix="sparsity")
    assert history.metrics == {"accuracy": Curve((10, 20), (0.5, 0.5)), "loss": Curve((10,), (2.0,))}


def test_halves_of_a_metric_our_own_numbers_and_what_is_no_number_are_left_out():
    logged = {
        "loss": torch.tensor(1.0),
        "loss_step": torch.tensor(1.0),
        "loss_epoch": torch.tensor(2.0),
        "sparsity/fc": torch.tensor(0.5),
        "broken": torch.tensor(math.nan),
    }
    history = History()
    history.add_metrics(5, logged, prefix="sparsity")
    assert {name: curve for name, curve in history.metrics.items() if curve.steps} == {
        "loss_epoch": Curve((5,), (2.0,))
    }


def test_a_history_comes_back_from_a_checkpoint(tmp_path):
    history = History()
    history.planned = Curve((0, 3), (0.0, 0.5))
    history.describe(MagnitudePrunerConfig())
    history.add_sparsity(3, 0.5)
    history.add_metrics(3, {"accuracy": 0.75}, prefix="sparsity")
    torch.save(history.state_dict(), tmp_path / "state.pt")
    again = History()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict() == history.state_dict()
    again.add_metrics(6, {"accuracy": 0.8}, prefix="sparsity")
    assert again.metrics == {"accuracy": Curve((3, 6), (0.75, 0.8))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (3, "must be a dict, got 3"),
        ({"metrics": 5}, "must have metrics and a configuration"),
        ({"metrics": {str(at): {} for at in range(13)}}, "must have metrics and a configuration"),
        ({"metrics": {7: {}}}, "names of metrics must be short texts"),
        ({"actual": {"steps": [1], "values": []}}, "at most 128 steps and values"),
        ({"actual": {"steps": list(range(200)), "values": [0.5] * 200}}, "at most 128 steps and values"),
        ({"actual": {"steps": [2, 1], "values": [0.5, 0.5]}}, "optimizer steps that rise"),
        ({"planned": {"steps": [True], "values": [0.5]}}, "optimizer steps that rise"),
        ({"planned": {"steps": [1], "values": [math.inf]}}, "must be finite numbers"),
        ({"planned": {"steps": [1], "values": ["x"]}}, "must be finite numbers"),
    ],
)
def test_a_damaged_history_is_refused_and_changes_nothing(change, message):
    history = History()
    history.add_sparsity(1, 0.5)
    before = history.state_dict()
    damaged = change if isinstance(change, int) else {**before, **change}
    with pytest.raises(CheckpointError, match=f"The history of the run is damaged: .*{message}"):
        history.load_state_dict(damaged)
    assert history.state_dict() == before


def test_a_configuration_that_yaml_cannot_write_is_left_out():
    class Own(PruningScheduler):
        def __init__(self, thing):
            self.thing = thing

        def compute_sparsity(self, step_count, prev_sparsity, config):
            return config.target_sparsity

    history = History()
    history.describe(MagnitudePrunerConfig({"scheduler": Own(object())}))
    assert history.configuration == ""
    long = {f"layer_{at}": {"target_sparsity": 0.5} for at in range(400)}
    history.describe(MagnitudePrunerConfig(None, {}, long))
    assert history.configuration == ""


def test_layers_of_other_schedules_are_planned_by_their_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 12))
    config = MagnitudePrunerConfig(
        None,
        {},
        {
            "0": {"scheduler": ConstantSparsityScheduler(5), "target_sparsity": 0.5},
            "1": {"scheduler": ConstantSparsityScheduler(10), "target_sparsity": 0.75},
        },
    )
    plan = plan_pruning(model, config)
    schedules = {planned.name: planned.config.schedule for planned in plan}
    assert planned_curve(plan, schedules, 20) == Curve((0, 5, 10, 20), (0.0, 0.125, 0.6875, 0.6875))


def test_a_plan_of_many_updates_is_drawn_at_few_steps():
    config = MagnitudePrunerConfig({"scheduler": {"update_steps": list(range(1, 20_001))}, "target_sparsity": 0.9})
    plan = plan_pruning(nn.Linear(4, 4), config)
    curve = planned_curve(plan, {"weight": config.global_config.schedule}, 30_000)
    assert len(curve.steps) <= MOST_POINTS
    assert (curve.steps[0], curve.steps[-1], curve.values[-1]) == (0, 30_000, 0.9)
    assert list(curve.values) == sorted(curve.values)
