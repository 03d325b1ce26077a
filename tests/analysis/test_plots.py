import io
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune import ConfigError, MagnitudePruner, MagnitudePrunerConfig, PruningScheduler, plan_pruning
from lightning_prune.analysis import plots
from lightning_prune.masks import compute_mask
from lightning_prune.schedules import TrainingRun
from lightning_prune.slim import slim

pytest.importorskip("matplotlib")
CONFIG = {
    "global_config": {"scheduler": {"begin": 0.1, "end": 0.5, "frequency": 10}, "target_sparsity": 0.8},
    "module_name_configs": {
        "2": {"scheduler": {"begin_step": 20}, "target_sparsity": 0.5, "initial_sparsity": 0.25},
    },
}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4))


def plan():
    return plan_pruning(net(), MagnitudePrunerConfig.from_dict(CONFIG))


def pruned() -> MagnitudePruner:
    pruner = MagnitudePruner(net(), {"global_config": {"scheduler": {"begin_step": 0}, "target_sparsity": 0.75}})
    pruner.prepare()
    pruner.step()
    return pruner


def draw(figure) -> bytes:
    """Draw for real: layout and fonts warn only then."""
    file = io.BytesIO()
    figure.savefig(file, dpi=50)
    return file.getvalue()


def labels(figure) -> set[str]:
    found = [
        handle.get_text() for axes in figure.axes for legend in [axes.get_legend()] if legend for handle in legend.texts
    ]
    return {*found, *(text.get_text() for legend in figure.legends for text in legend.texts)}


# Sparsity over steps


def test_curves_of_a_plan_are_what_its_schedules_give_weighted_by_weights():
    curves = plots.plan_curves(plan(), 100)
    assert set(curves) == {"all layers", "global_config", 'module_name_configs["2"]'}
    assert curves['module_name_configs["2"]'] == {0: 0.25, 20: 0.5, 100: 0.5}
    steps = list(curves["global_config"])
    assert steps == [0, 20, 30, 40, 50, 100]
    assert curves["global_config"][20] == pytest.approx(0.8 - 0.8 * 0.75**3)
    first = curves["global_config"][20]
    assert curves["all layers"][0] == pytest.approx(0.25 * 40 / 120)
    assert curves["all layers"][20] == pytest.approx((80 * first + 40 * 0.5) / 120)
    assert curves["all layers"][100] == pytest.approx((80 * 0.8 + 40 * 0.5) / 120)


def test_curves_are_what_a_pruner_does():
    model, run = net(), TrainingRun(60)
    pruner = MagnitudePruner(model, CONFIG)
    pruner.prepare(run=run)
    measured = {0: pruner.report().sparsity}
    for step in range(1, 61):
        pruner.step()
        measured[step] = pruner.report().sparsity
    curve = plots.plan_curves(plan(), run)["all layers"]
    assert curve == pytest.approx({step: measured[step] for step in curve}, abs=0.02)  # whole weights


def test_a_curve_of_n_m_moves_by_whole_zeros():
    rule = {"scheduler": {"update_steps": [1, 2, 3, 4, 5]}, "n_m_ratio": [3, 4]}
    curve = plots.plan_curves(plan_pruning(nn.Linear(8, 8), MagnitudePrunerConfig(rule)), 6)["all layers"]
    assert list(curve.values()) == [0.0, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_a_schedule_of_the_users_own_is_asked_at_every_step():
    class Halfway(PruningScheduler):
        def compute_sparsity(self, step_count, prev_sparsity, config):
            return config.target_sparsity if step_count > 7 else 0.0

    config = MagnitudePrunerConfig({"scheduler": Halfway(), "target_sparsity": 0.5})
    assert plots.plan_curves(plan_pruning(nn.Linear(4, 4), config), 10)["all layers"] == {0: 0.0, 8: 0.5, 10: 0.5}


def test_a_run_of_unknown_length_is_refused():
    with pytest.raises(ConfigError, match="run must have a known length"):
        plots.plan_curves(plan(), TrainingRun(None))
    config = MagnitudePrunerConfig({"scheduler": {"begin": "1 epoch", "end": 0.5}})
    with pytest.raises(ConfigError, match="global_config.scheduler.begin='1 epoch' is in epochs, but"):
        plots.plan_curves(plan_pruning(net(), config), 100)


def test_planned_and_measured_sparsity_are_in_one_figure():
    figure = plots.plot_plan(plan(), 100, actual={20: 0.4, 100: 0.7})
    assert {"all layers, planned", "all layers, measured", "global_config", "target 70.0%"} <= labels(figure)
    draw(figure)
    one_rule = plan_pruning(net(), MagnitudePrunerConfig({"scheduler": {"begin_step": 10}}))
    assert labels(plots.plot_plan(one_rule, 100)) == {"all layers, planned", "target 50.0%"}


def test_measured_sparsity_is_drawn_in_steps():
    figure = plots.plot_sparsity([0, 10, 20], {"a": [0.0, 0.4, 0.5], "b": [0.0, 0.1, 0.2]}, target=0.5)
    assert labels(figure) == {"a", "b", "target 50.0%"}
    line = figure.axes[0].lines[0]
    assert line.get_drawstyle() == "steps-post"
    assert list(line.get_ydata()) == [0.0, 0.4, 0.5]
    draw(figure)


# Layers and weights


def test_layers_are_bars_in_the_order_of_the_model():
    figure = plots.plot_layers(pruned().report())
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == [0.75, 0.75]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "2"]
    assert labels(figure) == {"target", "all layers 75.0%"}
    draw(figure)


