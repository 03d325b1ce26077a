"""Counts of zeros: hand-made tables, and the definition on the weight at full size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.masks import zeros as sparsity
from lightning_prune.masks.compute import Granularity, magnitude_mask, mask_shape
from lightning_prune.masks.zeros import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_counts, zero_kernels

# Two output channels of two kernels; the first kernel and the whole second channel are zero, in part by -0.0.
WEIGHT = torch.tensor([[[0.0, -0.0], [1.0, 0.0]], [[0.0, 0.0], [-0.0, 0.0]]])


@pytest.mark.parametrize("kept", [WEIGHT, WEIGHT != 0, (WEIGHT != 0).to(torch.uint8), WEIGHT.half(), WEIGHT.bfloat16()])
def test_counts_of_a_table(kept: Tensor) -> None:
    assert count_zeros(kept) == 7
    assert zero_channels(kept) == 1
    assert zero_kernels(kept) == 3
    # Pairs of weights at one position in channels 0 and 1: only that of the 1.0 is not zero.
    assert zero_blocks(kept, 2) == 3


def test_a_row_that_sums_to_zero_is_not_a_zero_row() -> None:
    weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert zero_channels(weight) == 1
    assert zero_blocks(torch.tensor([[1.0], [-1.0]]), 2) == 0


def test_what_does_not_apply_is_none() -> None:
    assert zero_blocks(torch.zeros(3, 4), 2) is None
    assert zero_kernels(torch.zeros(3, 4)) is None
    assert zero_blocks(torch.zeros(3, 4), 3) == 4


@pytest.mark.parametrize(
    ("row", "adherent", "groups"),
    [
        ([0.0, 1.0, 0.0, 1.0], 1, 1),
        ([0.0, 1.0, 1.0, 1.0], 0, 1),
        ([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], 1, 2),
        # a short group of two is filled up with two zeros
        ([0.0, 1.0, 0.0, 1.0, 5.0, 5.0], 2, 2),
    ],
)
def test_groups_with_two_zeros_of_four(row: list[float], adherent: int, groups: int) -> None:
    assert n_m_groups(torch.tensor([row]), 2, 4) == (adherent, groups)
    assert n_m_groups(torch.tensor([row]).T, 2, 4, dim=0) == (adherent, groups)


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.sampled_from(["per_scalar", "per_kernel", "per_channel"]),
    st.floats(0, 1),
    st.integers(0, 1000),
    st.sampled_from([1, 20, 2**19]),
)
def test_a_mask_counts_as_the_weight_it_covers(
    shape: list[int], granularity: Granularity, share: float, seed: int, chunk: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = magnitude_mask(weight, share, granularity=granularity)
    assert mask.shape == mask_shape(tuple(shape), granularity=granularity)
    full = mask.expand(shape)
    small = {"shape": tuple(shape)}
    assert count_zeros(mask, **small) == count_zeros(weight * full) == int((~full).sum())
    assert zero_channels(mask, **small) == zero_channels(weight * full) == int((~full.flatten(1).any(1)).sum())
    assert zero_kernels(mask, **small) == zero_kernels(weight * full)
    assert zero_blocks(mask, 2, **small) == zero_blocks(weight * full, 2)
    assert n_m_groups(mask, 1, 2, **small) == n_m_groups(weight * full, 1, 2)
    counts = count_zeros(mask, **small), zero_channels(mask, **small), zero_blocks(mask, 2, **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsity, "_CHUNK", chunk)
        assert zero_counts(mask, **small) == zero_counts(weight * full) == counts
    if len(shape) > 2:
        assert zero_kernels(mask, **small) == int((~full.flatten(2).any(2)).sum())
    if shape[0] % 2 == 0:
        assert zero_blocks(mask, 2, **small) == int((~full.reshape(shape[0] // 2, 2, -1).any(1)).sum())


def test_any_memory_format_counts_the_same() -> None:
    weight = torch.randn(6, 4, 3, 3) * (torch.rand(6, 4, 1, 1) < 0.5) * (torch.rand(6, 4, 3, 3) < 0.5)
    for other in (weight.to(memory_format=torch.channels_last), weight.transpose(0, 1).contiguous().transpose(0, 1)):
        for count in (count_zeros, zero_channels, zero_kernels, lambda tensor: zero_blocks(tensor, 2), zero_counts):
            assert count(other) == count(weight)
