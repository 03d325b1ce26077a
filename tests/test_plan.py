import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_prune import ConfigError, MagnitudePruner, MagnitudePrunerConfig, plan_pruning


def plan(model: nn.Module, **levels: object):
    return plan_pruning(model, MagnitudePrunerConfig(**levels))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3))


def test_the_plan_says_what_is_pruned_by_which_rule_and_what_is_not_and_why():
    found = plan(
        net(),
        global_config={"target_sparsity": 0.75},
        module_type_configs={"Conv2d": {"granularity": "per_kernel"}},
        module_name_configs={"4": None},
    )
    assert [(one.name, one.rule, one.target_zeros, one.numel) for one in found] == [
        ("0.weight", 'module_type_configs["Conv2d"]', 144, 288),
        ("3.weight", "global_config", 36, 48),
    ]
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("1", "its parameters have rank 1"),
        ("4", 'left dense by module_name_configs["4"]'),
    ]
    assert [one["module"] for one in found.records()] == ["0", "3", "1", "4"]


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((12, 8), {"target_sparsity": 0.55, "block_size": 4}),
        ((12, 3, 3, 3), {"target_sparsity": 0.7, "block_size": 2, "granularity": "per_kernel"}),
        ((10, 16), {"n_m_ratio": (3, 4), "dim": 0}),
        ((10, 18), {"n_m_ratio": (2, 4)}),
        ((10, 17), {"n_m_ratio": (2, 4)}),
        ((9, 5, 3, 3), {"n_m_ratio": (1, 2)}),
        ((9, 5, 3, 3), {"target_sparsity": 0.6, "granularity": "per_channel"}),
    ],
)
def test_the_plan_foretells_the_zeros(shape, rule):
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    pruner = MagnitudePruner(layer, {"global_config": rule})
    pruner.prepare(inplace=True)
    pruner.step()
    assert [one.target_zeros for one in pruner.plan] == [int((layer.weight == 0).sum())]


def test_modules_that_stay_dense_alike_share_a_row():
    found = plan(nn.Sequential(nn.Linear(4, 4), *[nn.LayerNorm(4) for _ in range(12)], nn.BatchNorm1d(4)))
    rows = str(found).splitlines()
    assert [row.split()[:4] for row in rows if "Norm" in row] == [
        ["1", "and", "11", "more"],
        ["13", "BatchNorm1d", "its", "parameters"],
    ]
    assert len(found.records()) == 14


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="must be a torch.nn.Module, got 'resnet50'"):
        plan_pruning("resnet50", MagnitudePrunerConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (
            {"module_name_configs": {"hed": {}}},
            'module_name_configs\\["hed"\\] matches no module .* Did you mean .head',
        ),
        ({"module_name_configs": {"hed": None}}, "matches no module"),
        ({"module_type_configs": {"Conv2D": {}}}, "matches no module of the model. Did you mean 'Conv2d'"),
        ({"module_type_configs": {nn.LSTM: {}}}, 'module_type_configs\\["LSTM"\\] matches no module'),
        ({"module_name_configs": {"act": {}}}, 'has no parameter "weight". It has none of its own'),
        ({"module_name_configs": {"head": {"param_name": "wieght"}}}, 'no parameter "wieght". Did you mean .weight'),
        ({"global_config": {"granularity": "per_channel"}}, "per_channel.* needs a weight of rank 3 or more"),
        ({"module_name_configs": {"conv": {"block_size": 5}}}, "block_size must be at most half the output channels"),
        ({"module_name_configs": {"conv": {"n_m_ratio": (1, 4)}}}, "1:4 zeros along dim 1 prunes nothing"),
        (
            {"module_name_configs": {"head": {"param_name": "bias", "n_m_ratio": (1, 2)}}},
            "shape \\(5,\\), but .* rank 2",
        ),
        ({"module_type_configs": {"Linear": None}}, "prunes nothing of this model"),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(levels: dict, message: str):
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "act": nn.ReLU(), "head": nn.Linear(8, 5)})
    with pytest.raises(ConfigError, match=message):
        plan(model, **levels)


def test_tied_parameters_are_one_entry():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    (one,) = plan(model)
    assert one.name == "a.weight"
    assert [owner.module for owner in one.owners] == [model["a"], model["b"]]
    with pytest.raises(ConfigError, match="one tied parameter"):
        plan(model, global_config={}, module_name_configs={"b": {"target_sparsity": 0.9}})


def test_all_layers_that_do_not_fit_are_named_at_once():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 2)
    )
    with pytest.raises(
        ConfigError,
        match=r'2:4 zeros along dim 1 prunes nothing of "1".* Nor do the rules fit 2\. .*{"1": None, "2": None}',
    ):
        plan(model, global_config={"n_m_ratio": (2, 4)})


def test_a_name_within_a_wrapped_model_is_proposed():
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 4))})
    with pytest.raises(
        ConfigError, match=r'module_name_configs\["0"\] matches no module of the model. Did you mean "net.0"'
    ):
        plan(model, module_name_configs={"0": {}})


