import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_prune import ConfigError, MagnitudePruner, MagnitudePrunerConfig, plan_pruning
from lightning_prune.basics.tables import as_text, break_lines


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
    assert [(planned.name, planned.rule, planned.target_zeros, planned.numel) for planned in found] == [
        ("0.weight", 'module_type_configs["Conv2d"]', 144, 288),
        ("3.weight", "global_config", 36, 48),
    ]
    assert [(row.name, row.reason) for row in found.skipped] == [
        ("1", "its parameters have rank 1"),
        ("4", 'left dense by module_name_configs["4"]'),
    ]
    assert [record["module"] for record in found.records()] == ["0", "3", "1", "4"]


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
    assert [planned.target_zeros for planned in pruner.plan] == [int((layer.weight == 0).sum())]


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
        (
            {"module_name_configs": {"head": {"granularity": "per_kernel"}}},
            'granularity: "per_kernel" needs a weight of rank 3 or more, got rank 2 in head.weight',
        ),
        ({"module_name_configs": {"conv": {"block_size": 5}}}, "block_size must be at most half the output channels"),
        (
            {"module_name_configs": {"conv": {"n_m_ratio": (1, 4)}}},
            "1:4 zeros need at least 4 channels along dim 1, got 3",
        ),
        (
            {"module_name_configs": {"head": {"param_name": "bias", "n_m_ratio": (1, 2)}}},
            "rank 2 or more, got rank 1 in head.bias, whose shape is \\(5,\\)",
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
    (planned,) = plan(model)
    assert planned.name == "a.weight"
    assert [owner.module for owner in planned.owners] == [model["a"], model["b"]]
    with pytest.raises(ConfigError, match="one tied parameter"):
        plan(model, global_config={}, module_name_configs={"b": {"target_sparsity": 0.9}})


def test_all_layers_that_do_not_fit_are_named_at_once():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 2)
    )
    with pytest.raises(
        ConfigError,
        match=r'at least 3 channels along dim 1, got 1 in 1.weight.* Nor do the rules fit 2\. .*{"1": None, "2": None}',
    ):
        plan(model, module_name_configs={".*": {"n_m_ratio": (2, 4)}})


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
    (planned,) = found
    assert {owner.module for owner in planned.owners} == set(model.values())
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
    assert [(planned.label, planned.name) for planned in found] == names


def test_patterns_reach_only_supported_modules():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "fc": nn.Linear(8, 4)})
    found = plan(model, module_name_configs={".*": {}})
    assert [planned.name for planned in found] == ["fc.weight"]
    assert found.skipped[0].reason == "Embedding is pruned only where its type or its full name is given"


def test_what_training_updates_is_pruned_behind_a_parametrization():
    model = nn.ModuleDict(
        {
            "weight": parametrizations.weight_norm(nn.Linear(4, 4)),
            "spectral": parametrizations.spectral_norm(nn.Linear(4, 4)),
        }
    )
    found = plan(model)
    assert [planned.name for planned in found] == [
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
    assert [planned.name for planned in plan(model, module_name_configs={"0": {}})] == ["0.weight"]


def test_parameters_that_are_none_match_no_pattern():
    found = plan(
        nn.TransformerEncoderLayer(16, 2, 32), module_name_configs={"self_attn": {"param_name": ".*proj_weight"}}
    )
    assert [planned.name for planned in found] == ["self_attn.in_proj_weight"]


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


NET_OF_ALL_SORTS = {
    "stem": nn.Conv2d(3, 8, 3),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8),
    "body": nn.Conv2d(8, 8, 3),
    "small": nn.Linear(8, 5),
    "head": nn.Linear(8, 16),
}


