"""States that are damaged, or made to harm: each is refused as a whole, and what it was to be loaded into stays as it was."""

import copy
import json
import math
import random
import sys
import zlib

import pytest
import torch
from torch import nn

from lightning_prune import CheckpointError, ConstantSparsityScheduler, MagnitudePruner, PruningScheduler
from lightning_prune.errors import shown
from lightning_prune.pruner.state import parse_state
from lightning_prune.schedules import TrainingRun
from lightning_prune.sharding import Box

RULES = {
    "global_config": {"scheduler": {"begin": 0.2, "end": 0.8, "frequency": 2}, "target_sparsity": 0.75},
    "module_name_configs": {
        "1": {"scheduler": {"update_steps": [2, 4, 6]}, "granularity": "per_channel", "target_sparsity": 0.5}
    },
}
OTHER = {**RULES, "global_config": {"scheduler": {"update_steps": [1, 2, 3]}, "target_sparsity": 0.9}}


def prepared(masking="hook", config=RULES, steps=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.Conv1d(6, 4, 3), nn.Linear(5, 3))
    pruner = MagnitudePruner(model, config, masking=masking)
    pruner.prepare(inplace=True, run=TrainingRun(10))
    if masking == "resident":
        pruner.attach_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(steps):
        pruner.step()
    return model, pruner


def snapshot(model, pruner):
    named = {name: value.clone() for name, value in model.state_dict().items()}
    return named, copy.deepcopy(pruner.state_dict()), pruner.step_count, copy.deepcopy(pruner.schedules)


def same(value, other):
    if type(value) is not type(other):
        return False
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value, other[key]) for key, value in value.items())
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other


def resigned(entry):
    """The digest that fits what an entry holds, as one who means harm would write it."""
    digest = zlib.crc32(entry["mask"].numpy().tobytes())
    values = entry["pruned_values"]
    return digest if values is None else zlib.crc32(values.contiguous().view(torch.uint8).numpy().tobytes(), digest)


def nested(depth):
    return "[" * depth + "]" * depth


ODD = [
    None, True, -1, 2, 10**30, -(10**30), 10**5000, 0.5, 1.5, -0.1, math.nan, math.inf, "", "text", "1", b"bytes", [], [[]],
    {}, {"a": 1}, (), (3,), [10**12], [-1, -9], [math.nan], [6.0, 9.0], nested(10**5), "{}", "[]", "null", "NaN", '"text"',
    torch.tensor(3), torch.zeros(0), torch.zeros(2, 2), torch.full((40,), math.nan), torch.zeros(5, dtype=torch.int64),
    torch.zeros(7, dtype=torch.uint8), torch.zeros(3, dtype=torch.complex64), torch.zeros(5, device="meta"),
    torch.zeros(7, dtype=torch.uint8, device="meta"), torch.zeros(7).to_sparse(),
    torch.zeros(1).expand(10**9), nn.Parameter(torch.zeros(5)),
    torch.zeros(1, dtype=torch.uint8).expand(10**9),
    '{"class_path": "os.system"}', '{"class_path": "planted.X", "init_args": {"update_steps": [2, 4]}}',
    '{"update_steps": "range(0, 1000000000000)"}', '{"update_steps": "range(1, ' + "9" * 5000 + ')"}', '{"update_steps": [2, 1]}', '{"update_steps": [2, 1e999]}',
    '{"begin_step": 3}', '{"begin": 0.1, "end": 0.5}', '{"update_steps": [2, 4], "power": "x"}',
]  # fmt: skip


