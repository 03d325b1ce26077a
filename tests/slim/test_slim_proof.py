"""The proof: what counts as the same, on which inputs, in which precision."""

import math

import pytest
import torch
from dead_channels import Net, kill
from torch import nn

from lightning_prune import SlimError
from lightning_prune.slim import slim, slimming
from lightning_prune.slim.graph import Call
from lightning_prune.slim.proof import Doubled, difference, inputs_of, larger_batch, outputs_of

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, NAN, INF], [1.0, NAN, INF], 0.0),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([1e-3], [0.0], 1e-3),
        ([1.0], [1.0, 2.0], INF),
        ([1], [1.0], INF),
        ([1], [1], 0.0),
        ([1], [2], INF),
        ([True], [False], INF),
        ([], [], 0.0),
    ],
)
def test_a_difference_is_a_fraction_of_the_largest_output(ours, theirs, expected):
    assert difference([torch.tensor(ours)], [torch.tensor(theirs)]) == pytest.approx(expected)


def test_answers_of_another_number_are_no_answers():
    assert difference([], [torch.ones(1)]) == INF


def test_five_fresh_inputs_are_like_the_example_and_far_from_it():
    call = Call((torch.randn(4, 3), torch.tensor([1, 5, 5, 9])), {"flag": torch.tensor([True, False]), "k": 3})
    first, *fresh = inputs_of(call)
    assert torch.equal(first.args[0], call.args[0].double())
    assert len(fresh) == 5
    for other in fresh:
        assert other.args[0].dtype is torch.float64
        assert not torch.equal(other.args[0], first.args[0])
        assert set(other.args[1].tolist()) <= {1, 5, 9}
        assert other.kwargs["flag"].dtype is torch.bool
        assert other.kwargs["k"] == 3
    assert [*inputs_of(call)][3].args[0].equal(fresh[2].args[0])


def test_a_larger_batch_is_tried_where_all_tensors_have_one():
    assert larger_batch(Call((torch.ones(4, 3), torch.ones(4)), {})).args[1].shape == (8,)
    assert larger_batch(Call((torch.ones(4, 3), torch.ones(5)), {})) is None
    assert larger_batch(Call((torch.ones(4), torch.tensor(1.0)), {})) is None


def test_no_operation_of_the_forward_leaves_double_precision():
    class Narrow(nn.Module):
        def forward(self, x):
            return x.float() + torch.zeros(2, dtype=torch.float16) + x.to(torch.bfloat16)

    (output,) = outputs_of(Narrow(), Call((torch.tensor([1 / 3, 1e-9], dtype=torch.float64),), {}))
    assert output.tolist() == [2 / 3, 2e-9]
    with Doubled():
        assert torch.ones(2, dtype=torch.int32).dtype is torch.int32


def test_a_cut_that_computes_something_else_is_refused_with_the_place(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], [1, 4], 0.5)

    def wrong(model, cut, values=None):
        model[2].bias.data += 1.0

    monkeypatch.setattr(slimming, "apply_cut", wrong)
    monkeypatch.setattr(slimming, "pins_at", lambda *arguments: [])
    with pytest.raises(SlimError, match=r"must compute the same as Sequential, but its outputs differ .* linear in "):
        slim(net, torch.randn(2, 3))


def test_a_batch_of_another_size_that_shows_a_difference_keeps_what_led_there():
    """The number of channels decides at a batch of four what it does not at two."""

    def forward(self, x):
        hidden = self.a(x)
        return self.o(hidden) * (1 if len(x) < 4 else hidden.shape[1])

    net = Net(forward, a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.a, [1, 4], 0.5)
    with pytest.raises(SlimError, match="must compute the same"):
        slim(net, torch.randn(2, 3))
