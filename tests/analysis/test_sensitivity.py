import copy
import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_prune import ConfigError, ModuleMagnitudePrunerConfig, PruningError, plan_pruning
from lightning_prune.analysis.layer_sensitivity import LayerSensitivity, Sensitivity, sensitivity
from lightning_prune.analysis.plots import plot_sensitivity
from lightning_prune.masks import compute_mask
from lightning_prune.masks.zeros import count_zeros


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 36, 10)
    )


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def zeros_of(model: nn.Module) -> dict[str, int]:
    return {name: count_zeros(weight.detach()) for name, weight in model.named_parameters() if weight.ndim > 1}


def test_one_layer_at_a_time_is_pruned_by_the_masks_of_training():
    model, seen = net(), []
    dense = copy.deepcopy(model)

    def evaluate(pruned: nn.Module) -> float:
        seen.append({name: weight.detach().clone() for name, weight in pruned.named_parameters() if weight.ndim > 1})
        return 1.0

    config = {"module_type_configs": {"Conv2d": {"granularity": "per_kernel"}, "Linear": {"block_size": 2}}}
    found = sensitivity(model, evaluate, [0.75, 0.5], config=config)
    assert len(seen) == 1 + 2 * 2
    for index, (name, sparsity, rule) in enumerate(
        [
            ("0", 0.5, {"granularity": "per_kernel"}),
            ("0", 0.75, {"granularity": "per_kernel"}),
            ("5", 0.5, {"block_size": 2}),
            ("5", 0.75, {"block_size": 2}),
        ]
    ):
        weight = dense.get_submodule(name).weight.detach()
        mask = compute_mask(weight, sparsity, **rule)
        assert torch.equal(seen[1 + index][f"{name}.weight"], weight * mask)
        others = [other for other in ("0", "5") if other != name]
        assert all(
            torch.equal(seen[1 + index][f"{other}.weight"], dense.get_submodule(other).weight) for other in others
        )
    assert [list(layer.sparsities.values()) for layer in found.layers] == [[0.5, 0.75], [0.5, 0.75]]


def test_the_model_comes_back_bit_for_bit_whatever_evaluate_does_to_buffers_and_modes():
    model = net().train()
    model[4].eval()
    with torch.no_grad():
        model[5].weight[0, :3] = torch.tensor([-0.0, float("inf"), 1e-42])
    before = bits(model)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]

    def evaluate(model: nn.Module) -> torch.Tensor:
        model.train()  # moves the running statistics of the batch norm
        output = model(torch.randn(4, 3, 8, 8))
        assert not output.requires_grad
        model.eval()
        return output[:, 1:].mean()

    sensitivity(model, evaluate, [0.5])
    assert bits(model) == before
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_evaluation_that_fails_leaves_the_model_as_it_was(error: type[BaseException]):
    model, calls = net(), []
    before = bits(model)

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        model.eval()
        if len(calls) == 3:
            raise error("enough")
        return 0.0

    with pytest.raises(error, match="enough"):
        sensitivity(model, evaluate, [0.5, 0.9])
    assert bits(model) == before
    assert model.training


def test_a_weight_without_magnitude_is_an_error_that_changes_nothing():
    model = net()
    with torch.no_grad():
        model[5].weight[0, 0] = float("nan")
    before = bits(model)
    with pytest.raises(PruningError, match="NaN"):
        sensitivity(model, lambda _: 0.0, [0.5])
    assert bits(model) == before


SCORES = {
    "robust": {0.5: 0.91, 0.75: 0.9, 0.9: 0.89},
    "dips": {0.5: 0.9, 0.75: 0.7, 0.9: 0.9},  # by chance 0.9 looks harmless again
    "fragile": {0.5: 0.5, 0.75: float("nan"), 0.9: float("nan")},
}
RULE = ModuleMagnitudePrunerConfig()
RESULT = Sensitivity(
    0.9,
    tuple(
        LayerSensitivity(name, 100, scores, {score: score for score in scores}, RULE, (name,))
        for name, scores in SCORES.items()
    ),
)


def test_each_layer_goes_as_far_as_all_smaller_sparsities_are_tolerated():
    assert RESULT.tolerated(0.02) == {"robust": 0.9, "dips": 0.5, "fragile": 0.0}
    assert RESULT.tolerated(0.0) == {"robust": 0.75, "dips": 0.5, "fragile": 0.0}
    assert RESULT.tolerated(0.3)["dips"] == 0.9
    assert RESULT.losses()["robust"] == pytest.approx({0.5: -0.01, 0.75: 0.0, 0.9: 0.01})


def test_a_loss_is_tolerated_the_other_way_round():
    lower = Sensitivity(RESULT.baseline, RESULT.layers, higher_is_better=False)
    assert lower.tolerated(0.0) == {"robust": 0.0, "dips": 0.9, "fragile": 0.5}


def test_the_configuration_has_a_rule_for_each_layer():
    config = RESULT.config(0.02, scheduler={"begin": 0.1, "end": 0.5})
    assert {name: rule and rule.target_sparsity for name, rule in config.module_name_configs.items()} == {
        "robust": 0.9,
        "dips": 0.5,
        "fragile": None,
    }
    assert config.module_name_configs["robust"].schedule.begin == 0.1
    model = nn.ModuleDict({name: nn.Linear(10, 10) for name in config.module_name_configs})
    plan = plan_pruning(model, config)
    assert {planned.label: planned.target_zeros for planned in plan} == {"robust": 90, "dips": 50}