def test_what_is_tied_to_a_pruned_parameter_is_pruned_with_it():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "head": nn.Linear(8, 10)})
    model["head"].weight = model["embed"].weight
    found = plan(model)
    (one,) = found
    assert {owner.module for owner in one.owners} == set(model.values())
    assert [(skipped.name, skipped.reason) for skipped in found.skipped] == [
        ("embed", "tied to head.weight, pruned with it")
    ]
    with pytest.raises(ConfigError, match="embed and head.weight are one tied parameter, but embed is left dense by"):
        plan(model, global_config={}, module_name_configs={"embed": None})


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_a_tied_embedding_computes_with_the_pruned_weight(masking):
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    model[1].weight = model[0].weight
    pruner = MagnitudePruner(model, {"global_config": {"scheduler": {"update_steps": [1, 2]}}}, masking=masking)
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach_optimizers(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(10)).square().sum().backward()
        optimizer.step()
        pruner.step()
    tokens = torch.arange(10)
    expected = model(tokens)
    assert int((model[0](tokens) == 0).sum()) == 40
    torch.testing.assert_close(pruner.finalize(inplace=True)(tokens), expected)
    assert model[0].weight is model[1].weight


def test_any_module_is_pruned_where_it_is_named():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "lstm": nn.LSTM(8, 4), "up": nn.ConvTranspose2d(4, 4, 2)})
    found = plan(
        model,
        module_type_configs={"Embedding": {}, nn.ConvTranspose2d: {"granularity": "per_kernel"}},
        module_name_configs={"lstm": {"param_name": "weight_(ih|hh)_l0"}},
    )
    names = [("embed", "embed.weight"), ("lstm.weight_ih_l0",) * 2, ("lstm.weight_hh_l0",) * 2, ("up", "up.weight")]
    assert [(one.label, one.name) for one in found] == names


def test_patterns_reach_only_supported_modules():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "fc": nn.Linear(8, 4)})
    found = plan(model, module_name_configs={".*": {}})
    assert [one.name for one in found] == ["fc.weight"]
    assert found.skipped[0].reason == "Embedding is pruned only where its type or its full name is given"


def test_what_training_updates_is_pruned_behind_a_parametrization():
    model = nn.ModuleDict(
        {
            "weight": parametrizations.weight_norm(nn.Linear(4, 4)),
            "spectral": parametrizations.spectral_norm(nn.Linear(4, 4)),
        }
    )
    found = plan(model)
    assert [one.name for one in found] == [
        "weight.parametrizations.weight.original1",
        "spectral.parametrizations.weight.original",
    ]
    with pytest.raises(ConfigError, match="_Orthogonal, which would not keep zeros"):
        plan(nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))))


def test_parameters_that_cannot_be_pruned_yet_say_what_to_do():
    with pytest.raises(ConfigError, match="0.weight has no shape yet. Run one batch"):
        plan(nn.Sequential(nn.LazyLinear(4)))
    with pytest.raises(ConfigError, match="has sparse gradients"):
        plan(nn.Embedding(4, 4, sparse=True), module_type_configs={"Embedding": {}})


def test_a_module_that_is_pruned_already_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ConfigError, match="is pruned already, by L1Unstructured"):
        plan(model)


def test_compiled_modules_keep_their_names():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0] = torch.compile(model[0], backend="eager")
    assert [one.name for one in plan(model, module_name_configs={"0": {}})] == ["0.weight"]


def test_parameters_that_are_none_match_no_pattern():
    found = plan(
        nn.TransformerEncoderLayer(16, 2, 32), module_name_configs={"self_attn": {"param_name": ".*proj_weight"}}
    )
    assert [one.name for one in found] == ["self_attn.in_proj_weight"]


def test_the_caption_counts_what_stays_dense():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    assert "40 of 80 weights in 1 layer will be zero (50.0%), 25.0% with the weights of rank 2" in str(plan(model))
    assert "40 of 80 weights in 1 layer will be zero (50.0%).\n" in str(plan(model[1:])) + "\n"


def test_a_class_that_is_called_as_a_supported_one_is_told_apart():
    other = type("Linear", (nn.Module,), {"__module__": "other.package"})()
    other.weight = nn.Parameter(torch.ones(4, 4))
    found = plan(nn.Sequential(nn.Linear(4, 4), other))
    assert found.skipped[0].reason.startswith("other.package.Linear is pruned only where")


def test_gains_of_a_weight_norm_are_no_dense_weights():
    assert plan(nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))).dense_weights == 0


@pytest.mark.parametrize(("name", "advice"), [("", "'.\\*'"), ("0", "'0.*'")])
def test_the_advice_for_a_container_works(name, advice):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match=rf"For the modules in it write module_name_configs\[{advice}\]") as found:
        plan(model, module_name_configs={name: {}})
    pattern = str(found.value).rpartition("['")[2].partition("']")[0].replace("\\\\", "\\")
    assert len(plan(model, module_name_configs={pattern: {}})) == 1
