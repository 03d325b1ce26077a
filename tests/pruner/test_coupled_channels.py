"""Channels that can only go together are pruned as one: with their biases, their norms, and every branch of a sum."""

from __future__ import annotations

import copy

import pytest
import torch
from coupled_nets import Residual, rule
from torch import nn

from lightning_prune import ConfigError, MagnitudePruner
from lightning_prune.slim import Slim, slim


def train(model: nn.Module, pruner: MagnitudePruner, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 4
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        pruner.step()


def started(seed: int = 0, **settings: object) -> tuple[Residual, MagnitudePruner, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Residual()
    pruner = MagnitudePruner(model, {"global_config": rule(**settings)}, masking="resident", slim=True)
    pruner.prepare(inplace=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    pruner.attach_optimizers(optimizer)
    return model, pruner, optimizer


def test_the_pruned_channels_are_those_of_the_smallest_norm_over_all_their_weights() -> None:
    torch.manual_seed(3)
    model = Residual()
    members = [model.stem, model.stem_norm, model.outer]
    squares = sum(
        parameter.detach().double().square().flatten(1).sum(1)
        if parameter.dim() > 1
        else parameter.detach().double().square()
        for module in members
        for parameter in module.parameters()
    )
    expected = squares.argsort(descending=True, stable=True)[:4].sort().values
    pruner = MagnitudePruner(model, {"global_config": rule()}, masking="resident", slim=True)
    pruner.prepare(inplace=True)
    pruner.fast_forward(6)
    for module in members:
        for parameter in module.parameters():
            alive = parameter.detach().flatten(1).any(1) if parameter.dim() > 1 else parameter.detach() != 0
            kept = pruner.masks()["stem.weight"].flatten().nonzero().flatten()
            assert torch.equal(kept, expected)
            assert not bool(alive[[index for index in range(8) if index not in expected.tolist()]].any())


def test_a_trained_network_is_slim_by_as_much_as_the_plan_says() -> None:
    model, pruner, optimizer = started()
    note = pruner.plan.notes[0]
    train(model, pruner, optimizer, range(8))
    result = slim(pruner.finalize(inplace=True), model.example_input_array)
    assert (result.model.stem.out_channels, result.model.inner.out_channels) == (4, 3)  # type: ignore[union-attr]
    assert f"leave {result.slim_parameters:,} of {result.parameters:,} parameters" in note
    assert result.difference <= 1e-9


def test_masks_hold_through_every_step_of_an_optimizer_with_decay_and_momentum() -> None:
    model, pruner, optimizer = started()
    train(model, pruner, optimizer, range(7))
    for name, mask in pruner.masks().items():
        parameter = model.get_parameter(name).detach()
        assert not bool(parameter[~mask.expand_as(parameter)].any()), name
    channels = {name: mask.flatten(1).any(1) if mask.dim() > 1 else mask for name, mask in pruner.masks().items()}
    assert torch.equal(channels["stem.weight"], channels["outer.bias"])
    assert torch.equal(channels["stem.weight"], channels["stem_norm.weight"])


def test_a_run_that_is_resumed_is_the_same_bit_for_bit() -> None:
    model, pruner, optimizer = started()
    train(model, pruner, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), pruner.state_dict(), optimizer.state_dict()))
    train(model, pruner, optimizer, range(3, 8))
    other, resumed, again = started(seed=7)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    train(other, resumed, again, range(3, 8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert all(torch.equal(mask, resumed.masks()[name]) for name, mask in pruner.masks().items())


def test_what_cannot_go_stays_dense_and_the_plan_says_why() -> None:
    _, pruner, _ = started()
    (head,) = [row for row in pruner.plan.skipped if row.name == "head"]
    assert head.reason == "its channels stay: an output of the model"
    assert "head.weight" not in pruner.masks()
    assert "set 1" in str(pruner.plan)
    assert not [row for row in pruner.plan.skipped if "norm" in row.name]


@pytest.mark.parametrize("part", ["", "inner"])
def test_a_compiled_model_or_part_is_pruned_as_it_is(part: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    example = Slim(model.example_input_array)
    expected = MagnitudePruner(copy.deepcopy(model), {"global_config": rule()}, masking="resident", slim=example)
    expected.prepare(inplace=True)
    compiled = torch.compile(model.get_submodule(part), backend="eager")
    if part:
        setattr(model, part, compiled)
    pruner = MagnitudePruner(model if part else compiled, {"global_config": rule()}, masking="resident", slim=example)
    pruner.prepare(inplace=True)
    for each in (expected, pruner):
        each.fast_forward(6)
    assert list(pruner.masks()) == list(expected.masks())
    assert all(torch.equal(mask, expected.masks()[name]) for name, mask in pruner.masks().items())
    assert [row.reason for row in pruner.plan.skipped] == [row.reason for row in expected.plan.skipped]


def test_two_rules_that_ask_different_sparsities_of_one_set_are_refused() -> None:
    rules = {"global_config": rule(), "module_name_configs": {"outer": rule(0.75)}}
    with pytest.raises(ConfigError, match=r"outer\.weight and .*stem.*|stem\.weight and outer\.weight") as caught:
        MagnitudePruner(Residual(), rules, masking="resident", slim=True).prepare()
    assert "50.0%" in str(caught.value)
    assert "75.0%" in str(caught.value)


def test_a_weight_that_a_rule_leaves_dense_keeps_its_set_dense() -> None:
    rules = {"global_config": rule(), "module_name_configs": {"outer": None}}
    pruner = MagnitudePruner(Residual(), rules, masking="resident", slim=True)
    pruner.prepare()
    assert sorted(pruner.masks()) == ["inner.bias", "inner.weight", "inner_norm.bias", "inner_norm.weight"]
    (stem,) = [row for row in pruner.plan.skipped if row.name == "stem"]
    assert stem.reason == 'its channels go with those of outer, left dense by module_name_configs["outer"]'


def test_rules_of_other_structures_prune_their_weights_as_ever() -> None:
    rules = {
        "module_name_configs": {
            "inner": rule(),
            "head": {"scheduler": {"update_steps": [2]}, "target_sparsity": 0.5},
        }
    }
    pruner = MagnitudePruner(Residual(), rules, masking="resident", slim=True)
    pruner.prepare()
    pruner.fast_forward(6)
    assert int((~pruner.masks()["head.weight"]).sum()) == 16
    assert int((~pruner.masks()["inner_norm.weight"]).sum()) == 3


def test_frozen_norms_let_their_whole_set_wait() -> None:
    torch.manual_seed(0)
    model = Residual()
    model.inner_norm.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner = MagnitudePruner(model, {"global_config": rule()}, masking="resident", slim=True)
    pruner.prepare(inplace=True, optimizers=[optimizer])
    train(model, pruner, optimizer, range(5))
    assert bool(pruner.masks()["inner.weight"].all())
    assert not bool(pruner.masks()["stem.weight"].all())


def test_zero_channels_of_an_earlier_training_are_kept() -> None:
    model, pruner, optimizer = started()
    train(model, pruner, optimizer, range(8))
    kept = pruner.masks()["stem.weight"].clone()
    pruner.finalize(inplace=True)
    again = MagnitudePruner(model, {"global_config": rule(0.75)}, masking="resident", slim=True)
    again.prepare(inplace=True, keep_zeros=True)
    assert torch.equal(again.masks()["stem.weight"], kept)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"masking": "hook", "slim": True}, 'slim needs masking="resident"'),
        ({"masking": "resident", "slim": True, "scope": "global"}, 'slim needs scope="layer"'),
        ({"masking": "resident", "slim": 3}, "slim must be True, False or Slim"),
        ({"masking": "resident", "slim": {"inputs": 1}}, "slim.inputs is not a known key"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MagnitudePruner(Residual(), {"global_config": rule()}, **settings)  # type: ignore[arg-type]


def test_a_model_without_an_example_is_told_what_to_write() -> None:
    model = Residual()
    model.example_input_array = None
    with pytest.raises(ConfigError, match=r"slim=Slim\(example_inputs="):
        MagnitudePruner(model, {"global_config": rule()}, masking="resident", slim=True).prepare()
    example = Slim(torch.zeros(1, 1, 6, 6))
    MagnitudePruner(model, {"global_config": rule()}, masking="resident", slim=example).prepare()


def test_blocks_and_models_of_which_nothing_can_go_are_refused() -> None:
    with pytest.raises(ConfigError, match="block_size must be 1 with slim, got 2"):
        MagnitudePruner(Residual(), {"global_config": rule(block_size=2)}, masking="resident", slim=True).prepare()
    with pytest.raises(
        ConfigError, match="none of those that the configuration prunes can: 0.weight: its channels stay"
    ):
        MagnitudePruner(
            nn.Sequential(nn.Linear(4, 4)), {"global_config": rule()}, masking="resident", slim=Slim(torch.ones(2, 4))
        ).prepare()