def test_a_loss_that_no_layer_tolerates_is_refused():
    found = Sensitivity(0.9, RESULT.layers[2:])
    with pytest.raises(ConfigError, match=r"loss=0.1 is less than any layer costs .* the least is 0.4. Tolerate more"):
        found.config(0.1)
    with pytest.raises(ConfigError, match="loss must be a number of at least 0, got -1"):
        RESULT.config(-1)


def test_rules_with_patterns_of_n_zeros_in_m_are_tested_and_written_as_such():
    model = nn.Sequential(nn.Linear(16, 8))
    found = sensitivity(model, lambda _: 0.0, [0.2, 0.5, 0.8, 1.0], config={"global_config": {"n_m_ratio": [2, 4]}})
    # less than one zero in a group is pruned by single weights, as at the start of training
    assert list(found.layers[0].sparsities.values()) == [25 / 128, 0.5, 0.75, 1.0]
    assert found.config(0.0).module_name_configs["0"].n_m_ratio == (3, 4)
    low = sensitivity(model, lambda _: 0.0, [0.2], config={"global_config": {"n_m_ratio": [2, 4]}})
    with pytest.raises(ConfigError, match="Tolerate more, or test"):
        low.config(0.0)


def test_parameters_of_one_module_share_the_rule_that_all_of_them_tolerate():
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 4), "a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    config = {"global_config": {}, "module_name_configs": {"rnn": {"param_name": "weight_(ih|hh)_l0"}}}

    def evaluate(model: nn.Module) -> float:
        return float((model["rnn"].weight_hh_l0 != 0).float().mean())

    written = sensitivity(model, evaluate, [0.25, 0.75], config=config).config(0.3)
    assert {name: rule.target_sparsity for name, rule in written.module_name_configs.items()} == {
        "rnn": 0.25,
        "a": 0.75,
        "b": 0.75,
    }
    assert [planned.target_zeros for planned in plan_pruning(model, written)] == [16, 16, 12]


def test_the_result_prints_and_exports_and_plots():
    pytest.importorskip("matplotlib")
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(RESULT)
    text = console.file.getvalue()
    assert "The score without pruning is 0.9" in text
    assert "+0.01" in text
    assert "-0.4" in text
    records = RESULT.records()
    assert len(records) == 9
    assert records[2] == {
        "layer": "robust",
        "weights": 100,
        "asked_sparsity": 0.9,
        "sparsity": 0.9,
        "score": 0.89,
        "loss": pytest.approx(0.01),
    }
    figure = RESULT.plot(metric="accuracy")
    assert figure.axes[0].get_ylabel() == "accuracy"
    figure.savefig(io.BytesIO())


def test_progress_is_shown_in_a_terminal_only():
    for terminal, shown in ((True, True), (False, False)):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        sensitivity(net(), lambda _: 0.0, [0.5], console=console)
        assert bool(console.file.getvalue()) is shown
    console = Console(file=io.StringIO(), force_terminal=True)
    sensitivity(net(), lambda _: 0.0, [0.5], console=console, progress=False)
    assert not console.file.getvalue()


@pytest.mark.parametrize("sparsities", [[], [75], [-0.1, 0.5], ["0.5"], [True], 0.5, "0.5", None, [math.nan]])
def test_sparsities_that_are_no_fractions_are_refused(sparsities: object):
    with pytest.raises(ConfigError, match="sparsities must be (a fraction|fractions)"):
        sensitivity(net(), lambda _: 0.0, sparsities)


def test_sparsities_of_numpy_are_plain_fractions():
    for given in (np.array([0.5, 0.75]), [np.float32(0.5), np.float64(0.75)]):
        found = sensitivity(net(), lambda _: np.float32(1.0), given, progress=False)
        assert [(type(asked), asked) for asked in found.layers[0].scores] == [(float, 0.5), (float, 0.75)]
        assert found.tolerated(np.float32(0.1))["0"] == 0.75
        with pytest.raises(ConfigError, match="loss must be a number of at least 0, got '0.1'"):
            found.tolerated("0.1")


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="evaluate must give a number, got a NoneType"):
        sensitivity(net(), lambda _: None, [0.5], progress=False)


def test_a_model_that_has_no_score_is_refused():
    with pytest.raises(ConfigError, match="evaluate must give a number for the unpruned model, got NaN"):
        sensitivity(net(), lambda _: float("nan"), [0.5])


def test_many_layers_are_drawn_as_a_table():
    pytest.importorskip("matplotlib")
    scores = {f"layer {i}": [0.9, float("nan")] for i in range(12)}
    figure = plot_sensitivity([0.5, 0.9], scores, baseline=0.9)
    figure.savefig(io.BytesIO())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(scores)


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_no_number_of_the_table_is_cut(width):
    names = [f"model.backbone.encoder.layers.{index}.self_attention.output_projection" for index in range(2)]
    asked = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99]
    layers = tuple(
        LayerSensitivity(
            name,
            123_456_789,
            {value: 0.9 - value * 1.23456e-4 for value in asked},
            {value: value for value in asked},
            ModuleMagnitudePrunerConfig(),
            (name,),
        )
        for name in names
    )
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(Sensitivity(0.9, layers))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for value in asked:
        assert text.count(f"{-value * 1.23456e-4:+.4g}") == 2
        assert text.count(f" {100 * value:g}%") == 1
    assert text.count("Change of the score") == text.count("Higher is better") == 1
    assert width < 300 or text.count("weights") == 1
