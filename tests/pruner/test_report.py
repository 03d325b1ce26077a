import csv
import io
import warnings

import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_prune import MagnitudePruner, MagnitudePrunerConfig, plan_pruning
from lightning_prune.masks import compute_mask
from lightning_prune.masks.zeros import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_kernels
from lightning_prune.pruner.report import SparsityReport, describe_structure, measure_layer, stored_bytes

ONCE = {"scheduler": {"update_steps": [1]}}
RULES = {
    "per_scalar": {"global_config": {**ONCE, "target_sparsity": 0.7}},
    "blocks": {"module_type_configs": {"Conv2d": {**ONCE, "block_size": 2}}},
    "kernels": {"module_type_configs": {"Conv2d": {**ONCE, "target_sparsity": 0.6, "granularity": "per_kernel"}}},
    "channels": {"module_type_configs": {"Conv2d": {**ONCE, "target_sparsity": 0.6, "granularity": "per_channel"}}},
    "2:4": {"module_type_configs": {"Linear": {**ONCE, "n_m_ratio": [2, 4]}}},
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    # 5 outputs of the last layer are odd: pairs do not apply there
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5))


def pruned(rules: dict, model: nn.Module | None = None) -> MagnitudePruner:
    pruner = MagnitudePruner(model or net(), rules)
    pruner.prepare()
    pruner.step()
    return pruner


# Counting