@pytest.mark.parametrize("level", ["global_config", "module_type_configs"])
@pytest.mark.parametrize(
    ("rule", "dense"),
    [
        (
            {"n_m_ratio": (2, 4)},
            {
                "stem": "n_m_ratio: 2:4 zeros need at least 4 channels along dim 1, got 3",
                "depthwise": "n_m_ratio: 2:4 zeros need at least 4 channels along dim 1, got 1",
            },
        ),
        (
            {"n_m_ratio": (4, 8), "dim": 0},
            {"small": "n_m_ratio: 4:8 zeros need at least 8 channels along dim 0, got 5"},
        ),
        ({"block_size": 3}, {"small": "block_size must be at most half the output channels, got 3 for 5"}),
        (
            {"granularity": "per_kernel"},
            dict.fromkeys(["small", "head"], 'granularity: "per_kernel" needs a weight of rank 3 or more, got rank 2'),
        ),
        ({"granularity": "per_channel"}, {}),
    ],
)
def test_a_rule_for_many_leaves_dense_what_it_does_not_fit_and_warns_once(level, rule, dense):
    model = nn.ModuleDict(NET_OF_ALL_SORTS)
    rules = rule if level == "global_config" else {"Conv2d": rule, "Linear": rule}
    found = plan(model, **{level: rules})  # which says so, and does not warn
    assert {row.name: row.reason.partition(".")[2] for row in found.skipped if row.cause == "misfit"} == dense
    assert [planned.label for planned in found] == [name for name in model if name not in dense]
    pruner = MagnitudePruner(model, {level: rules})
    if not dense:
        pruner.prepare()
        return
    with pytest.warns(UserWarning, match="as the rule does not fit: ") as caught:
        pruner.prepare()
    (text,) = (str(warning.message) for warning in caught)
    assert text.startswith(f"{len(dense)} layer{'s stay' if len(dense) > 1 else ' stays'} dense (")
    assert all(f"({name}" in text or f", {name}" in text for name in dense)
    MagnitudePruner(model, {level: rules, "module_name_configs": dict.fromkeys(dense)}).prepare()  # as it advises


def test_a_rule_that_fits_nothing_prunes_nothing_and_says_why():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(ConfigError, match=r"prunes nothing .* 1 \(Conv2d\): global_config.n_m_ratio: 1:2 zeros need"):
        plan(model, global_config={"n_m_ratio": (1, 2)})


def test_a_parameter_that_a_rule_does_not_fit_has_a_row_beside_the_one_that_it_prunes():
    found = plan(nn.Sequential(nn.Linear(8, 4)), global_config={"param_name": "weight|bias", "n_m_ratio": (2, 4)})
    assert [planned.name for planned in found] == ["0.weight"]
    assert [(row.name, row.cause) for row in found.skipped] == [("0.bias", "misfit")]


def test_a_rule_by_name_prunes_what_channels_there_are():
    (planned,) = plan(nn.Sequential(nn.Conv2d(3, 4, 1)), module_name_configs={"0": {"n_m_ratio": (2, 4)}})
    assert planned.target_zeros == 4  # one of three: the missing fourth goes first


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (
            {"global_config": {"param_name": "weigth"}},
            r'global_config.param_name: no parameter "weigth" .*: body \(Linear\). Did you mean \'weight\'',
        ),
        (
            {"module_type_configs": {"LSTM": {"param_name": "weight_ih_10"}}},
            r'module_type_configs\["LSTM"\].param_name: no parameter .*: lstm \(LSTM\). Did you mean \'weight_ih_l0\'',
        ),
        ({"module_type_configs": {"LSTM": {}}}, "LSTM.* Did you mean 'weight_ih_l0' or 'weight_hh_l0'"),
        (
            {"module_type_configs": {"LSTM": {"param_name": "kernel"}}},
            "LSTM.* They have weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0",
        ),
        ({"module_name_configs": {"l.*": {"param_name": "weight_hh"}}}, "Did you mean 'weight_hh_l0'"),
        ({"global_config": {"param_name": "bias_"}}, "Did you mean 'bias'"),
    ],
)
def test_a_parameter_that_is_in_no_module_of_a_rule_is_refused(levels, message):
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "lstm": nn.LSTM(8, 8), "head": nn.Linear(8, 4)})
    names = {**levels.get("module_name_configs", {}), "head": {"target_sparsity": 0.5}}
    with pytest.raises(ConfigError, match=message):
        plan(model, **{**levels, "module_name_configs": names})


