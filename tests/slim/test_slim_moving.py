"""Operations that move elements: channels are found again wherever they went."""

import pytest
import torch
from dead_channels import Net, kill, sizes, slimmed
from torch import nn


def _conv(outputs, inputs=2):
    return nn.Conv2d(inputs, outputs, 1)


def test_pieces_put_side_by_side_lose_their_own_channels():
    net = Net(lambda self, x: self.o(torch.cat([self.a(x), self.b(x)], 1)), a=_conv(4), b=_conv(5), o=_conv(2, 9))
    kill(net.a, [1, 2, 3], 0.5)
    kill(net.b, [0])
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {
        "a.weight": (1, 2, 1, 1),
        "b.weight": (4, 2, 1, 1),
        "o.weight": (2, 5, 1, 1),
    }


def _gated(self, x):
    number, gate = self.a(x).chunk(2, 1)
    return self.o(number * torch.sigmoid(gate))


@pytest.mark.parametrize("forward", [_gated, lambda self, x: self.o(nn.functional.glu(self.a(x), 1))])
def test_a_channel_goes_with_its_gate_in_the_other_half(forward):
    net = Net(forward, a=_conv(8), o=_conv(2, 4))
    kill(net.a, [1, 2])  # their gates, 5 and 6, live
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"a.weight": (4, 2, 1, 1), "o.weight": (2, 2, 1, 1)}


def _sliced(hidden):
    half = hidden.shape[1] // 2
    return hidden[:, :half], hidden[:, half:]


@pytest.mark.parametrize(
    ("parts", "dead", "left"),
    [(lambda hidden: hidden.chunk(2, 1), [1, 2, 5], 3), (_sliced, [1, 5], 3)],
)
def test_halves_stay_halves(parts, dead, left):
    def forward(self, x):
        first, second = parts(self.a(x))
        return self.o(first) + self.p(second)

    net = Net(forward, a=_conv(8), o=_conv(2, 4), p=_conv(2, 4))
    kill(net.a, dead)
    model = slimmed(net, torch.randn(2, 2, 4, 4)).model
    assert (model.a.out_channels, model.o.in_channels, model.p.in_channels) == (2 * left, left, left)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (lambda h: h.split([3, 5], 1), "split_with_sizes, whose sizes are written in the forward"),
        (lambda h: (h[:, :3], h[:, 3:]), "slice, whose sizes are written in the forward"),
        (
            lambda h: (h.view(2, 8, 16)[:, :3].view(2, 3, 4, 4), h[:, 3:]),
            "view, whose sizes are written in the forward",
        ),
    ],
)
def test_sizes_that_a_forward_has_written_down_are_kept_and_named(parts, reason):
    def forward(self, x):
        first, second = parts(self.a(x))
        return self.o(first) + self.p(second)

    net = Net(forward, a=_conv(8), o=_conv(2, 3), p=_conv(2, 5))
    kill(net.a, [1, 2, 5])
    result = slimmed(net, torch.randn(2, 2, 4, 4))
    assert sizes(result) == {}
    assert result.layers[0].pinned == {reason: 8}


def test_a_flattened_channel_takes_all_of_its_columns():
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 2))
    kill(net[0], [1, 3], 0.5)
    kill(net[3], [1])
    model = slimmed(net, torch.randn(2, 2, 5, 5)).model
    assert (model[3].in_features, model[3].out_features, model[5].in_features) == (27, 6, 6)


@pytest.mark.parametrize(
    "move",
    [
        lambda h: h.permute(0, 2, 3, 1),
        lambda h: h.flatten(2).transpose(1, 2),
        lambda h: h.movedim(1, -1).flip(1).roll(1, 1),
        lambda h: h.view(*h.shape[:2], -1).unsqueeze(1).squeeze(1).mT,
        lambda h: torch.stack([h, h], -1).select(-1, 0).permute(0, 2, 3, 1),
        lambda h: h.expand(2, *h.shape)[1].repeat(1, 1, 2, 1).permute(0, 2, 3, 1),
    ],
)
def test_channels_are_found_again_in_another_order_of_dimensions(move):
    net = Net(lambda self, x: self.o(move(self.c(x))), c=_conv(5), o=nn.Linear(5, 2))
    kill(net.c, [1, 3], 0.5)
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"c.weight": (3, 2, 1, 1), "o.weight": (2, 3)}


def test_pixels_shuffled_out_of_channels_go_together():
    net = nn.Sequential(_conv(12), nn.PixelShuffle(2), _conv(2, 3))
    kill(net[0], [0, 1, 2, 3, 5])
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"0.weight": (8, 2, 1, 1), "2.weight": (2, 2, 1, 1)}
    net = nn.Sequential(_conv(3), nn.PixelUnshuffle(2), _conv(2, 12))
    kill(net[0], [1], 0.5)
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"0.weight": (2, 2, 1, 1), "2.weight": (2, 8, 1, 1)}


@pytest.mark.parametrize(
    ("padding", "left"),
    [(nn.ZeroPad2d(1), 4), (nn.ConstantPad2d(1, 0.5), 4), (nn.ReflectionPad2d(1), 3), (nn.CircularPad2d(1), 3)],
)
def test_a_constant_goes_where_the_padding_is_the_same_number(padding, left):
    net = nn.Sequential(_conv(5), padding, nn.Conv2d(5, 2, 3))
    kill(net[0], [1])  # shown by padding with 0.5
    kill(net[0], [2], 0.5)  # shown by padding with 0
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"0.weight": (left, 2, 1, 1), "2.weight": (2, left, 3, 3)}


def test_even_rows_stay_even_when_heads_are_written_as_sizes():
    """Queries are pinned; values in heads of a fixed number lose the same number in each head."""

    def forward(self, x):
        value = self.v(x).view(*x.shape[:2], 2, -1)
        return self.o(value.transpose(1, 2).mean(2).flatten(1))

    net = Net(forward, v=nn.Linear(6, 8), o=nn.Linear(8, 2))
    kill(net.v, [0, 1, 6])
    assert sizes(slimmed(net, torch.randn(2, 5, 6))) == {"v.weight": (6, 6), "o.weight": (2, 6)}