def damages(state):
    """Every value of a state, replaced by every odd one, or left out; and some that are each a value of its own."""
    first = next(iter(state["parameters"]))
    for key in ("version", "step_count", "scope", "parameters"):
        yield from ((f"{key}={shown(odd)}", {**state, key: odd}) for odd in ODD)
        yield f"no {key}", {name: value for name, value in state.items() if name != key}
    for name, entry in state["parameters"].items():
        changed = [(f"{key}={shown(odd)}", {**entry, key: odd}) for key in entry for odd in ODD]
        changed += [(f"no {key}", {other: value for other, value in entry.items() if other != key}) for key in entry]
        changed += [(f"whole={shown(odd)}", odd) for odd in ODD]
        values, mask = entry["pruned_values"], entry["mask"]
        changed += [
            ("fewer values, signed", {**entry, "pruned_values": values[:-1]}),
            ("more values, signed", {**entry, "pruned_values": torch.cat([values, values])}),
            ("whole numbers, signed", {**entry, "pruned_values": values.long()}),
            ("another rank, signed", {**entry, "pruned_values": values[None]}),
            ("other mask, signed", {**entry, "mask": torch.cat([mask[:1] ^ 128, mask[1:]])}),
            ("longer mask, signed", {**entry, "mask": torch.cat([mask, mask])}),
            ("shorter mask, signed", {**entry, "mask": mask[:-1]}),
            ("other mask", {**entry, "mask": mask ^ 4}),
            ("other values", {**entry, "pruned_values": values + 1}),
        ]
        for what, new in changed:
            if what.endswith("signed"):
                new["digest"] = resigned(new)
            yield f"{name}: {what}", {**state, "parameters": {**state["parameters"], name: new}}
    parameters = dict(state["parameters"])
    entry = parameters.pop(first)
    for odd in (3, None, (1, 2), "0.other", b"0.weight"):
        yield f"another name {odd}", {**state, "parameters": {**parameters, odd: entry}}
    yield from ((f"all={shown(odd)}", odd) for odd in ODD)


HARMLESS = ("step_count=2", "no scope", "schedule=None", "sparsity=0.5", "floor=0.5")  # values that may stand there


@pytest.mark.parametrize("masking", ["hook", "resident"])
@pytest.mark.parametrize("allow", [False, True])
def test_a_damaged_state_is_refused_and_changes_nothing(masking, allow):
    good = prepared(masking, steps=5)[1].state_dict()
    model, pruner = prepared(masking, OTHER if allow else RULES, steps=1)
    before = snapshot(model, pruner)
    count = longest = 0
    for what, state in damages(good):
        try:
            pruner.load_state_dict(state, allow_config_change=allow)
        except CheckpointError as error:
            count, longest = count + 1, max(longest, len(str(error)))
        else:
            is_ignored = allow and any(key in what for key in ("scope", "rule=", "schedule="))
            assert is_ignored or any(end in what for end in HARMLESS), what
            model, pruner = prepared(masking, OTHER if allow else RULES, steps=1)
        assert same(snapshot(model, pruner), before), what
    assert count > 1500
    assert longest < 1000


@pytest.mark.parametrize("seed", range(3))
def test_several_damages_at_once_are_refused_likewise(seed):
    rng = random.Random(seed)
    good = prepared(steps=5)[1].state_dict()
    model, pruner = prepared(steps=1)
    before, refused = snapshot(model, pruner), 0
    for _ in range(200):
        state = copy.deepcopy(good)
        for _ in range(rng.randint(1, 4)):
            entry = rng.choice([state, *(parameter for parameter in state["parameters"].values())])
            key = rng.choice([*entry])
            if key != "parameters":
                entry[key] = rng.choice(ODD)
        try:
            pruner.load_state_dict(state)
        except CheckpointError:
            refused += 1
        else:
            model, pruner = prepared(steps=1)
        assert same(snapshot(model, pruner), before)
    assert refused > 180


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_an_undamaged_state_loads(masking):
    whole = prepared(masking, steps=5)[1]
    resumed = prepared(masking, steps=1)[1]
    resumed.load_state_dict(whole.state_dict())
    assert same(resumed.state_dict(), whole.state_dict())
    assert resumed.schedules == whole.schedules


@pytest.mark.parametrize("field", ["scope", "scope and schedule"])
def test_a_state_of_before_scopes_loads_as_one_by_layers(field):
    state = prepared(config=OTHER, steps=5)[1].state_dict()
    del state["scope"]
    if "schedule" in field:
        for entry in state["parameters"].values():
            del entry["schedule"]
    pruner = prepared(config=OTHER)[1]
    pruner.load_state_dict(state)
    assert pruner.step_count == 5
    model = nn.Sequential(nn.Linear(9, 6))
    rules = {"global_config": OTHER["global_config"]}
    pruner = MagnitudePruner(model, rules, scope="global")
    pruner.prepare()
    state["parameters"] = {"0.weight": state["parameters"]["0.weight"]}
    with pytest.raises(CheckpointError, match='saved with scope="layer", but this is a run with scope="global"'):
        pruner.load_state_dict(state)


