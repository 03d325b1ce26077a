"""One choice for channels of several weights: which are kept, at ties, in units, with parts that stay."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.errors import PruningError
from lightning_prune.masks import along_axis, keep_coupled


def test_channels_are_ranked_by_all_that_belongs_to_them() -> None:
    filters = torch.tensor([[3.0, 0.0], [0.0, 2.0], [2.0, 2.0], [0.0, 0.0]])
    shifts = torch.tensor([0.0, 0.0, 0.0, 5.0])
    members = [(filters, 0, torch.arange(4)), (shifts, 0, torch.arange(4))]
    assert keep_coupled(members, 0.5).tolist() == [True, False, False, True]  # 3, 2, sqrt(8), 5


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.0, [1, 1, 1, 1, 1]), (0.39, [1, 1, 1, 1, 0]), (0.4, [1, 1, 1, 0, 0]), (1.0, [0] * 5)]
)
def test_equal_channels_prune_exactly_the_asked_number_the_first_are_kept(sparsity: float, kept: list[int]) -> None:
    assert keep_coupled([(torch.ones(5, 3), 0, torch.arange(5))], sparsity).int().tolist() == kept


def test_each_unit_loses_its_own_share() -> None:
    weights = torch.tensor([[9.0], [8.0], [2.0], [1.0]])
    units = torch.tensor([0, 0, 1, 1])
    assert keep_coupled([(weights, 0, torch.arange(4))], 0.5, units).tolist() == [True, False, True, False]


def test_channels_that_stay_are_in_no_choice() -> None:
    weight = torch.tensor([[0.0], [1.0], [2.0]])
    classes = torch.tensor([-1, 0, 1])
    assert keep_coupled([(weight, 0, classes)], 0.5, torch.zeros(2, dtype=torch.int64)).tolist() == [False, True]


def test_several_channels_of_a_weight_may_be_one_choice() -> None:
    weight = torch.tensor([[3.0], [0.0], [2.0], [2.5]])
    assert keep_coupled([(weight, 0, torch.tensor([0, 0, 1, 1]))], 0.5).tolist() == [False, True]  # 3, sqrt(10.25)


def test_channels_may_lie_along_another_axis() -> None:
    table = torch.tensor([[1.0, 0.0, 5.0], [1.0, 0.5, 5.0]])
    keep = keep_coupled([(table, 1, torch.arange(3))], 0.4)
    assert keep.tolist() == [True, False, True]
    assert along_axis(keep, 1, (2, 3)).tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_ranked(dtype: torch.dtype) -> None:
    weight = torch.tensor([[300.0, 300.0], [1.0, 1.0]], dtype=dtype)
    assert keep_coupled([(weight, 0, torch.arange(2))], 0.5).tolist() == [True, False]


def test_nan_is_refused() -> None:
    with pytest.raises(PruningError, match="holds NaN"):
        keep_coupled([(torch.tensor([[1.0], [float("nan")]]), 0, torch.arange(2))], 0.5)
