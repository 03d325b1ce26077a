import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchmetrics import Metric, MetricCollection

from lightning_prune import ConfigError, MagnitudePruner
from lightning_prune.analysis import metrics as all_metrics
from lightning_prune.analysis.metrics import (
    BlockSparsity,
    ChannelSparsity,
    CompressedBytes,
    DenseMACs,
    EffectiveMACs,
    EffectiveParameters,
    KernelSparsity,
    MaskChurn,
    NMAdherence,
    ReturnedWeights,
    WeightSparsity,
    mask_changes,
    weights_of,
)

WEIGHT = torch.tensor(  # (C_out, C_in, K) = (4, 4, 1)
    [
        [[0.0], [0.0], [1.0], [-1.0]],
        [[0.0], [0.0], [0.0], [0.0]],
        [[0.0], [0.0], [0.0], [0.0]],
        [[5.0], [0.0], [0.0], [2.0]],
    ]
)
EXPECTED = {
    WeightSparsity: 12 / 16,
    ChannelSparsity: 2 / 4,
    KernelSparsity: 12 / 16,
    BlockSparsity: 4 / 8,
    NMAdherence: 4 / 4,
    EffectiveParameters: 4,
    CompressedBytes: 2 + 8,  # 16 bits and 4 values of 2 bytes
}


def model_with(weight: torch.Tensor) -> nn.Module:
    """A module of this weight, and a bias and a norm, which are no weights."""
    conv = nn.Conv1d(4, 4, 1)
    with torch.no_grad():
        conv.weight.copy_(weight)
    return nn.Sequential(conv, nn.BatchNorm1d(4))


def two_processes(metric: Metric) -> Metric:
    """The metric as if two processes had the same counts."""
    metric.dist_sync_fn = lambda state, group=None: [state, state]
    metric.distributed_available_fn = lambda: True
    return metric


@pytest.mark.parametrize("metric", EXPECTED)
def test_values_of_a_table_written_by_hand(metric: type[Metric]):
    measure = metric()
    measure.update(WEIGHT)
    assert float(measure.compute()) == EXPECTED[metric]


@pytest.mark.parametrize("metric", EXPECTED)
def test_counts_add_up_over_updates_and_reset(metric: type[Metric]):
    measure = metric()
    for weight in (WEIGHT, torch.ones(4, 4, 1)):
        measure.update(weight)
    is_total = metric in (EffectiveParameters, CompressedBytes)
    dense = {EffectiveParameters: 16, CompressedBytes: 32}.get(metric, 0.0)
    expected = EXPECTED[metric] + dense if is_total else EXPECTED[metric] / 2
    assert float(measure.compute()) == expected
    measure.reset()
    assert float(measure(WEIGHT)) == EXPECTED[metric]
    assert float(measure(torch.ones(4, 4, 1))) == dense
    assert float(measure.compute()) == expected


@pytest.mark.parametrize("metric", EXPECTED)
def test_a_module_counts_as_its_weights(metric: type[Metric]):
    measure = metric()
    measure.update(model_with(WEIGHT))
    extra = {EffectiveParameters: 4 + 4, CompressedBytes: 2 * (4 + 4 + 4)}.get(metric, 0)  # bias; norm of ones, zeros
    assert float(measure.compute()) == EXPECTED[metric] + extra


@pytest.mark.parametrize("metric", EXPECTED)
def test_two_processes_with_the_same_model_give_the_value_of_one(metric: type[Metric]):
    measure = two_processes(metric())
    measure.update(WEIGHT)
    assert float(measure.compute()) == EXPECTED[metric]
    measure(WEIGHT)
    assert float(measure.compute()) == EXPECTED[metric] * (2 if metric in (EffectiveParameters, CompressedBytes) else 1)


@pytest.mark.parametrize("metric", [EffectiveParameters, CompressedBytes])
def test_numbers_of_shards_add_up(metric: type[Metric]):
    measure = two_processes(metric(sharded=True))
    measure.update(WEIGHT)
    assert float(measure.compute()) == 2 * EXPECTED[metric]


def test_nothing_counted_is_nan():
    measure = KernelSparsity()
    measure.update(nn.Linear(2, 2))
    assert torch.isnan(measure.compute())


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_masks_are_read_right_after_a_step(masking: str):
    pruner = MagnitudePruner(nn.Linear(8, 4), {"global_config": {"target_sparsity": 0.75}}, masking=masking)
    model = pruner.prepare()
    pruner.attach_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    pruner.step()
    assert [name for name, _ in weights_of(model)].count("weight") == 1
    for metric, expected in ((WeightSparsity(), 0.75), (EffectiveParameters(), 8 + 4)):
        metric.update(model)
        assert float(metric.compute()) == expected


def test_parametrized_and_tied_weights_count_once_and_stay_as_they_are():
    model = nn.ModuleDict(
        {
            "weight": parametrizations.weight_norm(nn.Linear(4, 4, bias=False)),
            "spectral": parametrizations.spectral_norm(nn.Linear(4, 4, bias=False)),
            "a": nn.Linear(4, 4, bias=False),
            "b": nn.Linear(4, 4, bias=False),
        }
    ).train()
    model["b"].weight = model["a"].weight
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model["weight"].parametrizations.weight.original1[0, 0] = 0
    assert [name for name, _ in weights_of(model)] == ["weight.weight", "spectral.weight", "a.weight"]
    metric = WeightSparsity()
    metric.update(model)
    assert float(metric.compute()) == pytest.approx(1 / 48)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["weight.parametrizations.weight.original1"]