def test_counts_of_a_table_written_by_hand():
    weight = torch.tensor(
        [
            [[1.0, -1.0], [0.0, -0.0]],  # sums to zero, but is not pruned
            [[0.0, 0.0], [0.0, 0.0]],
            [[0.0, 2.0], [0.0, 0.0]],
            [[0.0, 0.0], [0.0, 3.0]],
        ]
    )
    assert count_zeros(weight) == 12
    assert zero_channels(weight) == 1
    assert zero_kernels(weight) == 5
    # channels 0 and 1 are both zero at two of four positions, 2 and 3 at another two
    assert zero_blocks(weight, 2) == 4
    assert zero_blocks(weight, 4) == 1
    assert zero_blocks(weight, 1) == count_zeros(weight)
    assert zero_blocks(weight, 3) is None
    assert zero_kernels(weight.flatten(1)) is None
    assert n_m_groups(weight.flatten(1), 3, 4) == (3, 4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_a_broadcast_mask_counts_as_the_weight_it_covers(dtype: torch.dtype):
    shape = (6, 4, 3, 3)
    for small in ((6, 1, 1, 1), (6, 4, 1, 1), shape):
        mask = (torch.rand(small) > 0.5).to(dtype)
        full = mask.expand(shape).contiguous()
        for count in (count_zeros, zero_channels, zero_kernels, lambda m, **k: zero_blocks(m, 2, **k)):
            assert count(mask, shape=shape) == count(full)


def test_counts_agree_with_their_definition_for_any_memory_format():
    weight = (torch.rand(8, 4, 3, 3) > 0.8).float().contiguous(memory_format=torch.channels_last)
    assert zero_blocks(weight, 2) == int((weight.flatten(1).view(4, 2, -1).sum(1) == 0).sum())
    assert zero_kernels(weight) == int((weight.sum((2, 3)) == 0).sum())
    assert zero_channels(weight) == int((weight.sum((1, 2, 3)) == 0).sum())


# The report


@pytest.mark.parametrize("rules", RULES)
def test_the_report_is_that_of_core_ml_tools(coremltools, rules: str):
    pruning = coremltools.optimize.torch.pruning
    ours = pruned(RULES[rules]).report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = net()
        theirs = pruning.MagnitudePruner(model, pruning.MagnitudePrunerConfig.from_dict(RULES[rules]))
        theirs.prepare(inplace=True)
        theirs.step()
        model(torch.zeros(1, 3, 6, 6))  # or their report is stale
        expected = theirs.report()
    assert set(ours) == set(expected)
    for name, row in expected.items():
        assert ours[name] == pytest.approx(row, abs=1e-6), name


def test_rows_that_sum_to_zero_are_not_pruned_unlike_in_core_ml_tools():
    (planned,) = plan_pruning(nn.Linear(2, 2), MagnitudePrunerConfig())
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    measured = measure_layer(planned, (weight != 0).to(torch.uint8))
    assert (measured.zero_channels, measured.zero_pairs, measured.structured_sparsity) == (0, 0, 0.0)


def test_what_does_not_apply_is_none_in_the_records_and_minus_one_in_the_mapping():
    report = pruned(RULES["per_scalar"]).report()
    assert report["3"]["block2_weight_sparsity"] == -1
    records = {row["name"]: row for row in report.records()}
    assert records["3"]["block2_sparsity"] is records["3"]["pairs"] is None
    assert records["global"]["target_sparsity"] is None
    assert records["global"]["zeros"] == sum(row["zeros"] for row in records.values()) - records["global"]["zeros"]
    only_odd = SparsityReport([layer for layer in report.layers if layer.name == "3"])
    assert only_odd["global"]["block2_weight_sparsity"] == -1
    assert "sparsity_block2/global" not in only_odd.metrics()


def test_metrics_are_flat_numbers_with_documented_names():
    report = pruned(RULES["per_scalar"]).report()
    metrics = report.metrics()
    whole = {
        "sparsity/global",
        "sparsity_channels/global",
        "sparsity_block2/global",
        "sparsity_weights/effective",
        "sparsity_bytes/compressed",
    }
    assert set(metrics) == whole | {"sparsity/0", "sparsity/1", "sparsity/3"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["sparsity_weights/effective"] == report.total.weights - report.total.zeros
    assert set(report.metrics(layers=False)) == whole
    assert set(report.metrics(prefix="a", layers=False)) == {name.replace("sparsity", "a") for name in whole}


def test_csv_can_be_read_back():
    report = pruned(RULES["kernels"]).report()
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == ["0", "1", "global"]
    assert rows[0]["shape"] == "8x3x3x3"
    assert int(rows[0]["zeros"]) == report.layers[0].zeros


def test_the_table_fits_80_columns_and_keeps_every_name():
    model = nn.ModuleDict({"encoder_block_with_a_long_name": nn.ModuleDict({"self_attention": nn.Linear(2048, 512)})})
    report = pruned({"global_config": {"block_size": 4, "target_sparsity": 0.75}}, model).report()
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(report)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "".join(line.split()[0] for line in lines if line.strip())
    assert "encoder_block_with_a_long_name.self_attention" in text
    assert "…" not in "".join(lines)
    for part in ("512x2048", "75.0%", "75.00%", "786,432 / 1,048,576"):
        assert part in console.file.getvalue()


def test_it_prints_everywhere_without_markup_in_names_being_read_as_such():
    model = nn.ModuleDict({"[red]": nn.Linear(4, 4)})
    report = pruned({"global_config": {}}, model).report()
    assert "[red]" in repr(report)
    assert "[red]" in report._repr_html_()
    assert report._repr_html_().startswith("<pre>")
    assert "(root)" in repr(pruned({"global_config": {}}, nn.Linear(4, 4)).report())


# Bytes and structures


@pytest.mark.parametrize(
    ("weights", "zeros", "expected"),
    [(1024, 0, 2048), (1024, 64, 2048), (1024, 65, 2046), (1024, 512, 1152), (1024, 1024, 128), (3, 3, 1), (0, 0, 0)],
)
def test_sparse_storage_pays_from_one_sixteenth_zeros_on(weights: int, zeros: int, expected: int):
    assert stored_bytes(weights, zeros) == expected


@pytest.mark.parametrize(
    ("shape", "rule", "expected"),
    [
        ((32, 16), {}, "per_scalar"),
        ((32, 16), {"block_size": 4}, "block 4"),
        ((32, 16, 3, 3), {"block_size": 8}, "block 8"),
        ((32, 16), {"n_m_ratio": (2, 4)}, "2:4 zeros, dim 1"),
        ((32, 16), {"n_m_ratio": (3, 4), "dim": 0}, "3:4 zeros, dim 0"),
        ((32, 16, 3, 3), {"n_m_ratio": (5, 8)}, "5:8 zeros, dim 1"),
        ((32, 16, 3, 3), {"granularity": "per_channel"}, "per_channel"),
        ((32, 16), {"granularity": "per_channel"}, "per_channel"),
        ((32, 16), {"granularity": "per_channel", "block_size": 4}, "per_channel, block 4"),
        ((32, 16, 3, 3), {"granularity": "per_channel", "block_size": 4}, "per_channel, block 4"),
        ((32, 16, 3, 3), {"granularity": "per_kernel"}, "per_kernel"),
        ((32, 16, 3, 3), {"granularity": "per_kernel", "block_size": 2}, "per_kernel, block 2"),
        ((32, 16, 3), {}, "per_scalar"),
        ((32, 16, 3, 3, 3), {"granularity": "per_kernel"}, "per_kernel"),
    ],
)
def test_the_structure_that_was_asked_for_is_found(shape: tuple[int, ...], rule: dict, expected: str):
    weight = torch.randn(shape)
    sparsity = rule["n_m_ratio"][0] / rule["n_m_ratio"][1] if "n_m_ratio" in rule else 0.5
    mask = compute_mask(weight, sparsity, **rule)
    assert describe_structure(mask, shape=shape) == expected
    assert describe_structure(weight * mask) == expected


def test_tensors_without_structure_have_plain_names():
    assert describe_structure(torch.ones(4, 4)) == "dense"
    assert describe_structure(torch.zeros(4, 4)) == "all zero"
    assert describe_structure(torch.zeros(0, 4)) == "dense"
    assert describe_structure(torch.tensor([0.0, 1.0])) == "per_scalar"


def test_the_sum_counts_channels_as_channels_and_weighs_them_by_their_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    pruner = MagnitudePruner(model, {"global_config": {**ONCE, "target_sparsity": 0.5, "granularity": "per_channel"}})
    pruner.prepare(inplace=True)
    pruner.step()
    total = pruner.report().total
    assert (total.channels, total.zero_channels, total.zero_channel_weights) == (12, 6, 124)
    assert total.structured_sparsity == total.sparsity == 0.5