def test_a_rule_by_type_may_find_its_parameter_in_some_modules_only():
    model = nn.ModuleList([nn.LSTM(8, 8, proj_size=4), nn.LSTM(8, 8)])
    found = plan(model, module_type_configs={"LSTM": {"param_name": "weight_hr_l0"}})
    assert [planned.name for planned in found] == ["0.weight_hr_l0"]
    assert found.skipped[-1].name == "1"
    assert found.skipped[-1].reason == 'it has no parameter "weight_hr_l0"'


def test_parameters_that_no_rule_reaches_in_a_module_that_is_pruned_are_rows():
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 8, proj_size=4, bidirectional=True)})
    found = plan(model, module_name_configs={"lstm": {"param_name": "weight_(ih|hh)_l\\d"}})
    assert [planned.label for planned in found] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    dense = ["weight_hr_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse", "weight_hr_l0_reverse"]
    assert [row.name for row in found.skipped] == [f"lstm.{name}" for name in dense]
    assert {row.reason for row in found.skipped} == {
        'module_name_configs["lstm"].param_name "weight_(ih|hh)_l\\d" does not match it'
    }
    every = plan(model, module_name_configs={"lstm": {"param_name": "weight_.*"}})  # as the guide has it
    assert (len(every), every.skipped, every.dense_weights) == (6, (), 0)


class Opaque(torch.Tensor):
    """A tensor as quantized ones are: with a dtype that is not that of its values, and few operations."""

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype)

    def __repr__(self):
        return "Opaque()"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Opaque(args[0])
        raise NotImplementedError(function)


