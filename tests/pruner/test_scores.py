"""Scores of a user's own, ranked in place of magnitudes."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from lightning_prune import (
    CheckpointError,
    ConfigError,
    MagnitudePruner,
    MagnitudePrunerConfig,
    ModuleMagnitudePrunerConfig,
    allocate,
)
from lightning_prune.analysis import sensitivity
from lightning_prune.masks import compute_mask

STEPS = {"scheduler": {"update_steps": [2, 4, 6], "power": 1}, "target_sparsity": 0.6}


class Taylor:
    """|w * g|, by the gradients that were added up since the last update (Molchanov et al., CVPR 2019)."""

    def __init__(self):
        self.sums = {}

    def add(self, model):
        for parameter in model.parameters():
            self.sums[parameter] = self.sums.get(parameter, 0.0) + parameter.grad

    def __call__(self, weight, parameter):
        return (weight * self.sums.pop(parameter)).abs()


class Wanda:
    """|w| times the L2 norm of the input that it is multiplied with (Sun et al., ICLR 2024)."""

    def __init__(self, model):
        self.squares = {}
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self.collector(module.weight))

    def collector(self, parameter):
        def collect(module, inputs, output):
            added = inputs[0].detach().flatten(0, -2).square().sum(0)
            self.squares[parameter] = self.squares.get(parameter, 0.0) + added

        return collect

    def __call__(self, weight, parameter):
        return weight.abs() * self.squares[parameter].sqrt()


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def batches(count=8):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 8, generator=generator) for _ in range(count)]


def keep_by_hand(score, sparsity):
    """Exactly ``floor(n * sparsity)`` are pruned; of equal scores the first are kept."""
    order = score.flatten().sort(descending=True, stable=True).indices
    keep = torch.ones(score.numel(), dtype=torch.bool)
    keep[order[score.numel() - int(score.numel() * sparsity) :]] = False
    return keep.view_as(score)


def train(model, score, masking, **settings):
    rule = {**STEPS, "score": score, **settings}
    pruner = MagnitudePruner(model, {"global_config": rule}, masking=masking)
    model = pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner.attach_optimizers(optimizer)
    for images in batches():
        optimizer.zero_grad()
        model(images).square().mean().backward()
        if isinstance(score, Taylor):
            score.add(model)
        optimizer.step()
        pruner.step()
    pruner.finalize(inplace=True)
    return pruner


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_taylor_scores_prune_as_plain_pytorch_does_bit_for_bit(masking):
    model = make_net()
    train(model, Taylor(), masking)

    other = make_net()
    weights = [other[0].weight, other[2].weight]
    dense, masks, sums = [w.detach().clone() for w in weights], [torch.ones_like(w) for w in weights], [0.0, 0.0]
    optimizer = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    for step, images in enumerate(batches(), 1):
        optimizer.zero_grad()
        other(images).square().mean().backward()
        for place, weight in enumerate(weights):
            weight.grad.mul_(masks[place])
            sums[place] = sums[place] + weight.grad
            weight.data.copy_(dense[place])
        optimizer.step()
        for place, weight in enumerate(weights):
            if step in (2, 4, 6):
                sparsity = {2: 0.0, 4: 0.3, 6: 0.6}[step]
                masks[place] = (
                    keep_by_hand((weight * sums[place]).abs(), sparsity).float() if sparsity else masks[place]
                )
                sums[place] = 0.0 if sparsity else sums[place]
            dense[place] = weight.detach().clone() if step < 6 else weight.detach() * masks[place]
            weight.data.mul_(masks[place])
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert int((model[0].weight == 0).sum()) == int(96 * 0.6)


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("ratio", [(2, 4), (5, 12)], ids=["2:4", "five twelfths of each row"])
def test_wanda_prunes_a_trained_network_as_plain_pytorch_does_bit_for_bit(masking, ratio):
    num_zeros, group_size = ratio
    model = make_net()
    other = copy.deepcopy(model)
    wanda = Wanda(model)
    rules = {"2": {"scheduler": {"begin_step": 1}, "n_m_ratio": ratio, "score": wanda}}
    pruner = MagnitudePruner(model, {"module_name_configs": rules}, masking=masking)
    model = pruner.prepare(inplace=True)
    with torch.no_grad():
        for images in batches():
            model(images)
    with pytest.warns(UserWarning, match="knows no optimizer") if masking == "resident" else torch.no_grad():
        pruner.step()
    model = pruner.finalize(inplace=True)

    with torch.no_grad():
        weight, squares = other[2].weight, 0.0
        for images in batches():
            squares = squares + other[:2](images).square().sum(0)
        groups = (weight.abs() * squares.sqrt()).view(4, -1, group_size)
        smallest = groups.argsort(dim=2)[:, :, :num_zeros]
        weight.view(4, -1, group_size).scatter_(2, smallest, 0.0)
    assert torch.equal(model[2].weight, other[2].weight)
    assert float((model[2].weight == 0).double().mean()) == num_zeros / group_size


def hashed(weight, parameter):
    """Scores that have nothing to do with magnitudes, and many of which are equal."""
    return (torch.arange(weight.numel()) * 7919 % 23).double().view_as(weight)


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"block_size": 2},
        {"granularity": "per_channel"},
        {"granularity": "per_channel", "block_size": 3},
        {"granularity": "per_kernel"},
        {"granularity": "per_kernel", "block_size": 2},
        {"n_m_ratio": (3, 4)},
        {"n_m_ratio": (1, 2), "dim": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_any_structure_ranks_scores_as_it_ranks_magnitudes(structure, masking):
    conv = nn.Conv2d(8, 12, 3)
    settings = {"scheduler": {"begin_step": 1}, "score": hashed, **structure}
    settings |= {} if "n_m_ratio" in structure else {"target_sparsity": 0.55}
    pruner = MagnitudePruner(conv, {"global_config": settings}, masking=masking)
    conv = pruner.prepare(inplace=True)
    assert bool((conv.weight != 0).all())
    pruner.attach_optimizers(torch.optim.SGD(conv.parameters(), 0.1))
    conv(torch.ones(1, 8, 3, 3)).sum().backward()
    pruner.step()
    ratio = structure.get("n_m_ratio")
    sparsity = ratio[0] / ratio[1] if ratio else 0.55
    expected = compute_mask(hashed(conv.weight.detach(), None), sparsity, **structure).expand(conv.weight.shape)
    assert torch.equal(conv.weight != 0, expected)
    assert pruner.report().total.zeros == int((~expected).sum())


def test_a_channel_is_ranked_by_the_norm_of_its_scores():
    layer = nn.Linear(2, 3)
    scores = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, 2.9]])  # norms 3, 2.83 and 2.9; sums 3, 4 and 2.9
    rule = {"scheduler": {"begin_step": 1}, "target_sparsity": 0.34, "granularity": "per_channel"}
    pruner = MagnitudePruner(layer, {"global_config": {**rule, "score": lambda weight, parameter: scores}})
    layer = pruner.prepare()
    layer(torch.ones(2)).sum().backward()
    pruner.step()
    assert layer.weight.detach().abs().sum(1).ne(0).tolist() == [True, False, True]


def test_equal_scores_prune_exactly_the_asked_number_and_keep_the_first():
    layer = nn.Linear(5, 3)
    rule = {"scheduler": {"begin_step": 1}, "target_sparsity": 0.5, "score": lambda weight, _: torch.ones_like(weight)}
    pruner = MagnitudePruner(layer, {"global_config": rule})
    layer = pruner.prepare()
    layer(torch.ones(5)).sum().backward()
    pruner.step()
    assert (layer.weight.flatten() != 0).tolist() == [True] * 8 + [False] * 7


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_a_global_scope_ranks_the_scores_of_all_layers_and_asks_for_each_once(masking):
    model, asked = make_net(), []

    def position(weight, parameter):
        asked.append(parameter)
        return torch.arange(weight.numel(), dtype=torch.float32).view_as(weight) + 1000 * (weight.shape[0] == 4)

    rule = {"scheduler": {"begin_step": 1}, "target_sparsity": 0.5, "score": position}
    pruner = MagnitudePruner(model, {"global_config": rule}, masking=masking, scope="global")
    model = pruner.prepare(inplace=True)
    pruner.attach_optimizers(torch.optim.SGD(model.parameters(), 0.1))
    model(batches()[0]).sum().backward()
    pruner.step()
    assert [id(parameter) for parameter in asked] == [id(parameter) for parameter in pruner.parameters().values()]
    assert int((model[0].weight == 0).sum()) == 72
    assert not model[0].weight.flatten()[:72].any()
    assert bool((model[2].weight != 0).all())


def test_scores_and_magnitudes_are_not_ranked_together():
    rule = {"scheduler": {"begin_step": 1}}
    config = {"global_config": rule, "module_name_configs": {"2": {**rule, "score": hashed}}}
    with pytest.raises(ConfigError, match=r'global_config and module_name_configs\["2"\] must have the same score'):
        MagnitudePruner(make_net(), config, scope="global").prepare()


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_score_gets_a_copy_of_the_dense_weight_and_the_parameter(masking, dtype):
    layer, seen = nn.Linear(6, 4).to(dtype), []

    def score(weight, parameter):
        seen.append((weight.clone(), parameter, weight.requires_grad, torch.is_grad_enabled()))
        return weight.abs_()  # which must not reach the parameter

    rule = {**STEPS, "score": score}
    pruner = MagnitudePruner(layer, {"global_config": rule}, masking=masking)
    own = layer.weight
    before = own.detach().clone()
    layer = pruner.prepare(inplace=True)
    assert not seen
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    pruner.attach_optimizers(optimizer)
    for _ in range(6):
        layer(torch.ones(1, 6, dtype=dtype)).sum().backward()
        optimizer.step()
        pruner.step()
    assert len(seen) == 2  # the first update asks for no sparsity
    for weight, parameter, *flags in seen:
        assert torch.equal(weight, before.to(torch.float64 if dtype is torch.float64 else torch.float32))
        assert parameter is own
        assert parameter.grad is not None
        assert flags == [False, False]
    kept = layer.weight != 0
    assert torch.equal(layer.weight[kept], before[kept])


def test_zeros_of_an_earlier_pruning_are_kept_before_anything_is_scored():
    model = make_net()
    with torch.no_grad():
        model[0].weight[:, 3] = 0.0
    pruner = MagnitudePruner(model, {"global_config": {**STEPS, "score": hashed}})
    model = pruner.prepare(keep_zeros=True)
    assert torch.equal(model[0].weight == 0, torch.arange(8).eq(3).expand(12, 8))


def test_the_plan_says_what_ranks():
    pruner = MagnitudePruner(make_net(), {"global_config": {**STEPS, "score": Taylor()}})
    assert [row["structure"] for row in pruner.plan.records()] == ["per_scalar, by Taylor"] * 2


def test_the_plan_says_what_trains_pruned_weights():
    ours = {"n_m_ratio": (2, 4), "target_sparsity": 0.5, "pruned_gradient": "straight_through", "decay": 1e-4}
    rule = {**STEPS, "score": Taylor(), **ours}
    pruner = MagnitudePruner(make_net(), {"global_config": rule}, masking="resident")
    assert {row["structure"] for row in pruner.plan.records()} == {"2:4 zeros, dim 1, by Taylor, straight-through"}


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda weight, parameter: 1.0, "must give a tensor, got 1.0"),
        (
            lambda weight, parameter: weight[0],
            "must give real numbers of the shape of the weight, (12, 8), got torch.flo",
        ),
        (lambda weight, parameter: weight / 0, "must be finite, got NaN or infinity"),
        (lambda weight, parameter: weight, "must be at least 0, got -0."),
    ],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_that_cannot_be_ranked_are_errors_that_name_the_rule(score, message, scope):
    model = make_net()
    pruner = MagnitudePruner(
        model, {"global_config": {"scheduler": {"begin_step": 1}, "score": score}}, masking="resident", scope=scope
    )
    model = pruner.prepare(inplace=True)
    pruner.attach_optimizers(torch.optim.SGD(model.parameters(), 0.1))
    pattern = r"^0\.weight cannot be pruned: global_config\.score \(.*<lambda>\) " + re.escape(message)
    with pytest.raises(ConfigError, match=pattern):
        pruner.step()
    assert pruner.step_count == 0
    assert bool((model[0].weight != 0).all())


def test_what_is_no_function_is_refused():
    with pytest.raises(
        ConfigError, match="score must be a function score\\(weight, parameter\\), got the text 'os.system'"
    ):
        ModuleMagnitudePrunerConfig(score="os.system")
    with pytest.raises(ConfigError, match=r"global_config\.score must be a function .* No file names a function"):
        MagnitudePrunerConfig.from_yaml("global_config: {score: my.module.taylor}")
    for value in (3, Taylor):
        with pytest.raises(ConfigError, match="score must be a function"):
            ModuleMagnitudePrunerConfig(score=value)
    for function in (lambda weight: weight.abs(), lambda weight, parameter, step: weight.abs()):
        with pytest.raises(ConfigError, match=r"score must take two arguments, score\(weight, parameter\), got "):
            ModuleMagnitudePrunerConfig(score=function)
    ModuleMagnitudePrunerConfig(score=partial(lambda step, weight, parameter: weight.abs(), 3))
    ModuleMagnitudePrunerConfig(score=torch.dist)  # a function of C does not tell what it takes
    with pytest.raises(ConfigError, match="initial_sparsity must be 0.0 with a score, got 0.2"):
        ModuleMagnitudePrunerConfig(initial_sparsity=0.2, score=hashed)


def test_a_configuration_with_a_score_is_not_written_and_is_compared_with_it():
    config = MagnitudePrunerConfig(global_config={**STEPS, "score": hashed})
    for write in (config.as_dict, config.as_yaml):
        with pytest.raises(ConfigError, match=r"global_config\.score is the function hashed, which is no plain value"):
            write()
    assert config == copy.copy(config)
    assert config != MagnitudePrunerConfig(global_config={**STEPS, "score": Taylor()})
    assert config != MagnitudePrunerConfig(global_config=STEPS)
    config.global_config.score = None
    assert config == MagnitudePrunerConfig.from_yaml(config.as_yaml())
    assert "score" not in config.as_yaml()


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_a_resume_asks_for_the_score_again(masking):
    def prepared(**settings):
        pruner = MagnitudePruner(make_net(), {"global_config": {**STEPS, **settings}}, masking=masking)
        pruner.prepare()
        return pruner

    state = prepared(score=hashed).state_dict()
    prepared(score=hashed).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"0\.weight: score was hashed in the checkpoint and is None now"):
        prepared().load_state_dict(state)
    with pytest.raises(CheckpointError, match="score was None in the checkpoint and is Taylor now"):
        prepared(score=Taylor()).load_state_dict(prepared().state_dict())
    prepared().load_state_dict(state, allow_config_change=True)


def test_what_a_score_does_not_go_with_is_refused_before_training():
    rule = {**STEPS, "score": hashed}
    with pytest.raises(ConfigError, match=r"global_config\.score must be left out with slim"):
        MagnitudePruner(
            make_net(), {"global_config": {**rule, "granularity": "per_channel"}}, masking="resident", slim=True
        )
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match="the network uses a weight that a norm makes of it"):
        MagnitudePruner(normed, {"global_config": rule}, masking="resident").prepare()
    with pytest.raises(ConfigError, match=r"allocate ranks magnitudes. Leave global_config\.score out"):
        allocate(make_net(), 0.5, "global", config={"global_config": rule})
    with pytest.raises(ConfigError, match="sensitivity ranks magnitudes"):
        sensitivity(make_net(), lambda model: 0.0, [0.5], config={"global_config": rule})
    spread = allocate(make_net(), 0.5, config={"global_config": rule}).config
    assert spread.get_module_config("0", make_net()[0]).score is hashed
