"""Masks from elsewhere: they hold as they are, and the rest is trained."""

import copy
import re

import pytest
import torch
from torch import nn

from lightning_prune import (
    CheckpointError,
    ConfigError,
    FixedMasks,
    MagnitudePruner,
    MagnitudePrunerConfig,
    allocate,
    plan_pruning,
)
from lightning_prune.analysis import sensitivity

OPTIMIZERS = {
    "SGD with momentum and weight decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "RMSprop with momentum": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))


def make_masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (6, 2, 3), "3.weight": (4, 36), "3.bias": (4,)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def batches(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 2, 8, generator=generator) for _ in range(count)]


def train_by_hand(model, masks, make_optimizer):
    """The reference: gradients and weights are zeroed around each step of an optimizer."""
    weights = {name: parameter for name, parameter in model.named_parameters() if name in masks}
    optimizer = make_optimizer(model.parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    for images in batches():
        optimizer.zero_grad()
        model(images).square().mean().backward()
        for name, weight in weights.items():
            weight.grad.mul_(masks[name])
        optimizer.step()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
    return model


def train(model, config, make_optimizer, masking="resident"):
    pruner = MagnitudePruner(model, config, masking=masking)
    pruner.prepare(inplace=True)
    optimizer = make_optimizer(model.parameters())
    pruner.attach_optimizers(optimizer)
    for images in batches():
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        pruner.step()
    pruner.finalize(inplace=True)
    return pruner


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_under_given_masks_equals_plain_pytorch_bit_for_bit(make_optimizer, masking):
    masks = make_masks()
    expected = train_by_hand(make_net(), masks, make_optimizer)
    model = make_net()
    train(model, FixedMasks(masks), make_optimizer, masking)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert bool((model.get_parameter(name)[mask] != 0).all())


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_every_forward_sees_zeros_where_a_mask_prunes(masking):
    masks, model, seen = make_masks(), make_net(), []
    model[3].register_forward_hook(lambda module, *_: seen.append(module.weight.detach().clone()))
    train(model, FixedMasks(masks), OPTIMIZERS["AdamW"], masking)
    assert len(seen) == 6
    assert all(not weight[~masks["3.weight"]].any() for weight in seen)


def test_the_plan_and_the_report_show_the_masks_with_their_sparsity():
    masks = make_masks()
    del masks["3.bias"]
    plan = plan_pruning(make_net(), FixedMasks(masks))
    rows = {row["module"]: row for row in plan.records()}
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert rows["0"]["structure"] == "given mask"
    assert rows["0"]["rule"] == 'FixedMasks["0.weight"]'
    assert (rows["0"]["zeros"], rows["3"]["zeros"]) == tuple(zeros.values())
    assert rows["3"]["target_sparsity"] == zeros["3.weight"] / 144
    pruner = train(make_net(), FixedMasks(masks), OPTIMIZERS["AdamW"])
    assert {layer.name: layer.zeros for layer in pruner.report().layers} == {
        "0": zeros["0.weight"],
        "3": zeros["3.weight"],
    }
    assert "given mask" in str(plan)


def test_a_mask_broadcasts_over_its_parameter():
    rows = torch.tensor([True, False, True, True, False, True])
    pruner = MagnitudePruner(make_net(), FixedMasks({"0.weight": rows[:, None, None]}))
    model = pruner.prepare()
    assert (model[0].weight.flatten(1) != 0).all(1).tolist() == rows.tolist()
    assert not model[0].weight[~rows].any()
    assert pruner.report().sparsity == pytest.approx(1 / 3)


def test_zeros_of_the_model_are_kept_and_all_else_is_trained():
    masks, model = make_masks(), make_net()
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            model.get_parameter(name).mul_(masks[name])
        model[3].bias.zero_()  # as many networks are initialised
    expected = train_by_hand(
        copy.deepcopy(model), {name: masks[name] for name in ("0.weight", "3.weight")}, OPTIMIZERS["AdamW"]
    )
    pruner = train(model, FixedMasks.from_zeros(), OPTIMIZERS["AdamW"])
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True))
    assert [planned.structure for planned in pruner.plan] == ["zeros found", "zeros found"]