def with_weight(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: with_weight(torch.zeros(8, 8, dtype=torch.int8)), "is of torch.int8"),
        (lambda: with_weight(torch.zeros(8, 8, dtype=torch.complex64)), "is of torch.complex64"),
        (lambda: with_weight(torch.zeros(8, 8).to(torch.float8_e4m3fn)), "is of torch.float8_e4m3fn"),
        (lambda: with_weight(torch.eye(8).to_sparse()), "is of layout torch.sparse_coo"),
        (lambda: with_weight(Opaque(torch.zeros(8, 8))), "is a Opaque, which has operations of its own"),
        (lambda: torch.jit.script(nn.Linear(8, 8)), "is compiled by torch.jit"),
        (lambda: torch.jit.trace(nn.Linear(8, 8), torch.zeros(1, 8)), "is compiled by torch.jit"),
    ],
    ids=["int8", "complex", "float8", "sparse", "subclass", "scripted", "traced"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* (is|are) deprecated.*")
def test_what_is_no_plain_weight_is_refused_with_a_setting_that_works(make, what):
    model = nn.ModuleDict({"base": nn.Sequential(make(), make()), "odd": make(), "head": nn.Linear(8, 8)})
    for masking in ("hook", "resident"):
        with pytest.raises(ConfigError, match=what) as caught:
            MagnitudePruner(model, masking=masking).prepare(inplace=True)
        text = str(caught.value)
        assert "\n" not in text
        assert len(text) < 400
    advice = text.partition("module_name_configs=")[2].rpartition(".")[0]
    assert advice == r'{"base\\..*": None, "odd": None}'
    found = plan(model, global_config={}, module_name_configs={"base\\..*": None, "odd": None})
    assert [planned.label for planned in found] == ["head"]


def test_a_subclass_of_parameter_that_only_carries_a_tag_is_pruned():
    class Tagged(nn.Parameter):
        pass

    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = Tagged(torch.randn(8, 8))
    assert [planned.name for planned in plan(model)] == ["0.weight"]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.ParameterList([torch.randn(16, 8) for _ in range(3)]), nn.Parameter(torch.randn(8, 16))


def little_warning(model: nn.Module, config: dict) -> str | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MagnitudePruner(model, config, masking="resident").prepare()
    texts = [str(warning.message) for warning in caught]
    assert len(texts) < 2
    return texts[0] if texts else None


def test_less_than_half_of_a_model_is_told_of_with_what_to_write():
    model = nn.ModuleDict({"experts": Experts(), "embed": nn.Embedding(4, 8), "head": nn.Linear(8, 4)})
    text = little_warning(model, {"global_config": {}})
    assert text is not None
    assert text.startswith("Little gets pruned: the rules reach 32 of 576 weights of rank 2 and more (5.6%)")
    assert "They do not reach ParameterList (384), Experts (128), Embedding (32)." in text
    assert r'"ParameterList" with param_name="\\d+", "Experts" with param_name="down", "Embedding"' in text
    every = {"ParameterList": {"param_name": "\\d+"}, "Experts": {"param_name": "down"}, "Embedding": {}}
    assert plan(model, global_config={}, module_type_configs=every).dense_weights == 0
    assert '{"ParameterList": None, "Experts": None, "Embedding": None}' in text
    assert little_warning(model, {"global_config": {}, "module_type_configs": dict.fromkeys(every)}) is None


def test_who_names_what_is_pruned_is_not_told_of_the_rest():
    model = nn.ModuleDict({"embed": nn.Embedding(40, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 4)})
    assert little_warning(model, {"module_name_configs": {"head": {}}}) is None
    assert little_warning(model, {"module_type_configs": {"Linear": {}}}) is None
    assert little_warning(model, {"global_config": {}, "module_name_configs": {"embed": None}}) is None
    model["head"] = nn.Linear(8, 33)  # half of all
    assert little_warning(model, {"global_config": {}}) is None


def test_what_a_rule_does_not_fit_is_told_of_once():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Linear(8, 800))
    text = little_warning(model, {"global_config": {"granularity": "per_kernel"}})
    assert text is not None
    assert text.startswith("1 layer stays dense (6,400 weights), as the rule does not fit")


def test_long_names_break_at_dots():
    inner = nn.ModuleDict({"self_attention_of_the_decoder": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})
    model = nn.ModuleDict({"encoder_of_sentences": nn.ModuleDict({"layers": nn.ModuleDict({"0": inner})})})
    table = as_text(plan(model), width=100)
    assert [line.split()[0] for line in table.splitlines()[4:6]] == [
        "encoder_of_sentences.layers.0.",
        "self_attention_of_the_decoder.0",
    ]
    assert max(map(len, as_text(plan(model), width=80).splitlines())) <= 80
    assert break_lines("a.bcdefg.h", 5) == ["a.", "bcdef", "g.h"]
    assert break_lines("", 5) == [""]


def test_a_layer_of_which_the_plan_knows_a_tie_in_a_module_that_is_pruned_too_has_all_its_places():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.register_parameter("other", first.weight)
    planned, _ = plan(nn.Sequential(first, second))
    assert [(place.module, place.attribute) for place in planned.owners] == [(first, "weight"), (second, "other")]


class OddlyNamed(nn.Module):
    """A weight whose name ends like that of a gain, and a gain beside its direction."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.mixing_g = nn.Parameter(torch.ones(8, 8))
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))


def test_a_gain_is_one_by_its_direction_and_shape_and_not_by_its_name_alone():
    found = plan(OddlyNamed(), module_name_configs={"first": {}})
    assert found.dense_weights == 64 + 16
    (row,) = [row for row in found.skipped if row.kind == "OddlyNamed"]
    assert row.weights == {"mixing_g": 64}


def test_only_the_first_of_many_processes_says_what_stays_dense(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 2), nn.Bilinear(8, 8, 8))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert (little_warning(model, {"global_config": {}}) is None) == (rank == 1)
