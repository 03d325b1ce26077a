"""Rewinding: bit for bit the rounds of iterative magnitude pruning in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_prune import (
    CheckpointError,
    ConfigError,
    ConstantSparsityScheduler,
    GeometricDecayScheduler,
    LifecycleError,
    MagnitudePruner,
    PruningScheduler,
    Rewind,
    TrainingRun,
)

STEPS, UPDATES, TARGET = 14, (4, 7, 10), 1 - 0.6**3
RULES = {"global_config": {"scheduler": GeometricDecayScheduler(UPDATES), "target_sparsity": TARGET}}
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.02),
    "fused adamw": lambda weights: torch.optim.AdamW(weights, lr=0.02, fused=True),
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 4))


def batches(number: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(9, 12, generator=generator), torch.randn(9, 4, generator=generator)) for _ in range(number)]


def reference(optimizer: str, to_step: int, rounds: tuple[int, ...], updates: tuple[int, ...] = UPDATES) -> dict:
    """Prune the same share of what is left at each update; at rounds everything goes back, and training begins anew."""
    model = network()
    weights = [model[0].weight, model[3].weight]
    masks = [torch.ones_like(weight) for weight in weights]
    made = OPTIMIZERS[optimizer](model.parameters())
    early = copy.deepcopy(model.state_dict()) if to_step == 0 else None
    for step, (inputs, targets) in enumerate(batches(), start=1):
        made.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad *= mask
        made.step()
        early = copy.deepcopy(model.state_dict()) if step == to_step else early
        if step not in updates:
            continue
        for weight, mask in zip(weights, masks, strict=True):
            kept = weight.numel() - int(weight.numel() * (1 - 0.6 ** (updates.index(step) + 1)))
            mask.zero_().view(-1)[weight.detach().abs().flatten().topk(kept).indices] = 1
        if step in rounds:
            model.load_state_dict(early)
            made = OPTIMIZERS[optimizer](model.parameters())
        for weight, mask in zip(weights, masks, strict=True):
            weight.data *= mask
    return model.state_dict()


def start(rewind, *, optimizer="sgd", masking="resident", rules=RULES, model=None):
    model = network() if model is None else model
    pruner = MagnitudePruner(model, rules, masking=masking, rewind=rewind)
    pruner.prepare(inplace=True)
    pruner.guard_state_dicts()
    made = OPTIMIZERS[optimizer](model.parameters())
    pruner.attach_optimizers(made)
    return model, pruner, made


def train(model, pruner, optimizer, data) -> None:
    for inputs, targets in data:
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        pruner.step()


def assert_same(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("to_step", [0, 1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rounds_are_those_of_the_reference_bit_for_bit(optimizer, to_step, masking):
    model, pruner, made = start(to_step, optimizer=optimizer, masking=masking)
    train(model, pruner, made, batches())
    pruner.finalize(inplace=True)
    assert_same(model.state_dict(), reference(optimizer, to_step, UPDATES))


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_updates_that_lie_before_the_early_step_are_no_rounds(masking):
    model, pruner, made = start(Rewind(7), masking=masking)
    train(model, pruner, made, batches())
    pruner.finalize(inplace=True)
    ours = model.state_dict()
    # weights that return between updates 4 and 7 do so with a dense value, which the reference does not have
    assert int((ours["0.weight"] == 0).sum()) == int(120 * TARGET)
    assert torch.equal(network().state_dict()["1.num_batches_tracked"] + 11, ours["1.num_batches_tracked"])


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_at_the_target_everything_goes_back_once(masking):
    rules = {"global_config": {"scheduler": {"begin_step": 6}, "target_sparsity": 0.4}}
    model, pruner, made = start({"to_step": 2, "at": "target"}, masking=masking, rules=rules)
    train(model, pruner, made, batches())
    pruner.finalize(inplace=True)
    assert_same(model.state_dict(), reference("sgd", 2, (6,), (6,)))


def test_at_the_target_earlier_updates_take_nothing_back():
    model, pruner, made = start(Rewind(2, at="target"))
    seen = []
    for number, batch in enumerate(batches(), start=1):
        train(model, pruner, made, [batch])
        seen.append((number, int(model[1].num_batches_tracked)))
    assert [steps for _, steps in seen] == [*range(1, 10), 2, 3, 4, 5, 6]


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_what_is_pruned_at_a_round_never_returns(masking):
    model, pruner, made = start(1, masking=masking)
    gone = {name: torch.zeros_like(mask) for name, mask in pruner.masks().items()}
    for batch in batches():
        train(model, pruner, made, [batch])
        for name, mask in pruner.masks().items():
            assert not (gone[name] & mask).any()
            gone[name] |= ~mask


def test_an_optimizer_forgets_what_it_knows_of_the_weights_that_go_back():
    model, pruner, made = start(1, optimizer="adamw")
    train(model, pruner, made, batches()[: UPDATES[0]])
    assert not made.state
    train(model, pruner, made, batches()[UPDATES[0] : UPDATES[0] + 2])
    assert {int(state["step"]) for state in made.state.values()} == {2}
    assert len(made.state) == len(list(model.parameters()))


def test_frozen_parameters_stay_as_they_are_and_are_not_kept():
    model = network()
    model[3].bias.requires_grad_(False)
    model, pruner, made = start(0, model=model)
    train(model, pruner, made, batches()[:2])
    assert set(pruner.state_dict()["rewind"]["values"]) == {
        *("0.weight", "0.bias", "1.weight", "1.bias", "3.weight"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }
    model[3].bias.data.fill_(5.0)
    train(model, pruner, made, batches()[2:4])
    assert model[3].bias.tolist() == [5.0] * 4


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("moment", [1, 3, 4, 5, 7, 11])
def test_a_run_resumes_bit_exactly_at_any_moment(moment, masking):
    theirs = reference("sgd", 3, UPDATES)
    model, pruner, made = start(3, masking=masking)
    train(model, pruner, made, batches()[:moment])
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), pruner.state_dict()))
    assert (saved[2]["rewind"]["values"] is None) == (moment < 3)
    model, pruner, made = start(3, masking="resident")
    for part, state in zip((model, made, pruner), saved, strict=True):
        part.load_state_dict(state)
    train(model, pruner, made, batches()[moment:])
    pruner.finalize(inplace=True)
    assert_same(model.state_dict(), theirs)


@pytest.mark.parametrize("masking", ["resident", "hook", "weight norm"])
def test_the_values_are_dense_and_to_take_them_disturbs_no_training(masking):
    rules = {
        "global_config": {"scheduler": {"update_steps": [1, 3, 5, 12]}, "initial_sparsity": 0.3, "target_sparsity": 0.6}
    }

    def run(rewind):
        model = network()
        if masking == "weight norm":
            model[0] = weight_norm(model[0])
        way = "resident" if masking == "weight norm" else masking
        model, pruner, made = start(rewind, masking=way, rules=rules, model=model)
        train(model, pruner, made, batches()[:4])
        taken = pruner.state_dict().get("rewind")
        train(model, pruner, made, batches()[4:11])
        return model.state_dict(), taken

    with_rewind, taken = run(Rewind(4, at="target"))
    without, _ = run(None)
    assert_same(with_rewind, without)
    assert taken["values"]["3.weight"].count_nonzero() == 40, "no zero of a mask is among them"


def test_straight_through_weights_are_trained_from_zero_after_a_round():
    rule = {"scheduler": {"update_steps": [2, 5, 9]}, "pruned_gradient": "straight_through", "decay": 0.01}
    model, pruner, made = start(1, rules={"global_config": rule})
    train(model, pruner, made, batches()[:5])
    assert pruner.state_dict()["parameters"]["3.weight"]["pruned_values"] is None
    train(model, pruner, made, batches()[5:7])
    assert pruner.state_dict()["parameters"]["3.weight"]["pruned_values"].all()


def test_a_weight_norm_goes_back_with_its_zeros():
    model = nn.Sequential(weight_norm(nn.Linear(12, 10)), nn.Tanh(), nn.Linear(10, 4))
    first = [one.detach().clone() for one in model[0].parameters()]
    model, pruner, made = start(0, model=model)
    train(model, pruner, made, batches()[: UPDATES[-1]])
    pruner.finalize(inplace=True)
    for now, before in zip(model[0].parameters(), first, strict=True):
        assert torch.equal(now, torch.where(now == 0, 0.0, before))
    assert int((model[0].weight == 0).sum()) == int(120 * TARGET)


def test_coupled_channels_go_back_as_channels():
    rules = {"global_config": {"scheduler": {"update_steps": [3, 6]}, "granularity": "per_channel"}}
    model = network()
    first = copy.deepcopy(model.state_dict())
    model.example_input_array = torch.zeros(2, 12)
    pruner = MagnitudePruner(model, rules, masking="resident", slim=True, rewind=0)
    pruner.prepare(inplace=True)
    made = OPTIMIZERS["sgd"](model.parameters())
    pruner.attach_optimizers(made)
    train(model, pruner, made, batches()[:6])
    kept = model[0].weight.detach().any(1)
    assert int(kept.sum()) == 5
    assert torch.equal(model[0].weight[kept], first["0.weight"][kept])
    assert not model[1].weight[~kept].any()
    assert torch.equal(model[1].weight[kept], first["1.weight"][kept])
    assert torch.equal(model[3].bias, first["3.bias"])


# What cannot work


class Endless(PruningScheduler):
    def compute_sparsity(self, step_count, prev_sparsity, config):
        return config.target_sparsity


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "rewind.to_step must be .* at least 0, got -1"),
        (True, r"rewind must be Rewind\(to_step=...\), a dict of its values or a step, got True"),
        (0.5, r"rewind must be Rewind\(to_step=...\), a dict of its values or a step, got 0.5"),
        ("target", r"rewind must be Rewind\(to_step=...\)"),
        ({"at": "round"}, "rewind must have to_step, and may have at, got {'at': 'round'}"),
        ({"to_step": 1, "when": 2}, "rewind must have to_step, and may have at"),
        ({"to_step": 1, "at": "end"}, 'rewind.at must be "round" or "target", got \'end\''),
    ],
)
def test_settings_that_cannot_work_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        MagnitudePruner(network(), RULES, rewind=value)


def test_settings_may_be_written_in_several_ways():
    assert Rewind.of(3) == Rewind.of({"to_step": 3}) == Rewind.of(Rewind(3, at="round"))
    assert Rewind.of(None) is None
    assert Rewind(torch.tensor(3).numpy()[()]).to_step == 3


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (GeometricDecayScheduler([2, 5]), r"to_step must lie before the last update of the masks, .* step 5, got 5"),
        (
            ConstantSparsityScheduler(1, frequency=1),
            r"needs a schedule that knows its last update, but global_config.s",
        ),
        (Endless(), r"global_config.scheduler, a Endless, has none"),
    ],
)
def test_schedules_that_never_come_to_a_rewinding_are_refused_before_training(schedule, message):
    pruner = MagnitudePruner(network(), {"global_config": {"scheduler": schedule}}, rewind=5)
    with pytest.raises(ConfigError, match=message):
        pruner.prepare()


def test_a_schedule_in_units_of_a_run_is_checked_once_that_is_known():
    schedule = GeometricDecayScheduler(begin=0.1, end=0.5, frequency=0.1)
    pruner = MagnitudePruner(network(), {"global_config": {"scheduler": schedule}}, rewind=60)
    pruner.prepare()
    with pytest.raises(ConfigError, match="step 50, got 60"):
        pruner.resolve(TrainingRun(100))


@pytest.mark.filterwarnings("ignore:step.. with masking")
@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_a_step_without_optimizers_is_refused(masking):
    pruner = MagnitudePruner(network(), RULES, masking=masking, rewind=3)
    pruner.prepare()
    with pytest.raises(LifecycleError, match=r"must know the optimizers.* Call pruner.attach_optimizers"):
        pruner.step()
    assert pruner.step_count == 0


def test_a_run_that_begins_after_the_early_step_is_refused():
    _, pruner, _ = start(3)
    with pytest.raises(
        ConfigError, match=r"begins after optimizer step 4, got 3: the values of that step are not known"
    ):
        pruner.fast_forward(4)
    pruner.fast_forward(3)
    assert pruner.state_dict()["rewind"]["values"] is not None


def saved_at(moment: int, rewind=3) -> dict:
    model, pruner, made = start(rewind)
    train(model, pruner, made, batches()[:moment])
    return pruner.state_dict()


def test_states_of_other_settings_are_refused_unless_allowed():
    state, without = saved_at(5), saved_at(5, rewind=None)
    _, pruner, _ = start(None)
    with pytest.raises(CheckpointError, match="was saved with rewind, but this run has none"):
        pruner.load_state_dict(state)
    pruner.load_state_dict(state, allow_config_change=True)
    _, pruner, _ = start(2)
    with pytest.raises(CheckpointError, match=r"saved with Rewind\(to_step=3, at='round'\), but this is a run with R"):
        pruner.load_state_dict(state)
    with pytest.raises(CheckpointError, match="of optimizer step 5, and has no values of step 2 to go back to"):
        pruner.load_state_dict(state, allow_config_change=True)
    with pytest.raises(CheckpointError, match="saved without rewind"):
        pruner.load_state_dict(without)
    assert pruner.step_count == 0
    _, pruner, _ = start(6)
    pruner.load_state_dict(state, allow_config_change=True)
    assert pruner.step_count == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"to_step": "3"}, "to_step must be a whole number"),
        ({"at": 3}, "at must be a text"),
        ({"values": 3}, "it must be a dict"),
        ({"values": {"other": torch.zeros(3)}}, "has an early value of other, which the model does not have"),
        (
            {"values": {"0.bias": torch.zeros(3)}},
            r"0.bias must be a plain tensor of torch.float32 of shape \(10,\), got",
        ),
        ({"values": {"0.bias": torch.zeros(10).double()}}, "0.bias must be a plain tensor of torch.float32"),
        ({"values": {"0.bias": torch.zeros(10)}}, "its digest does not fit its content"),
        ({"digest": None}, "digest must be a whole number"),
    ],
)
def test_a_damaged_state_is_refused_as_a_whole(damage, message):
    state = saved_at(5)
    state = {**state, "rewind": {**state["rewind"], **damage}}
    model, pruner, _ = start(3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        pruner.load_state_dict(state)
    assert pruner.step_count == 0
    assert_same(model.state_dict(), before)
