"""Masks are those of Core ML Tools, and differ from them only where this file says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_prune import MagnitudePruner
from lightning_prune.config import load_config
from lightning_prune.masks import n_m_mask
from lightning_prune.masks.compute import Granularity, magnitude_mask

SHAPES = [
    (64, 48),
    (33, 17),
    (16, 12, 5),
    (17, 9, 7),
    (32, 16, 3, 3),
    (31, 15, 3, 5),
    (12, 10, 3, 2, 3),
    (7, 5, 3, 3, 3),
]


@pytest.fixture(scope="module")
def peer(coremltools: Any) -> Any:
    """Its mask functions; the package itself is imported by the fixture that silences it."""
    import coremltools.optimize.torch.pruning._utils as utils

    return utils


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
@pytest.mark.parametrize("granularity", ["per_scalar", "per_kernel", "per_channel"])
def test_magnitude_masks_are_equal(
    peer: Any, granularity: Granularity, block_size: int, shape: tuple[int, ...]
) -> None:
    if len(shape) == 2 and granularity == "per_channel":
        pytest.skip("see test_channels_of_a_linear_layer_are_rows_not_scalars")
    for seed in range(3):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for sparsity in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
            theirs = peer.magnitude_ranked_mask(weight, sparsity, block_size, granularity)
            ours = magnitude_mask(weight, sparsity, granularity=granularity, block_size=block_size)
            assert torch.equal(ours, theirs), (seed, sparsity)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("ratio", [(1, 2), (2, 4), (1, 4), (3, 4), (2, 5), (4, 8), (7, 16)], ids=str)
def test_n_m_masks_are_equal(peer: Any, ratio: tuple[int, int], dim: int, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(n_m_mask(weight, *ratio, dim=dim), peer.n_m_mask(weight, ratio, dim).bool()), seed


def test_equal_weights_are_pruned_to_the_number_asked_for_not_at_all_or_all(peer: Any) -> None:
    for values in ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0]):
        weight = torch.tensor(values)
        assert int(peer.magnitude_ranked_mask(weight, 0.5, 1, "per_scalar").sum()) == 4
        assert int(magnitude_mask(weight, 0.5).sum()) == 2


def test_weights_of_twenty_million_are_counted_in_integers(peer: Any) -> None:
    weight = torch.arange(1, 20_000_002, dtype=torch.float64)
    assert int(magnitude_mask(weight, 0.5).sum()) == 10_000_001
    assert int(peer.magnitude_ranked_mask(weight, 0.5, 1, "per_scalar").sum()) != 10_000_001


@pytest.mark.parametrize("hundredths", [40, 46, 70, 73, 85])
def test_a_sparsity_is_the_decimal_that_was_written(peer: Any, hundredths: int) -> None:
    weight = torch.arange(1.0, 101.0)
    assert int(magnitude_mask(weight, hundredths / 100).sum()) == 100 - hundredths
    # 100 * (1 - 0.4) in float32 is a little above 60, and is rounded up.
    assert int(peer.magnitude_ranked_mask(weight, hundredths / 100, 1, "per_scalar").sum()) == 101 - hundredths


def test_channels_of_a_linear_layer_are_rows_not_scalars(peer: Any) -> None:
    weight = torch.randn(8, 6)
    assert peer.magnitude_ranked_mask(weight, 0.5, 1, "per_channel").shape == (8, 6)
    assert magnitude_mask(weight, 0.5, granularity="per_channel").shape == (8, 1)
    # A kernel of a linear layer is one weight; there the two agree.
    assert torch.equal(
        magnitude_mask(weight, 0.5, granularity="per_kernel"), peer.magnitude_ranked_mask(weight, 0.5, 1, "per_kernel")
    )


def test_per_channel_prunes_rows_of_linear_where_theirs_turns_into_per_scalar_in_silence(coremltools: Any) -> None:
    config = {"global_config": {"scheduler": {"begin_step": 0}, "granularity": "per_channel"}}
    theirs = coremltools.optimize.torch.pruning
    layers = []
    for pruner, kind in ((theirs.MagnitudePruner, theirs.MagnitudePrunerConfig), (MagnitudePruner, load_config)):
        torch.manual_seed(0)
        make = kind.from_dict if kind is not load_config else kind
        prepared = pruner(torch.nn.Sequential(torch.nn.Linear(6, 8)), make(config))
        prepared.prepare(inplace=True)
        prepared.step()
        layers.append(prepared.finalize(inplace=True)[0])
    empty = [int((layer.weight == 0).all(1).sum()) for layer in layers]
    assert empty == [0, 4]
    assert [int((layer.weight == 0).sum()) for layer in layers] == [24, 24]


def test_n_m_of_a_global_rule_leaves_dense_what_has_no_whole_group(coremltools: Any) -> None:
    config = {"global_config": {"scheduler": {"begin_step": 0}, "n_m_ratio": [2, 4]}}
    theirs = coremltools.optimize.torch.pruning
    models = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)) for _ in range(2)]
    peer = theirs.MagnitudePruner(models[0], theirs.MagnitudePrunerConfig.from_dict(config))
    peer.prepare(inplace=True)
    peer.step()
    peer.finalize(inplace=True)
    ours = MagnitudePruner(models[1], config)
    with pytest.warns(UserWarning, match="1 layer stays dense"):
        ours.prepare(inplace=True)
    ours.step()
    ours.finalize(inplace=True)
    assert [[int((layer.weight == 0).sum()) for layer in model] for model in models] == [[4, 8], [0, 8]]


def test_among_equal_weights_of_an_n_m_group_the_first_are_kept(peer: Any) -> None:
    weight = torch.ones(1, 4)
    assert n_m_mask(weight, 2, 4).tolist() == [[True, True, False, False]]
    # Which of them an unstable sort prunes is not said; how many is.
    assert int(peer.n_m_mask(weight, (2, 4), 1).sum()) == 2


def test_padding_is_pruned_before_weights_that_are_zero(peer: Any) -> None:
    weight = torch.zeros(1, 6)
    # The short group holds two weights and two of padding, which are the two zeros that it needs.
    assert n_m_mask(weight, 2, 4).tolist() == [[True, True, False, False, True, True]]
    assert int(peer.n_m_mask(weight, (2, 4), 1)[0, 4:].sum()) <= 2


def test_a_group_may_be_zero_throughout(peer: Any) -> None:
    assert not n_m_mask(torch.ones(2, 4), 4, 4).any()
    with pytest.raises(AssertionError):
        peer.n_m_mask(torch.ones(2, 4), (4, 4), 1)


def test_norms_of_float16_do_not_overflow(peer: Any) -> None:
    weight = torch.full((4, 1, 10, 10), 300.0, dtype=torch.float16)
    weight[2] = 290.0
    assert int(magnitude_mask(weight, 0.25, granularity="per_channel", block_size=1).sum()) == 3
    # Squares of norms are taken in float16 there: all blocks of two are infinite, and none is pruned.
    weight = weight * 100
    assert int(peer.magnitude_ranked_mask(weight, 0.5, 2, "per_channel").sum()) == 4
    assert int(magnitude_mask(weight, 0.5, granularity="per_channel", block_size=2).sum()) == 2