def test_a_weight_that_is_zero_altogether_counts_as_initialised_so():
    model = make_net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[3].weight[0].zero_()
    plan = plan_pruning(model, FixedMasks.from_zeros())
    assert [planned.name for planned in plan] == ["3.weight"]
    assert [(row.name, row.reason) for row in plan.skipped] == [("0", "no weight of it has zeros")]


def test_weights_that_are_loaded_after_prepare_are_looked_at_anew():
    masks, model = make_masks(), make_net()
    with torch.no_grad():
        model[0].weight.mul_(masks["0.weight"])
    other = make_net()
    with torch.no_grad():
        other[3].weight.mul_(masks["3.weight"])
    pruner = MagnitudePruner(model, FixedMasks.from_zeros(), masking="resident")
    pruner.prepare(inplace=True)
    with torch.no_grad():
        for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(new)
    assert pruner.prepare_anew_if_written()
    assert list(pruner.masks()) == ["3.weight"]
    assert torch.equal(pruner.masks()["3.weight"], masks["3.weight"])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_masks_are_read_from_files(suffix, tmp_path):
    masks, path = make_masks(), tmp_path / f"masks.{suffix}"
    if suffix == "pt":
        torch.save(masks, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(masks, path)
    assert FixedMasks(path) == FixedMasks(str(path)) == FixedMasks(masks)
    assert FixedMasks(path) != FixedMasks({"0.weight": masks["0.weight"]})


def test_a_file_of_masks_runs_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save({"0.weight": Harmful()}, tmp_path / "masks.pt")
    with pytest.raises(ConfigError, match=r"masks\.pt cannot be read as masks"):
        FixedMasks(tmp_path / "masks.pt")
    pytest.importorskip("safetensors")
    with pytest.raises(ConfigError, match="it does not exist"):
        FixedMasks(tmp_path / "none.safetensors")


def test_what_is_done_with_the_masks_afterwards_changes_nothing():
    masks = make_masks()
    fixed = FixedMasks(masks)
    before = masks["0.weight"].clone()
    masks["0.weight"].fill_(True)
    pruner = MagnitudePruner(make_net(), fixed)
    pruner.prepare()
    assert torch.equal(pruner.masks()["0.weight"], before)
    assert copy.deepcopy(fixed) == fixed


def test_a_tied_parameter_takes_one_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    mask = torch.rand(5, 3) < 0.5
    for names in (["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]):
        plan = plan_pruning(Tied(), FixedMasks(dict.fromkeys(names, mask)))
        assert len(plan) == 1
        assert len(plan.parameters[0].owners) == 2
    with pytest.raises(ConfigError, match=r"embed\.weight and out\.weight are one tied parameter, but their masks"):
        plan_pruning(Tied(), FixedMasks({"embed.weight": mask, "out.weight": ~mask}))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "must have at least one mask"),
        ([torch.ones(2)], "takes bool tensors by the names of parameters"),
        (
            {"0.weight": torch.ones(6, 2, 3)},
            r'FixedMasks["0.weight"] must be a plain bool tensor, True where a weight is',
        ),
        ({"0.weight": [True]}, "must be a plain bool tensor"),
        ({1: torch.ones(2) > 0}, "got the key 1"),
    ],
)
def test_what_is_no_mask_is_refused_at_once(masks, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        FixedMasks(masks)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("0.wieght", torch.ones(6, 2, 3), "is for no parameter of the model. Did you mean '0.weight'"),
        ("0.weight", torch.ones(6, 3), "must have the shape of its parameter, (6, 2, 3), or one that broadcasts to it"),
        ("0.weight", torch.zeros(6, 2, 3), "keeps nothing of its parameter"),
        ("4.count", torch.ones(3), "the parameter is of torch.int32"),
    ],
)
def test_masks_that_do_not_fit_the_model_are_refused_before_training(name, mask, message):
    model = make_net().append(nn.Module())
    model[4].count = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_pruning(model, FixedMasks({name: mask.bool()}))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_a_norm_computes_takes_no_mask():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    mask = torch.eye(4).bool()
    with pytest.raises(ConfigError, match=r"weight\.original1\"\] is part of a parametrization"):
        plan_pruning(model, FixedMasks({"0.parametrizations.weight.original1": mask}))
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match=r"0\.weight_v has a mask, but the network uses a weight that a norm makes"):
        plan_pruning(old, FixedMasks({"0.weight_v": mask}))


