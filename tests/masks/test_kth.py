"""The k-th largest of an array is that of a sort, whatever the values, their ties and their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.masks.selection import kth
from lightning_prune.masks.selection.kth import kth_largest, ranked
from lightning_prune.masks.selection.magnitudes import Array

KINDS = ["normal", "uniform", "heavy", "half zeros", "one value", "levels", "rounded", "infinite", "denormal", "sorted"]
BITS = {np.float16: np.int16, np.float32: np.int32, np.float64: np.int64}
# what keys_of takes
ARRAYS = (st.sampled_from(KINDS), st.integers(1, 30_000), st.sampled_from(list(BITS)), st.integers(0, 2**31))


def keys_of(kind: str, size: int, dtype: type[np.floating], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_normal(size))
    if kind == "uniform":  # as convolutions are drawn: the median is a power of two, where bits change their density
        values = rng.random(size) / 8
    elif kind == "heavy":
        values = values**9
    elif kind == "half zeros":
        values[values < 0.67] = 0
    elif kind == "one value":
        values[:] = 0.25
    elif kind == "levels":
        values = np.round(values * 3)
    elif kind == "rounded":
        values = values.astype(np.float16).astype(np.float64)
    elif kind == "infinite":
        values[rng.random(size) < 0.3] = np.inf
    elif kind == "denormal":
        values *= float(np.finfo(dtype).smallest_subnormal) * 1000
    elif kind == "sorted":
        values.sort()
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(dtype).view(BITS[dtype])


@settings(max_examples=200, deadline=None)
@given(*ARRAYS, st.floats(0, 1), st.integers(0, 9))
def test_the_kth_largest_is_that_of_a_sort(
    kind: str, size: int, dtype: type[np.floating], seed: int, share: float, padding: int
) -> None:
    keys = keys_of(kind, size, dtype, seed)
    rank = min(size, 1 + int(share * size))
    expected = int(np.sort(keys)[-rank])
    padded = np.concatenate([keys, np.full(padding, -1, keys.dtype)])  # ranks below all magnitudes
    assert kth_largest(padded, rank) == expected


@settings(max_examples=100, deadline=None)
@given(*ARRAYS, st.floats(0, 1), st.sampled_from([0, 1, 10, 300, 10**5]))
def test_two_ranks_are_those_of_a_sort(
    kind: str, size: int, dtype: type[np.floating], seed: int, share: float, between: int
) -> None:
    keys = keys_of(kind, size, dtype, seed)
    first = min(size, 1 + int(share * size))
    last = min(size, first + between)
    ordered = np.sort(keys)
    assert ranked(keys, first, last) == (int(ordered[-first]), int(ordered[-last]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 2, 150_000, 299_999, 300_000])
def test_the_kth_largest_of_many_is_that_of_a_sort(kind: str, rank: int) -> None:
    keys = keys_of(kind, 300_000, np.float32, seed=7)
    before = keys.copy()
    assert kth_largest(keys, rank) == int(np.sort(keys)[-rank])
    assert np.array_equal(keys, before)


@pytest.mark.parametrize("rank", [1, 5_000, 50_000, 99_999])
def test_a_sample_that_misleads_costs_time_and_no_exactness(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kth, "_SPREAD", np.zeros(2**10, np.int64))  # the sample is the first element, again and again
    keys = keys_of("normal", 100_000, np.float32, seed=3)
    assert kth_largest(keys, rank) == int(np.sort(keys)[-rank])


def test_numbers_that_a_thread_flushes_to_zero_are_told_apart() -> None:
    keys = keys_of("denormal", 20_000, np.float32, seed=1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        assert kth_largest(keys, 7_000) == int(np.sort(keys)[-7_000])
    finally:
        torch.set_flush_denormal(False)
