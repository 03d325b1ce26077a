"""Masks of every granularity, block and n:m ratio: hand-made tables, and the definition in float64."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.errors import ConfigError, PruningError
from lightning_prune.masks import compute_mask, n_m, n_m_mask, norms
from lightning_prune.masks.compute import Granularity, magnitude_mask, mask_shape
from lightning_prune.masks.selection import largest as selection
from lightning_prune.masks.selection import scan
from lightning_prune.masks.selection.largest import pruned_count

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DIMS: dict[Granularity, int | None] = {"per_scalar": None, "per_kernel": 2, "per_channel": 1}


def expected_magnitude_mask(weight: Tensor, sparsity: float, granularity: Granularity, block_size: int) -> Tensor:
    """The definition: the fewest blocks, of largest norm first, that leave the groups that are not pruned."""
    dims = DIMS[granularity] or weight.ndim
    scores = (
        weight.double().square().sum(tuple(range(dims, weight.ndim))) if dims < weight.ndim else weight.double() ** 2
    )
    block_size = min(block_size, weight.shape[0])
    keep = scores.numel() - pruned_count(scores.numel(), sparsity)
    rows = scores.reshape(weight.shape[0], -1).split(block_size)
    norms = torch.stack([block.sum(0) for block in rows])
    sizes = torch.tensor([len(block) for block in rows]).view(-1, 1).expand_as(norms)
    order = norms.flatten().argsort(descending=True, stable=True)
    before = sizes.flatten()[order].cumsum(0) - sizes.flatten()[order]
    blocks = torch.zeros(norms.numel(), dtype=torch.bool)
    blocks[order[before < keep]] = True
    kept = blocks.view(norms.shape).repeat_interleave(sizes[:, 0], 0)
    return kept.reshape(mask_shape(tuple(weight.shape), granularity=granularity))


def expected_n_m_mask(weight: Tensor, num_zeros: int, group_size: int, dim: int) -> Tensor:
    """The definition, one group after the other."""
    moved = weight.double().abs().movedim(dim, -1)
    mask = torch.ones(moved.shape, dtype=torch.bool)
    for start in range(0, moved.shape[-1], group_size):
        group = moved[..., start : start + group_size]
        zeros = max(0, num_zeros - (group_size - group.shape[-1]))
        order = group.argsort(dim=-1, descending=True, stable=True)
        mask[..., start : start + group_size].scatter_(-1, order[..., group.shape[-1] - zeros :], False)
    return mask.movedim(-1, dim)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Weights of rank 2 to 5 with odd sizes, ties and any memory format; norms of different groups differ clearly."""
    rank = draw(st.integers(2, 5))
    most = {2: (70, 70), 3: (24, 24, 9), 4: (16, 16, 3, 5), 5: (9, 9, 2, 3, 3)}[rank]
    shape = [draw(st.integers(1, length)) for length in most]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # Small integers: sums of their squares are exact in every dtype, so that equal norms are equal.
    weight = torch.randint(-9, 10, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["row-major", "channels_last", "transposed", "strided"]))
    if layout == "channels_last" and rank == 4:
        return weight.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return weight.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided":
        return torch.stack([weight, weight + 1], -1)[..., 0]
    return weight


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With small chunks, small weights take the paths of large ones."""
    if request.param == "in chunks":
        monkeypatch.setattr(scan, "_CHUNK", 64)
        monkeypatch.setattr(selection, "FEW", 64)
        monkeypatch.setattr(norms, "_CHUNK", 64)
        monkeypatch.setattr(norms, "FEW", 64)
        monkeypatch.setattr(norms, "_SPARE_BYTES", 0)
        monkeypatch.setattr(n_m, "_CHUNK", 64)
        monkeypatch.setattr(n_m, "_PATTERN", 24)
        monkeypatch.setattr(n_m, "_WIDE", 6)
    return str(request.param)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("per_scalar", (6, 4, 3, 3)), ("per_kernel", (6, 4, 1, 1)), ("per_channel", (6, 1, 1, 1))],
)
def test_a_mask_is_no_larger_than_its_meaning(granularity: Granularity, shape: tuple[int, ...]) -> None:
    assert mask_shape((6, 4, 3, 3), granularity=granularity) == shape
    assert magnitude_mask(torch.randn(6, 4, 3, 3), 0.5, granularity=granularity).shape == shape


@pytest.mark.parametrize(
    ("weight", "sparsity", "options", "mask"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.5, {}, [1, 1, 0, 0]),
        ([3.0, -1.0, 2.0], 0.5, {}, [1, 0, 1]),
        ([[0.3, -0.2], [-0.01, 0.05]], 0.75, {}, [[1, 0], [0, 0]]),
        ([[0.3, -0.2], [-0.01, 0.05]], 0.0, {}, [[1, 1], [1, 1]]),
        ([[0.3, -0.2], [-0.01, 0.05]], 1.0, {}, [[0, 0], [0, 0]]),
        # rows [1, 1], [0, 2], [1, 1]: the second is largest, the first comes before its equal
        ([[1.0, 1.0], [0.0, 2.0], [1.0, 1.0]], 0.4, {"granularity": "per_channel"}, [[1], [1], [0]]),
        ([[1.0, -1.0], [2.0, 2.0]], 0.5, {"granularity": "per_channel"}, [[0], [1]]),
        (
            [[[1.0, -1.0], [0.5, 0.0]], [[0.0, 0.4], [3.0, 0.0]]],
            0.5,
            {"granularity": "per_kernel"},
            [[[1], [0]], [[0], [1]]],
        ),
        # blocks of two rows, column by column: norms (1, 5), (4, 1), and a short last block (9, 0)
        (
            [[1.0, 2.0], [0.0, 1.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0]],
            0.5,
            {"block_size": 2},
            [[0, 1], [0, 1], [1, 0], [1, 0], [1, 0]],
        ),
        # half of five rows leaves three: the last alone is too few, the two before it make three
        (
            [[1.0], [1.0], [2.0], [2.0], [9.0]],
            0.5,
            {"block_size": 2, "granularity": "per_channel"},
            [[0], [0], [1], [1], [1]],
        ),
        # a block larger than the weight is the weight
        ([[1.0], [2.0]], 0.5, {"block_size": 7}, [[1], [1]]),
    ],
)
def test_magnitude_masks_of_tables(weight: Any, sparsity: float, options: dict[str, Any], mask: Any) -> None:
    assert magnitude_mask(torch.tensor(weight), sparsity, **options).int().tolist() == mask


@pytest.mark.parametrize(
    ("weight", "ratio", "dim", "mask"),
    [
        ([[4.0, 1.0, 2.0, 3.0]], (2, 4), 1, [[1, 0, 0, 1]]),
        ([[1.0, 1.0, 1.0, 1.0]], (2, 4), 1, [[1, 1, 0, 0]]),
        ([[0.0, -0.0, 0.0]], (1, 3), 1, [[1, 1, 0]]),
        ([[1.0], [-3.0], [2.0], [0.5]], (1, 2), 0, [[0], [1], [1], [0]]),
        # five of a row and groups of four: the last group has one weight and three of padding, which are pruned first
        ([[4.0, 1.0, 2.0, 3.0, 0.1]], (2, 4), 1, [[1, 0, 0, 1, 1]]),
        ([[4.0, 1.0, 2.0, 3.0, 0.2, 0.1]], (3, 4), 1, [[1, 0, 0, 0, 1, 0]]),
        ([[1.0, 2.0]], (1, 4), 1, [[1, 1]]),
        ([[1.0, 2.0]], (0, 2), 1, [[1, 1]]),
        ([[1.0, 2.0, 3.0]], (2, 2), 1, [[0, 0, 0]]),
        # each kernel position is a row of its own
        ([[[1.0, 2.0], [2.0, 1.0]]], (1, 2), 1, [[[0, 1], [1, 0]]]),
    ],
)
def test_n_m_masks_of_tables(weight: Any, ratio: tuple[int, int], dim: int, mask: Any) -> None:
    assert n_m_mask(torch.tensor(weight), *ratio, dim=dim).int().tolist() == mask


@pytest.mark.usefixtures("chunks")
def test_magnitude_masks_match_their_definition() -> None:
    @settings(max_examples=100, deadline=None)
    @given(weights(), st.floats(0, 1), st.sampled_from(list(DIMS)), st.integers(1, 9))
    def check(weight: Tensor, sparsity: float, granularity: Granularity, block_size: int) -> None:
        mask = magnitude_mask(weight, sparsity, granularity=granularity, block_size=block_size)
        assert torch.equal(mask, expected_magnitude_mask(weight, sparsity, granularity, block_size))

    check()


@pytest.mark.usefixtures("chunks")
def test_n_m_masks_match_their_definition() -> None:
    @settings(max_examples=150, deadline=None)
    @given(weights(), st.sampled_from([2, 3, 4, 5, 8, 16, 40]), st.sampled_from([0, 1]), st.data())
    def check(weight: Tensor, group_size: int, dim: int, data: st.DataObject) -> None:
        num_zeros = data.draw(st.integers(0, group_size))
        mask = n_m_mask(weight, num_zeros, group_size, dim=dim)
        assert torch.equal(mask, expected_n_m_mask(weight, num_zeros, group_size, dim))

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options", [{}, {"block_size": 4}, {"granularity": "per_kernel"}, {"granularity": "per_channel"}]
)
def test_large_weights_match_their_definition(dtype: torch.dtype, options: dict[str, Any]) -> None:
    weight = torch.randint(-9, 10, (130, 90, 5, 5)).to(dtype)
    expected = expected_magnitude_mask(
        weight, 0.6, options.get("granularity", "per_scalar"), options.get("block_size", 1)
    )
    assert torch.equal(magnitude_mask(weight, 0.6, **options), expected)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize(("shape", "block_size"), [((3, 5, 3), 1), ((10, 7, 2), 5), ((4, 4, 4), 2), ((2, 9001, 2), 1)])
@pytest.mark.parametrize("granularity", ["per_channel", "per_kernel"])
def test_the_order_of_dimensions_in_memory_does_not_matter(
    shape: tuple[int, ...], block_size: int, order: tuple[int, ...], granularity: Granularity
) -> None:
    weight = torch.randint(-9, 10, shape).float()
    laid_out = weight.permute(order).contiguous().permute([order.index(dim) for dim in range(3)])
    options: dict[str, Any] = {"granularity": granularity, "block_size": block_size}
    assert torch.equal(magnitude_mask(laid_out, 0.5, **options), magnitude_mask(weight, 0.5, **options))


@pytest.mark.parametrize("levels", [2, 2000])  # masses of equal norms, and few
@pytest.mark.parametrize(("shape", "block_size"), [((2049, 1031), 2), ((1030, 230, 3, 3), 3), ((900, 1200, 2), 1)])
def test_norms_of_which_half_the_bits_are_held_match_their_definition(
    shape: tuple[int, ...], block_size: int, levels: int
) -> None:
    granularity: Granularity = "per_kernel" if block_size == 1 else "per_scalar"
    # Squares of such integers sum exactly, so that equal norms are equal.
    weight = torch.randint(-levels, levels + 1, shape, generator=torch.Generator().manual_seed(1)).float()
    mask = magnitude_mask(weight, 0.5, granularity=granularity, block_size=block_size)
    assert torch.equal(mask, expected_magnitude_mask(weight, 0.5, granularity, block_size))
    weight[-1] = 1e30  # squares overflow
    mask = magnitude_mask(weight, 0.5, granularity=granularity, block_size=block_size)
    assert torch.equal(mask, expected_magnitude_mask(weight, 0.5, granularity, block_size))
    weight[::3] = torch.inf
    magnitude_mask(weight, 0.5, granularity=granularity, block_size=block_size, out=mask)
    assert torch.equal(mask, expected_magnitude_mask(weight, 0.5, granularity, block_size))
    before = mask.clone()
    for nan in (torch.nan, -torch.tensor(torch.nan)):  # what 0 / 0 gives is negative
        weight[7, 7] = nan
        with pytest.raises(PruningError, match="NaN"):
            magnitude_mask(weight, 0.5, granularity=granularity, block_size=block_size, out=mask)
        assert torch.equal(mask, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_where_whole_blocks_leave_nothing_to_prune(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 256).to(dtype)
    weight[0, 0] = torch.nan
    with pytest.raises(PruningError, match="NaN"):
        magnitude_mask(weight, 1.5 / weight.numel(), block_size=2)


@pytest.mark.parametrize("granularity", ["per_kernel", "per_channel"])
def test_groups_of_no_weights_are_kept(granularity: Granularity) -> None:
    assert magnitude_mask(torch.empty(4, 3, 0), 0.5, granularity=granularity).all()


@pytest.mark.parametrize("shape", [(200, 130, 3, 3), (1030, 514), (64, 66, 7, 7, 7), (20, 40_000)])
@pytest.mark.parametrize("dim", [0, 1])
def test_large_n_m_masks_match_their_definition(shape: tuple[int, ...], dim: int) -> None:
    weight = torch.randint(-9, 10, shape).float()
    assert torch.equal(n_m_mask(weight, 2, 4, dim=dim), expected_n_m_mask(weight, 2, 4, dim))


def test_compute_mask_takes_the_path_of_its_rule() -> None:
    weight = torch.randn(8, 8, 3, 3)
    assert torch.equal(
        compute_mask(weight, 0.5, granularity="per_kernel", block_size=2),
        magnitude_mask(weight, 0.5, granularity="per_kernel", block_size=2),
    )
    assert torch.equal(compute_mask(weight, 0.5, n_m_ratio=(2, 4), dim=0), n_m_mask(weight, 2, 4, dim=0))
    # Before a first zero of four is due, the smallest weights of all are pruned.
    assert torch.equal(compute_mask(weight, 0.2, n_m_ratio=(2, 4)), magnitude_mask(weight, 0.2))
    # 15 / 22 * 22 is a little less than 15 in floating point.
    assert torch.equal(compute_mask(weight, 15 / 22, n_m_ratio=(15, 22)), n_m_mask(weight, 15, 22))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
@pytest.mark.parametrize("options", [{"granularity": "per_kernel"}, {"granularity": "per_channel"}, {"block_size": 2}])
def test_norms_neither_overflow_nor_vanish(dtype: torch.dtype, scale: float, options: dict[str, Any]) -> None:
    weight = torch.randint(-9, 10, (12, 10, 3, 3)).to(dtype)
    # A power of two, so that the scaled weights rank as the others do.
    scaled = weight.double() * 2.0 ** int(torch.tensor(scale).log2())
    assert torch.equal(magnitude_mask(scaled.to(dtype), 0.5, **options), magnitude_mask(weight, 0.5, **options))


def test_half_precision_norms_are_not_summed_in_half_precision() -> None:
    weight = torch.full((4, 1, 10, 10), 300.0, dtype=torch.float16)
    weight[2] = 299.0
    assert magnitude_mask(weight, 0.25, granularity="per_channel").flatten().tolist() == [True, True, False, True]


def test_infinite_weights_are_kept() -> None:
    weight = torch.ones(4, 2, 3)
    weight[1, 1, 0], weight[3, 0, 2] = torch.inf, -torch.inf
    assert magnitude_mask(weight, 0.5, granularity="per_channel").flatten().tolist() == [False, True, False, True]
    assert magnitude_mask(weight, 0.75, granularity="per_kernel").flatten().nonzero().flatten().tolist() == [3, 6]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 2},
        {"granularity": "per_kernel"},
        {"granularity": "per_channel", "block_size": 3},
        {"n_m_ratio": (2, 4)},
        {"n_m_ratio": (2, 4), "dim": 0},
        {"n_m_ratio": (20, 40)},
    ],
)
def test_a_mask_is_written_in_place_or_not_at_all(options: dict[str, Any]) -> None:
    weight = torch.randn(8, 6, 3, 3)
    shape = mask_shape((8, 6, 3, 3), granularity=options.get("granularity", "per_scalar"))
    held = torch.full(shape, 1, dtype=torch.uint8)
    out = held.view(torch.bool)
    version = held._version
    assert compute_mask(weight, 0.5, out=out, **options) is out
    assert torch.equal(held.bool(), compute_mask(weight, 0.5, **options))
    assert held._version > version
    before = held.clone()
    weight[3, 3, 1, 1] = torch.nan
    with pytest.raises(PruningError, match="NaN"):
        compute_mask(-weight, 0.5, out=out, **options)
    assert torch.equal(held, before)


@pytest.mark.parametrize("shape", [(600, 501), (10, 50, 700), (300, 102, 3, 3)])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_nan_in_the_last_group_leaves_an_n_m_mask_alone(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, is_transposed: bool
) -> None:
    weight, mask = torch.randn(shape).to(dtype), torch.rand(shape) < 0.5
    if is_transposed:
        weight, mask = weight.transpose(0, 1), mask.transpose(0, 1)
    weight[(-1,) * weight.ndim] = torch.nan
    before = mask.clone()
    with pytest.raises(PruningError, match="NaN"):
        n_m_mask(weight, 3, 4, dim=dim, out=mask)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_piece_smaller_than_a_block_has_norms(dtype: torch.dtype) -> None:
    piece = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=dtype)
    assert norms.block_scores(piece, 3, 1, torch.float64).tolist() == [30.0]
    assert norms.block_scores(piece, 3, 2, torch.float64).tolist() == [[10.0, 20.0]]


def test_a_weight_is_read_only_and_needs_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8))
    before = weight.detach().clone()
    for mask in (magnitude_mask(weight, 0.5), n_m_mask(weight, 1, 2), magnitude_mask(weight, 0.5, block_size=3)):
        assert not mask.requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: magnitude_mask(w, 1.5), r"sparsity must be a fraction in \[0, 1\], got 1.5"),
        (lambda w: magnitude_mask(w, float("nan")), r"sparsity must be a fraction in \[0, 1\], got nan"),
        (lambda w: compute_mask(w, -0.1, n_m_ratio=(1, 2)), r"sparsity must be a fraction in \[0, 1\], got -0.1"),
        (lambda w: magnitude_mask(w, 0.5, block_size=0), "block_size must be a whole number of at least 1, got 0"),
        (lambda w: magnitude_mask(w, "0.5"), "sparsity must be a fraction .* got '0.5'. It is a text"),
        (lambda w: magnitude_mask(w, 0.5, block_size=2.0), "block_size must be a whole number .* got 2.0"),
        (lambda w: n_m_mask(w, 2.0, 4), "num_zeros must be a whole number of at least 0, got 2.0"),
        (lambda w: n_m_mask(w, 2, True), "group_size must be a whole number of at least 1, got True"),
        (lambda w: magnitude_mask(w, 0.5, granularity="per_layer"), "granularity must be .*, got 'per_layer'"),
        (lambda w: magnitude_mask(w[0], 0.5, granularity="per_channel"), r"needs a weight of shape \(C_out, C_in"),
        (lambda w: n_m_mask(w, 5, 4), "num_zeros must be from 0 to group_size, got 5 zeros of 4"),
        (lambda w: n_m_mask(w, 2, 4, dim=2), r"needs a weight .* got shape \(4, 4\) and dim 2"),
        (lambda w: n_m_mask(w[0], 2, 4), r"needs a weight .* got shape \(4,\) and dim 1"),
        (lambda w: magnitude_mask(w, 0.5, out=torch.ones(4, 4)), "out must be a torch.bool tensor"),
    ],
)
def test_wrong_arguments_say_what_must_hold(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(torch.ones(4, 4))


def test_numbers_of_numpy_are_taken() -> None:
    weight = torch.arange(1.0, 41.0).reshape(10, 4)
    assert torch.equal(n_m_mask(weight, np.int64(2), np.int32(4), dim=np.int8(1)), n_m_mask(weight, 2, 4))
    for options in ({}, {"block_size": np.int64(2)}, {"n_m_ratio": (np.int64(1), np.int64(4))}):
        mask = compute_mask(weight, np.float32(0.9), **options)
        assert torch.equal(mask, compute_mask(weight, 0.9, **options)), options


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 0, 2, 2)])
def test_a_weight_without_elements_has_an_empty_mask(shape: tuple[int, ...]) -> None:
    assert magnitude_mask(torch.empty(shape), 0.5).shape == shape
    assert n_m_mask(torch.empty(shape), 1, 2).shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"block_size": 3}, {"granularity": "per_kernel"}, {"n_m_ratio": (2, 4)}])
def test_a_gpu_gives_the_same_masks_as_the_cpu(options: dict[str, Any]) -> None:
    weight = torch.randint(-9, 10, (64, 62, 3, 3)).float()
    assert torch.equal(compute_mask(weight.cuda(), 0.5, **options).cpu(), compute_mask(weight, 0.5, **options))