def test_a_collection_keeps_its_metrics_apart_when_all_counts_are_equal_at_first():
    collection = MetricCollection(
        {
            "weights": WeightSparsity(),
            "channels": ChannelSparsity(),
            "kernels": KernelSparsity(),
            "blocks of 2": BlockSparsity(2),
            "blocks of 4": BlockSparsity(4),
            "2:4": NMAdherence(2, 4),
            "3:4": NMAdherence(3, 4),
            "2:4 of outputs": NMAdherence(2, 4, dim=0),
            "effective": EffectiveParameters(),
            "bytes": CompressedBytes(),
            "dense MACs": DenseMACs(),
            "MACs": EffectiveMACs(),
        }
    )
    inputs = torch.zeros(2, 4, 3)
    collection.update(model_with(torch.ones(4, 4, 1)), inputs)  # torchmetrics groups metrics by their states here
    collection.reset()
    collection.update(model_with(WEIGHT), example_inputs=inputs)
    values = {name: float(value) for name, value in collection.compute().items()}
    assert values == {
        "weights": 0.75,
        "channels": 0.5,
        "kernels": 0.75,
        "blocks of 2": 0.5,
        "blocks of 4": 1 / 4,
        "2:4": 1.0,
        "3:4": 0.5,
        "2:4 of outputs": 1.0,
        "effective": 12,
        "bytes": 10 + 24,
        "dense MACs": 16 * 3,
        "MACs": 4 * 3,
    }


def test_a_collection_calls_the_network_once_for_both_counts_of_macs():
    calls = []
    model = model_with(WEIGHT)
    model.register_forward_hook(lambda *_: calls.append(1))
    collection = MetricCollection([DenseMACs(), EffectiveMACs()])
    collection.update(model, torch.zeros(2, 4, 3))
    calls.clear()
    collection.update(model, torch.zeros(6, 4, 1))
    assert len(calls) == 1
    # 2 examples of 3 places and 6 of one
    assert float(collection.compute()["DenseMACs"]) == 16 * (2 * 3 + 6) / 8


# Changes of masks


def test_changes_between_two_masks():
    before = {"a": torch.tensor([True, True, False, False]), "b": torch.ones(2, 1, dtype=torch.uint8)}
    after = {"a": torch.tensor([True, False, True, False]), "b": torch.zeros(2, 1, dtype=torch.uint8)}
    assert mask_changes(before, after) == (3, 1, 6)
    collection = MetricCollection([MaskChurn(), ReturnedWeights()])
    collection.update(before, after)
    collection.update(after, after)
    assert {name: float(value) for name, value in collection.compute().items()} == {
        "MaskChurn": pytest.approx(4 / 12),
        "ReturnedWeights": 1,
    }


def test_changes_at_the_updates_of_a_pruner_are_those_of_its_masks():
    pruner = MagnitudePruner(
        nn.Linear(16, 16), {"global_config": {"scheduler": {"update_steps": [1, 2, 3]}, "target_sparsity": 0.75}}
    )
    model, churn, returned = pruner.prepare(), MaskChurn(), ReturnedWeights()
    with torch.no_grad():
        for step in range(3):
            before = {name: mask.clone() for name, mask in pruner.masks().items()}
            if step == 2:
                model.weight_orig.copy_(model.weight_orig.flip(0))  # other weights are large now
            pruner.step()
            churn.update(before, pruner.masks())
            returned.update(before, pruner.masks())
    assert float(churn.compute()) > 0.75 / 3
    assert float(returned.compute()) > 0


def test_masks_that_do_not_belong_together_are_refused():
    mask = torch.ones(2, 2)
    with pytest.raises(ConfigError, match=r"masks of the same names, got \['a'\] and \['b'\]"):
        mask_changes({"a": mask}, {"b": mask})
    with pytest.raises(ConfigError, match=r"a: before and after must have one shape, got \[2, 2\] and \[2, 1\]"):
        mask_changes({"a": mask}, {"a": mask[:, :1]})
    with pytest.raises(ConfigError, match="needs 1 <= num_zeros < group_size"):
        NMAdherence(4, 4)
    with pytest.raises(ConfigError, match="block_size must be a whole number of at least 1, got 0"):
        BlockSparsity(0)


# As torchmetrics wants it


@pytest.mark.parametrize("name", [name for name in all_metrics.__all__ if name[0].isupper()])
def test_every_metric_plots_pickles_and_copies(name: str):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    metric = getattr(all_metrics, name)()
    if isinstance(metric, (MaskChurn, ReturnedWeights)):
        arguments = (torch.tensor([True, False]), torch.tensor([True, True]))
    else:
        arguments = (model_with(WEIGHT), torch.zeros(1, 4, 1))
    value = metric(*arguments)
    for figure, axes in (metric.plot(), metric.plot([value, value])):
        assert axes.get_figure() is figure
        pyplot.close(figure)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.to("cpu")):
        assert torch.equal(twin.compute(), metric.compute())


def test_a_collection_plots():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    collection = MetricCollection([WeightSparsity(), ChannelSparsity()])
    collection.update(WEIGHT)
    figures = collection.plot()
    assert len(figures) == 2
    for figure, _ in figures:
        pyplot.close(figure)