def test_a_model_without_zeros_is_refused():
    with pytest.raises(ConfigError, match=r"from_zeros\(\) found no weight of rank 2 or more with zeros"):
        plan_pruning(make_net(), FixedMasks.from_zeros())


def test_what_ranks_does_not_go_with_given_masks():
    fixed = FixedMasks(make_masks())
    with pytest.raises(ConfigError, match='scope="global" ranks the single weights'):
        MagnitudePruner(make_net(), fixed, scope="global").prepare()
    with pytest.raises(ConfigError, match="slim must be left out with FixedMasks"):
        MagnitudePruner(make_net(), fixed, masking="resident", slim=True).plan  # noqa: B018
    with pytest.raises(ConfigError, match="global_config must be left out of FixedMasks"):
        fixed.set_global({"target_sparsity": 0.5})
    with pytest.raises(ConfigError, match="FixedMasks cannot be written as plain values or YAML"):
        fixed.as_yaml()
    with pytest.raises(ConfigError, match="are not read from a dict of rules"):
        FixedMasks.from_yaml("{}")
    with pytest.raises(
        ConfigError, match=r'allocate chooses zeros, but those of 0\.weight are fixed by FixedMasks\["0'
    ):
        allocate(make_net(), 0.5, config=fixed)
    with pytest.raises(ConfigError, match="sensitivity chooses zeros"):
        sensitivity(make_net(), lambda model: 0.0, [0.5], config=fixed)
    with pytest.raises(ConfigError, match="Rewind|rewind"):
        MagnitudePruner(make_net(), fixed, masking="resident", rewind=0).prepare()
    assert fixed != MagnitudePrunerConfig()


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_a_state_goes_on_with_the_same_masks_and_is_refused_with_others(masking):
    masks = make_masks()
    pruner = MagnitudePruner(make_net(), FixedMasks(masks), masking=masking)
    pruner.prepare()
    state = pruner.state_dict()
    MagnitudePruner.load_state_dict(pruner, state)
    others = {name: mask.flip(0) for name, mask in masks.items()}
    other = MagnitudePruner(make_net(), FixedMasks(others), masking=masking)
    other.prepare()
    with pytest.raises(CheckpointError, match=r"0\.weight: fixed_masks was \w{8} in the checkpoint and is \w{8} now"):
        other.load_state_dict(state)
    other.load_state_dict(state, allow_config_change=True)
    assert all(torch.equal(other.masks()[name], mask) for name, mask in others.items())


def test_a_state_of_other_rules_is_refused():
    ranked = MagnitudePruner(make_net(), {"global_config": {"scheduler": {"begin_step": 0}}})
    ranked.prepare()
    given = MagnitudePruner(make_net(), FixedMasks({n: m for n, m in make_masks().items() if n != "3.bias"}))
    given.prepare()
    with pytest.raises(CheckpointError, match="fixed_masks was None in the checkpoint"):
        given.load_state_dict(ranked.state_dict())
    with pytest.raises(CheckpointError, match=r"scheduler was None in the checkpoint and is \{'begin_step': 0\} now"):
        ranked.load_state_dict(given.state_dict())


def test_undo_before_training_gives_the_weights_back():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    pruner = MagnitudePruner(model, FixedMasks(make_masks()), masking="resident")
    pruner.prepare(inplace=True)
    pruner.undo()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
