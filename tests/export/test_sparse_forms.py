"""Each form gives back every word, takes the bytes it promises, and refuses parts that do not fit before it uses them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.export.sparse.forms import (
    PART_BYTES,
    PLAIN_FORMS,
    Bitmask,
    DamagedPartsError,
    Dense,
    Indices,
    NofM,
    smallest_form,
)


def sparse(*shape, density, dtype=np.int32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 100, shape) * (rng.random(shape) < density)).astype(dtype)


def rows(pattern, times=32):
    return np.array([pattern] * times, np.int32)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (np.zeros((), np.int32), Dense()),  # four bytes are less than a mask and its name
        (np.full((), 7, np.int32), Dense()),
        (np.zeros((3, 0), np.int32), Dense()),
        (np.array([0], np.uint8), Dense()),
        (np.zeros(25, np.int32), Dense()),
        (np.zeros(50, np.int32), Bitmask()),
        (rows([0, 0, 0, 0, 0, 0, 0, 1]), NofM(7, 8, 1)),
        (rows([1, 2, 3, 4]), Dense()),
        (rows([0, 2, 3, 4, 5, 6, 7, 8] * 4), Bitmask()),
        (rows([1, 0, 0, 2, 0, 3, 4, 0]), NofM(1, 2, 1)),  # finer than the 2:4 that it is, too
        (rows([1, 2, 0, 0, 0, 3, 4, 0]), NofM(2, 4, 1)),
        (rows([1, 2, 0, 0, 0, 3, 4, 0]).T, NofM(2, 4, 0)),
        (rows([1, 0, 0, 0, 0, 2, 0, 0]), NofM(3, 4, 1)),
        (rows([1, 2, 0, 0, 0, 3, 4, 0])[:, None, :], Bitmask()),  # groups along a third axis are not looked for
        (rows([1, 2, 0, 0, 0, 3, 4]), Bitmask()),  # not of whole groups
        (sparse(64, 64, density=0.25), Bitmask()),
        (sparse(64, 64, density=0.05), Indices()),
        (np.zeros((64, 64), np.int32), Indices()),
        (sparse(64, 64, density=0.25, dtype=np.uint8), Bitmask()),
        (sparse(64, 64, density=0.95, dtype=np.uint8), Dense()),
    ],
)
def test_the_smallest_form_is_found_and_gives_every_word_back(words, form):
    assert smallest_form(words) == form
    check(form, words)


def check(form, words):
    parts = form.encode(words)
    assert parts.keys() == form.part_types.keys()
    for part, kind in form.part_types.items():
        assert parts[part].dtype == (words.dtype if kind == "words" else np.dtype(kind))
    back = form.decode({part: values.reshape(-1) for part, values in parts.items()}, words.shape)
    assert back.shape == words.shape
    assert back.dtype == words.dtype
    assert np.array_equal(back, words)
    return sum(values.nbytes for values in parts.values())


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2) | st.just(0), max_size=600), st.sampled_from([np.uint8, np.int16, np.int32, np.int64])
)
def test_no_form_that_fits_is_smaller_than_the_one_that_is_found(numbers, dtype):
    words = np.array(numbers, dtype)
    sizes = [check(form, words) for form in (Dense(), Bitmask(), Indices(), smallest_form(words))]
    named = [size + PART_BYTES * parts for size, parts in zip(sizes, (0, 1, 2), strict=False)]
    assert sizes[3] + PART_BYTES * (len(smallest_form(words).part_types) - 1) <= min(named)


@pytest.mark.parametrize("group_size", [2, 4, 8, 16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_groups_of_every_size_and_number_of_zeros_come_back(group_size, axis):
    shape = [3, 5, 2]
    shape[axis] = 2 * group_size
    for num_zeros in range(1, group_size):
        rank = np.moveaxis(np.random.default_rng(num_zeros).random(shape), axis, -1)
        order = rank.reshape(-1, group_size).argsort(axis=1).argsort(axis=1).reshape(rank.shape)
        words = np.moveaxis((order + 1) * (order >= num_zeros), -1, axis).astype(np.int16)
        form = NofM(num_zeros, group_size, axis)
        kept = words.size // group_size * (group_size - num_zeros)
        assert check(form, words) == 2 * kept + -(-kept * form.bits // 8)


def test_values_of_n_m_lie_as_kernels_take_them():
    parts = NofM(2, 4, 1).encode(rows([1, 2, 0, 0, 0, 3, 4, 0], 2))
    assert parts["values"].tolist() == [[1, 2, 3, 4]] * 2
    assert np.unpackbits(parts["positions"]).tolist() == [0, 0, 0, 1, 0, 1, 1, 0] * 2


GOOD = {
    "dense": (Dense(), rows([1, 2], 2)),
    "bitmask": (Bitmask(), sparse(9, density=0.5)),
    "indices": (Indices(), sparse(700, density=0.05)),
    "n_m": (NofM(2, 4, 0), np.array([1, 2, 0, 0, 0, 3, 4, 0, 0, 5, 0, 6], np.int32)),
}


@pytest.mark.parametrize("name", GOOD)
def test_parts_with_a_number_more_or_less_and_other_shapes_are_refused(name):
    form, words = GOOD[name]
    parts = {part: values.reshape(-1) for part, values in form.encode(words).items()}
    for part, values in parts.items():
        for other in (values[:-1], np.append(values, values[:1]), values[:0]):
            with pytest.raises(DamagedPartsError, match="must"):
                form.decode({**parts, part: other}, words.shape)
    for shape in ((10**12,), (10**6, 10**6, 0, 3), (), (words.size, 16)):
        with pytest.raises(DamagedPartsError, match="must"):
            form.decode(parts, shape)


@pytest.mark.parametrize(
    ("name", "part", "at", "value", "message"),
    [
        ("bitmask", "bitmask", -1, 1, "behind the last entry of its bitmask"),
        ("bitmask", "bitmask", 0, 255, "one for each bit that is set, must be"),
        ("indices", "counts", 0, -1, "from 0 on"),
        ("indices", "counts", 0, 300, "add up"),
        ("indices", "offsets", 1, 0, "ascend"),
        ("indices", "offsets", -1, 255, "below 700"),
        ("n_m", "positions", 0, 0, "ascend in each group"),
        ("n_m", "positions", -1, 255, "behind the last|ascend"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(name, part, at, value, message):
    form, words = GOOD[name]
    parts = {key: values.reshape(-1).copy() for key, values in form.encode(words).items()}
    parts[part][at] = value
    with pytest.raises(DamagedPartsError, match=message):
        form.decode(parts, words.shape)


@pytest.mark.parametrize("form", [NofM(0, 4, 0), NofM(4, 4, 0), NofM(1, 3, 0), NofM(1, 2**60, 0), NofM(2, 4, 1)])
def test_patterns_that_cannot_be_are_refused(form):
    with pytest.raises(DamagedPartsError, match="must say"):
        form.decode({"positions": np.zeros(3, np.uint8), "values": np.zeros(6, np.int32)}, (12,))


def test_the_bytes_of_each_form_bound_the_words_it_stands_for():
    words = np.zeros(2**16, np.uint8)
    for form in PLAIN_FORMS.values():
        nbytes = sum(values.nbytes for values in form.encode(words).values())
        assert words.size <= 128 * nbytes
