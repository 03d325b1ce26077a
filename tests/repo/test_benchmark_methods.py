"""benchmarks/: each way to prune leaves what it promises, and a stopped benchmark goes on where it was."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import methods
from benchmarks.curves import Curves, write_records
from benchmarks.ledger import Job, Ledger, need
from benchmarks.recipes import Recipe, Training, nonzero_parameters, parameters

SPARSITY = 0.75


class Net(nn.Module):
    def __init__(self, width=1.0):
        super().__init__()
        hidden = max(1, round(32 * width))
        self.first, self.second, self.head = nn.Linear(16, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 4)

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs).relu()).relu())


@pytest.fixture
def recipe():
    torch.manual_seed(0)
    train = torch.randn(64, 16), torch.randint(4, (64,))
    score = parameters  # whatever it is, it is a number
    return Recipe("net", Net, train, nn.functional.cross_entropy, score, epochs=10, batch=16, rate=1e-2)


@pytest.fixture
def training(recipe, tmp_path):
    return Training(recipe, 0, tmp_path)


def zeros(net):
    return [int((layer.weight == 0).sum()) for layer in net.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    "way",
    [
        *(methods.gradual, methods.straight_through, methods.at_once, methods.after_training),
        *(methods.retrained, methods.by_coremltools),
    ],
)
def test_ways_that_rank_by_layer_prune_each_layer_as_far_as_was_asked(way, training):
    if way is methods.by_coremltools:
        pytest.importorskip("coremltools")
    assert zeros(way(training, SPARSITY)) == [384, 768, 96]


def test_2_to_4_chosen_anew_at_every_step_ends_with_two_zeros_of_each_four(training):
    net = methods.sr_ste(training, 0.5)
    assert {int((group == 0).sum()) for group in net.second.weight.detach().reshape(-1, 4)} == {2}


@pytest.mark.parametrize("way", [methods.globally, methods.erk, methods.by_model_pruning])
def test_ways_that_spread_prune_the_whole_as_far_as_was_asked(way, training):
    found = zeros(way(training, SPARSITY))
    assert sum(found) == pytest.approx(1248, abs=6)  # ModelPruning rounds at every epoch
    assert found != [384, 768, 96]


@pytest.mark.parametrize("way", [methods.coupled, methods.coupled_at_once, methods.coupled_and_retrained])
def test_channels_are_cut_out_to_the_size_that_is_trained_from_scratch(way, training):
    net = way(training, SPARSITY)
    assert parameters(net) == parameters(methods.narrow(training, SPARSITY)) == parameters(Net(0.25))


def test_a_small_dense_network_has_as_many_parameters_as_pruning_leaves(training):
    small = parameters(methods.small_dense(training, SPARSITY))
    assert small == pytest.approx(nonzero_parameters(methods.gradual(training, SPARSITY)), rel=0.1)


def test_a_size_that_no_width_gives_is_not_applicable(recipe):
    with pytest.raises(methods.NotApplicable, match="smallest network of this shape has 27 parameters"):
        methods.width_for(recipe, 10)


def test_the_dense_network_of_a_seed_is_trained_once_and_the_same_again(training):
    first = training.dense().net.state_dict()
    again = training.dense().net.state_dict()
    retrained = training.fit(training.task()).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], retrained[name]) for name in first)


def test_a_stopped_benchmark_goes_on_where_it_was(recipe, tmp_path):
    calls = []

    def way(training, sparsity):
        calls.append((training.seed, sparsity))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Net()

    jobs = [Job(recipe, "way", way, sparsity, seed) for seed in (0, 1) for sparsity in (0.5, 0.9)]
    with pytest.raises(KeyboardInterrupt):
        Ledger("bench", tmp_path).run(jobs)
    with (tmp_path / "bench.jsonl").open("a") as file:
        file.write('{"network": "net", "wa')  # a line that was cut amid writing
    Ledger("bench", tmp_path).run(jobs)
    assert calls == [(0, 0.5), (0, 0.9), (1, 0.5), (1, 0.5), (1, 0.9)]
    lines = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["sparsity"]) for line in lines] == [(0, 0.5), (0, 0.9), (1, 0.5), (1, 0.9)]


def test_a_table_has_mean_deviation_and_the_number_of_seeds(recipe, tmp_path):
    ledger = Ledger("bench", tmp_path)
    for seed, score in enumerate((90.0, 92.0)):
        key = Job(recipe, "gradual", methods.gradual, 0.5, seed).key
        ledger.add(key | {"score": score, "kept": 10})
    ledger.add(key | {"way": "small", "score": None, "why": "too small"})
    curves = Curves(ledger.of([recipe]), (0.5, 0.9), "accuracy")
    assert curves.table("net", ["gradual", "small", "other"]).splitlines()[2:] == [
        "| gradual | 91.00 ± 1.41 | — | 2 |",
        "| small | — | — | 0 |",
    ]
    assert curves.missing("net") == ["small at 50%: too small"]


def test_records_of_another_recipe_are_not_taken(recipe, tmp_path):
    ledger = Ledger("bench", tmp_path)
    ledger.add(Job(recipe, "gradual", methods.gradual, 0.5, 0).key | {"score": 1.0})
    longer = Recipe(**{**recipe.__dict__, "epochs": 11})
    assert len(ledger.of([recipe])) == 1
    assert ledger.of([longer]) == []


def test_a_ledger_goes_on_from_the_records_that_lie_beside_a_table(recipe, tmp_path):
    ledger = Ledger("bench", tmp_path / "runs")
    jobs = [Job(recipe, "gradual", methods.gradual, 0.5, seed) for seed in (1, 0)]
    for job, seconds in zip(jobs, (60.0, 180.0), strict=True):
        ledger.add(job.key | {"score": float(job.seed), "seconds": seconds})
    curves = Curves(ledger.of([recipe]), (0.5,), "accuracy")
    assert curves.minutes() == 2.0
    write_records(curves.records, tmp_path / "bench.jsonl")
    published = Ledger("bench", tmp_path)
    assert [record["seed"] for record in published.records] == [0, 1]
    assert [published.find(job.key)["score"] for job in jobs] == [1.0, 0.0]


def test_a_benchmark_without_its_data_stops_with_the_line_that_installs_it():
    with pytest.raises(SystemExit, match="pip install nowhere"):
        need("a_package_that_is_nowhere", "pip install nowhere")


def test_two_of_four_and_blocks_reach_half(training):
    for structure in ({"n_m_ratio": (2, 4)}, {"block_size": 4}):
        assert zeros(partial(methods.gradual, **structure)(training, 0.5))[:2] == [256, 512]
