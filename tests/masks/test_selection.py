"""Selection by magnitude is exact: against hand-made tables, and against a stable sort in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.errors import ConfigError, PruningError
from lightning_prune.masks.selection import largest as selection
from lightning_prune.masks.selection import radix, scan
from lightning_prune.masks.selection.largest import (
    Shard,
    keep_largest,
    keep_largest_of_all,
    keep_largest_of_shards,
    pruned_count,
)
from lightning_prune.masks.selection.magnitudes import holds_nan

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def expected_masks(values: list[Tensor], pruned: int) -> list[Tensor]:
    """The definition: a stable sort by falling magnitude keeps the first of equals."""
    flat = torch.cat([value.detach().reshape(-1).double().abs() for value in values])
    kept = np.zeros(flat.numel(), bool)
    kept[np.argsort(-flat.numpy(), kind="stable")[: flat.numel() - pruned]] = True
    pieces = torch.from_numpy(kept).split([value.numel() for value in values])
    return [piece.view(value.shape) for piece, value in zip(pieces, values, strict=True)]


def assert_exact(values: list[Tensor], pruned: int) -> None:
    masks = keep_largest_of_all(values, pruned)
    for mask, expected in zip(masks, expected_masks(values, pruned), strict=True):
        assert torch.equal(mask, expected)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that a tensor of a few hundred elements takes every path of the scan."""
    monkeypatch.setattr(scan, "_CHUNK", 64)
    monkeypatch.setattr(selection, "FEW", 64)
    monkeypatch.setattr(radix, "_CHUNK", 64)


@st.composite
def weights(draw: st.DrawFn, most: int = 3000) -> Tensor:
    """Tensors with all that makes a ranking hard: ties, zeros of both signs, infinities, denormals, odd layouts."""
    shape = draw(
        st.one_of(
            st.tuples(st.integers(1, most)),
            st.tuples(st.integers(1, 50), st.integers(1, 50)),
            st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 5)),
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "levels", "zeros", "constant", "denormal", "infinite", "rows"]))
    if kind == "levels":
        weight = (weight * 3).round()
    elif kind == "zeros":
        weight = -weight.where(torch.rand(shape, generator=generator) < 0.5, 0.0)
    elif kind == "constant":
        weight = weight.sign() * 0.5
    elif kind == "infinite":
        weight = weight.where(torch.rand(shape, generator=generator) < 0.7, weight.sign() * torch.inf)
    elif kind == "rows":
        weight = weight * torch.logspace(-3, 3, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    dtype = draw(st.sampled_from(DTYPES))
    if kind == "denormal":
        weight = weight * torch.finfo(dtype).smallest_normal
    weight = weight.to(dtype)
    layout = draw(st.sampled_from(["row-major", "channels_last", "transposed", "strided"]))
    if layout == "channels_last" and weight.ndim == 4:
        return weight.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return weight.permute(*reversed(range(weight.ndim))).contiguous().permute(*reversed(range(weight.ndim)))
    if layout == "strided":
        return torch.stack([weight, weight + 1], -1)[..., 0]
    return weight


@pytest.mark.parametrize(
    ("groups", "sparsity", "count"),
    [
        (100, 0.29, 29),
        (22, 15 / 22, 15),
        (3, 0.5, 1),
        (10, 0.7, 7),
        (1000, 0.999, 999),
        (5, 0.0, 0),
        (5, 1.0, 5),
        (0, 0.5, 0),
        (20_000_001, 0.5, 10_000_000),
        (3, 1 / 3, 1),
        (7, 1e-9, 0),
    ],
)
def test_pruned_count_is_the_floor_of_what_was_written(groups: int, sparsity: float, count: int) -> None:
    assert pruned_count(groups, sparsity) == count


@given(st.integers(1, 10**9), st.integers(0, 10**6))
def test_pruned_count_of_a_decimal_is_exact(groups: int, millionths: int) -> None:
    expected = groups * Fraction(millionths, 10**6)
    assert pruned_count(groups, millionths / 10**6) == expected.numerator // expected.denominator


@given(st.integers(1, 64), st.data())
def test_every_ratio_n_of_m_counts_n(group_size: int, data: st.DataObject) -> None:
    num_zeros = data.draw(st.integers(0, group_size))
    assert pruned_count(group_size, num_zeros / group_size) == num_zeros


@pytest.mark.parametrize(
    ("values", "pruned", "mask"),
    [
        ([1.0, 1.0, 1.0, 1.0], 2, [1, 1, 0, 0]),
        ([1.0, 1.0, 1.0, 2.0], 2, [1, 0, 0, 1]),
        ([0.0, -0.0, 0.0], 1, [1, 1, 0]),
        ([-3.0, 3.0, -2.0, 2.0], 1, [1, 1, 1, 0]),
        ([1e-45, 0.0, -1e-45, 1e-38], 2, [1, 0, 0, 1]),
        ([-float("inf"), 1e38, float("inf")], 2, [1, 0, 0]),
        ([5.0], 0, [1]),
        ([5.0], 1, [0]),
        ([], 0, []),
    ],
)
def test_among_equal_magnitudes_the_first_is_kept(values: list[float], pruned: int, mask: list[int]) -> None:
    assert keep_largest(torch.tensor(values), pruned).int().tolist() == mask


@settings(max_examples=60, deadline=None)
@given(weights(), st.floats(0, 1))
def test_small_tensors_match_a_stable_sort(weight: Tensor, share: float) -> None:
    assert_exact([weight], int(share * weight.numel()))


@pytest.mark.usefixtures("small_chunks")
def test_scanned_tensors_match_a_stable_sort() -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(weights(), min_size=1, max_size=3), st.floats(0, 1), st.booleans())
    def check(values: list[Tensor], share: float, zeros: bool) -> None:
        values = [value.to(values[0].dtype) for value in values]
        pruned = int(share * sum(value.numel() for value in values))
        # Just as many as are zero already: what pruning a pruned tensor again asks for.
        assert_exact(values, sum(int((value == 0).sum()) for value in values) if zeros else pruned)

    check()


