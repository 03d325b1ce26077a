"""Which slots can only go together: a table by hand, and a plain union-find."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.slim.classes import classes_of


def _pairs(edges):
    return [(torch.tensor([edge[0] for edge in group]), torch.tensor([edge[1] for edge in group])) for group in edges]


def test_connected_slots_have_one_number_counted_in_the_order_of_their_first():
    assert classes_of(0, []).tolist() == []
    assert classes_of(3, []).tolist() == [0, 1, 2]
    assert classes_of(3, [(torch.empty(0).long(), torch.empty(0).long())]).tolist() == [0, 1, 2]
    assert classes_of(6, _pairs([[(5, 0)], [(1, 4), (4, 2)]])).tolist() == [0, 1, 1, 2, 1, 0]
    assert classes_of(4, _pairs([[(1, 1), (2, 1), (1, 2)]])).tolist() == [0, 1, 1, 2]
    chain = torch.arange(1000)
    assert not classes_of(1001, [(chain, chain + 1)]).any()
    assert not classes_of(1001, [(chain.flip(0) + 1, chain.flip(0))]).any()


def _plain_union_find(size, edges):
    parents = list(range(size))

    def root(slot):
        while parents[slot] != slot:
            slot = parents[slot]
        return slot

    for first, second in edges:
        parents[root(first)] = root(second)
    return [root(slot) for slot in range(size)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 12).flatmap(
        lambda size: st.tuples(st.just(size), st.lists(st.tuples(*[st.integers(0, size - 1)] * 2), max_size=14))
    )
)
def test_classes_are_those_of_a_plain_union_find(case):
    size, edges = case
    ours, theirs = classes_of(size, _pairs([[edge] for edge in edges])).tolist(), _plain_union_find(size, edges)
    assert len(set(ours)) == len(set(theirs)) == len(set(zip(ours, theirs, strict=True)))
    assert sorted(set(ours)) == list(range(len(set(ours))))
