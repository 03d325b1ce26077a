"""Which tensors lie in the memory of others, and which layouts fill their memory."""

import pytest
import torch

from lightning_prune.errors import ExportError
from lightning_prune.export.sparse.layouts import View, find_views, memory_order


@pytest.mark.parametrize(
    ("shape", "stride", "order"),
    [
        ((), (), ()),
        ((5,), (1,), (0,)),
        ((5,), (2,), None),
        ((2, 3), (3, 1), (0, 1)),
        ((2, 3), (1, 2), (1, 0)),
        ((2, 3), (0, 1), None),
        ((2, 3), (1, 1), None),
        ((8, 3, 1, 1), (3, 1, 3, 3), (0, 2, 3, 1)),
        ((8, 1, 5, 5), (25, 1, 5, 1), (0, 2, 3, 1)),
        ((1, 4), (999, 1), (0, 1)),  # the stride of one element means nothing
    ],
)
def test_only_compact_tensors_have_an_order_in_memory(shape, stride, order):
    assert memory_order(shape, stride) == order


def test_random_permutations_are_found():
    tensor = torch.empty(2, 3, 4, 5)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        found = memory_order(tensor.permute(order).shape, tensor.permute(order).stride())
        assert tuple(order[dim] for dim in found) == (0, 1, 2, 3)


def test_what_lies_in_another_tensor_is_a_view_of_it():
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "row": base[1],
        "base": base,
        "turned": base.t(),
        "again": base,
        "gaps": base[1:, ::2],
        "own": base.clone(),
    }
    views = find_views(tensors)
    assert views == {
        "row": View("base", (6,), (1,), 6),
        "turned": View("base", (6, 4), (1, 6), 0),
        "again": View("base", (4, 6), (6, 1), 0),
        "gaps": View("base", (3, 3), (6, 2), 6),
    }
    for name, view in views.items():
        assert view.take(base).equal(tensors[name])
        assert view.take(base).data_ptr() == tensors[name].data_ptr()


def test_neighbours_in_one_storage_are_no_views():
    flat = torch.arange(24.0)
    assert find_views({"a": flat[:6], "b": flat[6:].view(3, 6), "c": flat[:0]}) == {}
    columns = flat.view(4, 6)
    assert find_views({"left": columns[:, :3], "right": columns[:, 3:]}) == {}


@pytest.mark.parametrize(
    "other",
    [
        lambda flat: flat[4:],
        lambda flat: flat[3:5].view(torch.int32),
        lambda flat: flat[5:6].expand(50),
        lambda flat: flat.unfold(0, 3, 1),
    ],
    ids=["half", "other type", "repeated", "windows"],
)
def test_tensors_that_share_a_part_are_refused(other):
    flat = torch.arange(12.0)
    with pytest.raises(ExportError, match=r"share a part of their memory.*tensor\.clone\(\)"):
        find_views({"a": flat[:6], "b": other(flat)})


@pytest.mark.parametrize(
    "view",
    [
        View("a", (3,), (1,), 10),
        View("a", (3,), (1,), -1),
        View("a", (13,), (0,), 0),
        View("a", (0,), (1,), 0),
        View("a", (2,), (12,), 0),
    ],
)
def test_views_that_reach_out_of_their_base_do_not_fit(view):
    assert not view.fits(12)