def test_a_schedule_in_a_state_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('code that a file named has run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    good = prepared(steps=5)[1].state_dict()
    for written in ({"class_path": "planted.X"}, {"class_path": "planted.X", "init_args": {"update_steps": [2, 4]}}):
        state = copy.deepcopy(good)
        for entry in state["parameters"].values():
            entry["schedule"] = json.dumps(written)
        with pytest.raises(
            CheckpointError, match=r"schedule must hold the update_steps of the PolynomialDecayScheduler"
        ):
            prepared()[1].load_state_dict(state)
    assert "planted" not in sys.modules


class Halfway(PruningScheduler):
    """A schedule of the user's own, in units of the run."""

    built = 0

    def __init__(self, at=None):
        Halfway.built += 1
        self.at = at

    def compute_sparsity(self, step_count, prev_sparsity, config):
        return config.target_sparsity if self.at is not None and step_count >= self.at else prev_sparsity

    @property
    def is_resolved(self):
        return self.at is not None

    def resolve(self, run):
        return Halfway(run.total_steps // 2)


def test_a_schedule_of_the_users_own_is_not_built_from_a_state():
    config = {"global_config": {"scheduler": Halfway()}}
    state = prepared(config=config, steps=6)[1].state_dict()
    assert json.loads(state["parameters"]["0.weight"]["schedule"])["init_args"] == {"at": 5}
    resumed = prepared(config=config)[1]
    built = Halfway.built
    resumed.load_state_dict(state)
    assert Halfway.built == built
    assert resumed.step_count == 6
    assert {schedule.at for schedule in resumed.schedules.values()} == {5}


def test_a_state_in_units_of_the_run_keeps_its_steps_in_a_longer_one():
    config = {"global_config": {"scheduler": ConstantSparsityScheduler(0.5)}}
    state = prepared(config=config, steps=2)[1].state_dict()
    resumed = prepared(config=config)[1]
    resumed.resolve(TrainingRun(100))
    resumed.load_state_dict(state)
    assert {schedule.begin_step for schedule in resumed.schedules.values()} == {5}


def test_a_weight_of_nan_that_is_to_be_pruned_on_is_refused_before_anything_changes():
    good = prepared(steps=5)[1].state_dict()
    model, pruner = prepared(config=OTHER)
    with torch.no_grad():
        model[2].weight_orig[0, 0] = math.nan
    before = pruner.masks()["0.weight"].clone()
    with pytest.raises(CheckpointError, match="2.weight holds NaN"):
        pruner.load_state_dict(good, allow_config_change=True)
    assert pruner.step_count == 0
    assert torch.equal(pruner.masks()["0.weight"], before)


def test_a_run_of_a_thousand_million_steps_is_caught_up_at_once():
    pruner = prepared(config=OTHER)[1]
    pruner.fast_forward(10**9)
    assert pruner.is_at_target
    assert not any(mask.all() for mask in pruner.masks().values())


@pytest.mark.parametrize("allow", [False, True])
def test_a_process_that_holds_a_part_of_each_weight_refuses_the_same_states(allow):
    good = prepared(steps=5)[1].state_dict()
    plans = list(prepared(config=OTHER if allow else RULES)[1].plan)
    boxes = [Box((1, *(0 for _ in plan.shape[1:])), (3, *plan.shape[1:])) for plan in plans]

    def parse(state):
        return parse_state(state, plans, scope="layer", boxes=boxes, allow_config_change=allow)

    step_count, states = parse(good)
    assert step_count == 5
    for state, box in zip(states, boxes, strict=True):
        assert len(state.pruned_values) == int((state.mask.expand(box.shape) == 0).sum())
    accepted = []
    for what, state in damages(good):
        try:
            parse(state)
        except CheckpointError:
            continue
        accepted.append(what)
    ignored = ("scope", "rule=", "schedule=") if allow else ()
    assert not [what for what in accepted if not any(argument in what for argument in (*HARMLESS, *ignored))]