def test_channels_that_slimming_kept_are_bars_with_what_was_pinned():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[:6] = 0
    figure = plots.plot_slim(slim(model, torch.randn(3, 4)))
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == [1, 1, 0.25, 1, 0, 1], "cut out behind, kept, pinned"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.weight", "2.weight"]
    assert labels(figure) == {"cut out", "kept", "kept whatever their values are (pinned)"}
    assert figure.axes[0].get_title(loc="left") == "16 of 58 parameters left"
    draw(figure)


def test_histograms_leave_out_zeros_and_count_them():
    model = net()
    pruner = MagnitudePruner(model, {"global_config": {"scheduler": {"begin_step": 0}, "target_sparsity": 0.75}})
    pruner.prepare()
    pruner.step()
    figure = plots.plot_weights(model, pruner.model)  # masks still attached
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["0.weight\n75.0% zero", "2.weight\n75.0% zero"]
    draw(figure)
    before = {"a": torch.randn(50, 2), "b": torch.zeros(3, 3)}
    draw(plots.plot_weights(before, before, names=["b", "a"]))
    many = {f"layer {i}": torch.arange(-3, 13, dtype=torch.bfloat16).view(4, 4) for i in range(20)}
    figure = plots.plot_weights(many, many)
    assert len(figure.axes) == 12
    draw(figure)


def test_histograms_of_weights_that_do_not_belong_together_are_refused():
    with pytest.raises(ConfigError, match="names: 'c' must be a weight before and after. There are a"):
        plots.plot_weights({"a": torch.ones(2)}, {"a": torch.ones(2)}, names=["c"])
    with pytest.raises(ConfigError, match="weights of the same names, got none"):
        plots.plot_weights({"a": torch.ones(2)}, {"b": torch.ones(2)})


# Masks


def image_of(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_a_mask_image_has_outputs_downwards_and_inputs_to_the_right():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    image = image_of(plots.plot_mask(mask))
    assert image[::4, ::4].tolist() == [[1, 0, 1], [0, 0, 1]]
    assert image.shape == (8, 12)


def test_kernels_are_tiles_with_gaps():
    mask = torch.tensor([[True, False]]).view(1, 2, 1, 1)
    image = image_of(plots.plot_mask(mask, shape=(1, 2, 3, 3)))
    assert image.shape == (12, 12 + 3 + 12)
    assert (image[:, :12] == 1).all()
    assert (image[:, 12:15] == 2).all()
    assert (image[:, 15:] == 0).all()


@pytest.mark.parametrize(
    ("shape", "rule", "title", "lines"),
    [
        ((16, 16), {}, "per_scalar, 50.0% zero", 0),
        ((16, 16), {"block_size": 4}, "block 4, 50.0% zero", 3),
        ((16, 12), {"n_m_ratio": (2, 4)}, "2:4 zeros, dim 1, 50.0% zero", 2),
        ((16, 12), {"n_m_ratio": (2, 4), "dim": 0}, "2:4 zeros, dim 0, 50.0% zero", 3),
        ((8, 4, 3), {}, "per_scalar, 50.0% zero", 0),
        ((8, 4, 3, 3), {"granularity": "per_kernel"}, "per_kernel, 50.0% zero", 0),
        ((8, 4, 3, 3), {"granularity": "per_channel"}, "per_channel, 50.0% zero", 0),
        ((8, 4, 2, 2, 2), {"block_size": 2}, "block 2, 50.0% zero", 3),
        ((200, 500), {}, "per_scalar, 50.0% zero", 0),
        ((2, 3, 200, 200), {}, "per_scalar, 50.0% zero", 0),
    ],
)
def test_every_structure_is_drawn_and_named(shape, rule, title, lines):
    mask = compute_mask(torch.randn(shape), 0.5, **rule)
    figure = plots.plot_mask(mask, name="body.0", shape=shape)
    assert figure.axes[0].get_title(loc="left") == f"body.0\n{title}"
    assert len(figure.axes[0].lines) == lines
    draw(figure)


def test_a_vector_is_no_image():
    with pytest.raises(ConfigError, match=r"rank 2 or more to be drawn as an image, got shape \(3,\)"):
        plots.plot_mask(torch.ones(3))


# Trade-off


def test_equal_distances_are_equal_factors():
    figure = plots.plot_tradeoff({"cubic": {0.5: [0.9, 1.0], 0.75: 0.8, 0.9: 0.7}, "b": {0.0: 1.0}}, dense=1.0)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0%", "50%", "75%", "90%"]
    assert labels(figure) == {"dense, 1", "cubic", "b"}
    line = next(line for line in axes.lines if line.get_label() == "cubic")
    assert list(line.get_ydata()) == pytest.approx([0.7, 0.8, 0.95])
    low, high = axes.get_xlim()
    assert low > high  # sparser is further to the right
    draw(figure)
    with pytest.raises(ConfigError, match=r"fractions in \[0, 1\) to be drawn, got \[1.0\]"):
        plots.plot_tradeoff({"a": {1.0: 0.5}})


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: plots.plot_sparsity([0], {"a": [0.0]}),
        lambda: plots.plot_mask(torch.ones(2, 2)),
        lambda: plots.plot_layers(pruned().report()),
    ):
        with pytest.raises(ImportError, match=r'pip install "lightning-prune\[plot\]"'):
            call()


def test_many_layers_are_grey_lines_under_the_global_one():
    curves = {"global": [0.0, 0.5], **{f"layer{index}": [0.0, index / 60] for index in range(54)}}
    figure = plots.plot_sparsity([0, 10], curves, target=0.5)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["54 layers", "global", "target 50.0%"]