@pytest.mark.usefixtures("small_chunks")
def test_tensors_of_several_dtypes_are_ranked_by_value() -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(weights(500), min_size=1, max_size=4), st.floats(0, 1))
    def check(values: list[Tensor], share: float) -> None:
        assert_exact(values, int(share * sum(value.numel() for value in values)))

    check()


@pytest.mark.parametrize("pruned", [1, 1000, 10_000_000, 19_999_990])
def test_twenty_million_and_one_elements_are_counted_exactly(pruned: int) -> None:
    weight = torch.rand(20_000_001, generator=torch.Generator().manual_seed(0)) - 0.5
    mask = keep_largest(weight, pruned)
    assert int(mask.count_nonzero()) == 20_000_001 - pruned
    kept, dropped = weight.abs()[mask], weight.abs()[~mask]
    threshold = kept.min()
    assert dropped.max() <= threshold
    # Of the elements at the threshold, those kept come before those pruned.
    tied_kept = (mask & (weight.abs() == threshold)).nonzero()
    tied_dropped = (~mask & (weight.abs() == threshold)).nonzero()
    assert tied_dropped.numel() == 0 or tied_kept.max() < tied_dropped.min()


def test_a_large_tensor_that_is_pruned_already_is_pruned_on_exactly() -> None:
    weight = torch.randn(700, 701, generator=torch.Generator().manual_seed(1))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    zeros = int((weight == 0).sum())
    for pruned in (zeros // 2, zeros - 1, zeros, zeros + 1, weight.numel() * 3 // 4, weight.numel() - 1):
        assert_exact([weight], pruned)
    assert_exact([weight.T], zeros // 2)


def test_masks_are_written_in_place_whatever_their_layout() -> None:
    weight = torch.randn(40, 50, 3, 3).to(memory_format=torch.channels_last)
    expected = expected_masks([weight], 9000)[0]
    bytes_ = torch.full((40, 50, 3, 3), 7, dtype=torch.uint8)
    unaligned = torch.zeros(18_003, dtype=torch.bool)[3:].view(40, 50, 3, 3)
    for out in (bytes_.view(torch.bool), torch.empty_like(weight, dtype=torch.bool), unaligned):
        version = out._version
        assert keep_largest(weight, 9000, out=out) is out
        assert torch.equal(out, expected)
        assert out._version > version
    assert set(bytes_.unique().tolist()) == {0, 1}


def test_a_new_mask_lies_in_memory_as_its_tensor() -> None:
    weight = torch.randn(4, 5, 3, 3).to(memory_format=torch.channels_last)
    assert keep_largest(weight, 7).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [10, 300_003])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("kind", ["normal", "zeros", "levels"])
def test_nan_is_an_error_that_leaves_the_mask_alone(size: int, dtype: torch.dtype, place: int, kind: str) -> None:
    weight = torch.randn(size)
    weight = {"normal": weight, "zeros": torch.zeros(size), "levels": weight.sign()}[kind].to(dtype)
    weight[place] = -torch.nan
    mask = torch.rand(size) < 0.3
    before = mask.clone()
    with pytest.raises(PruningError, match="NaN has no magnitude to rank by. The mask stays as it was."):
        keep_largest(weight, size // 2, out=mask)
    assert torch.equal(mask, before)


def test_opposite_infinities_are_not_taken_for_nan() -> None:
    assert not holds_nan(torch.tensor([torch.inf, -torch.inf, 1.0]))
    assert holds_nan(torch.tensor([torch.inf, torch.nan], dtype=torch.float16))
    assert not holds_nan(torch.empty(0))


def test_flushing_denormals_does_not_change_a_mask() -> None:
    weight = torch.randn(300_000) * 1e-39
    expected = keep_largest(weight, 150_000)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        assert torch.equal(keep_largest(weight, 150_000), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("pruned", [-1, 5])
def test_a_count_outside_the_tensor_is_an_error(pruned: int) -> None:
    with pytest.raises(ConfigError, match=f"pruned must be from 0 to 4, the number of elements, got {pruned}"):
        keep_largest(torch.ones(4), pruned)


def test_a_mask_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"out must be a torch.bool tensor of shape \(4,\)"):
        keep_largest(torch.ones(4), 2, out=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"magnitudes are ranked in .* got torch.int64"):
        keep_largest(torch.ones(4, dtype=torch.int64), 2)


class Processes:
    """Threads that add up counts as processes do; each of them must call as often as the others."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count)
        self.counts: list[Tensor] = [torch.empty(0)] * count

    def reduce(self, number: int) -> Callable[[Tensor], Tensor]:
        def add_up(counts: Tensor) -> Tensor:
            self.counts[number] = counts
            self.barrier.wait(30)
            total = torch.stack(self.counts).sum(0)
            self.barrier.wait(30)
            return total

        return add_up

    def run(self, work: Callable[[int], object]) -> list[object]:
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(work, range(self.count)))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_shards_get_their_part_of_the_mask_of_the_whole(world: int, dim: int) -> None:
    torch.manual_seed(world)
    wholes = [torch.randn(7, 11), (torch.randn(4, 6, 3, 3) * 2).round(), torch.zeros(5, 5), torch.randn(3, 2).half()]
    total = sum(whole.numel() for whole in wholes)
    for pruned in (0, 1, 60, 150, total // 2, total - 1, total):
        expected = expected_masks(wholes, pruned)
        processes = Processes(world)

        def work(number: int, pruned: int = pruned, processes: Processes = processes) -> list[Tensor]:
            shards = []
            for whole in wholes:
                pieces = torch.tensor_split(whole, world, dim)
                start = sum(piece.shape[dim] for piece in pieces[:number])
                offset = tuple(start if axis == dim else 0 for axis in range(whole.ndim))
                shards.append(Shard(pieces[number], tuple(whole.shape), offset))
            return keep_largest_of_shards(shards, pruned, reduce=processes.reduce(number))

        results = processes.run(work)
        for number, whole in enumerate(expected):
            assert torch.equal(torch.cat([masks[number] for masks in results], dim), whole)  # type: ignore[index]


def test_nan_in_one_shard_is_an_error_in_every_process() -> None:
    processes = Processes(3)

    def work(number: int) -> str:
        values = torch.ones(2, 4)
        if number == 1:
            values[0, 0] = torch.nan
        shard = Shard(values, (6, 4), (2 * number, 0))
        with pytest.raises(PruningError, match="NaN"):
            keep_largest_of_shards([shard], 5, reduce=processes.reduce(number))
        return "raised"

    assert processes.run(work) == ["raised"] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_same_masks_as_the_cpu(dtype: torch.dtype) -> None:
    weight = torch.randn(1000, 301).to(dtype)
    for pruned in (1, 100_000, 150_500, 300_999):
        assert torch.equal(keep_largest(weight.cuda(), pruned).cpu(), keep_largest(weight, pruned))
