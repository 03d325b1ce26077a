"""Operations over places keep channels apart; those over channels keep the channels."""

import pytest
import torch
from dead_channels import Net, kill, sizes, slimmed
from torch import nn

FOLLOWED = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 1, 1),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(2),
    nn.AdaptiveMaxPool2d(2),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bicubic"),
    nn.LPPool2d(2, 2),
]


def test_pooling_and_resizing_keep_constants_apart_from_the_rest():
    """All of them one after another, each behind a layer with constant channels."""
    layers = [layer for pool in FOLLOWED for layer in (nn.Conv2d(4, 4, 1), pool)]
    net = nn.Sequential(*layers, nn.Conv2d(4, 2, 1))
    for layer in layers[::2]:
        kill(layer, [1, 2], 0.5)
    result = slimmed(net, torch.randn(2, 4, 16, 16))
    assert [layer.slim_channels for layer in result.layers] == [2] * len(FOLLOWED) + [2]


def test_a_mean_that_counts_zeros_of_the_padding_keeps_what_is_not_zero():
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(5, 2, 1))
    kill(net[0], [1])
    kill(net[0], [2], 0.5)
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"0.weight": (4, 2, 1, 1), "2.weight": (2, 4, 1, 1)}


@pytest.mark.parametrize(
    ("reduce", "left"),
    [
        (lambda h: h.mean((2, 3)), 3),
        (lambda h: h.amax((2, 3)), 3),
        (lambda h: h.max(-1)[0].min(-1)[0], 3),
        (lambda h: h.sum((2, 3)), 4),  # a sum of constants depends on the number of places
        (lambda h: h.std((2, 3)), 5),
    ],
)
def test_means_over_places_keep_constants(reduce, left):
    net = Net(lambda self, x: self.o(reduce(self.c(x))), c=nn.Conv2d(2, 5, 1), o=nn.Linear(5, 2))
    kill(net.c, [1])
    kill(net.c, [2], 0.5)
    result = slimmed(net, torch.randn(2, 2, 4, 4))
    assert (result.model.c.out_channels, result.model.o.in_features) == (left, left)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LocalResponseNorm(2), "pad in 1"),
        (nn.FractionalMaxPool2d(2, 2), "fractional_max_pool2d in 1"),
        (nn.Softmax2d(), "softmax in 1"),
        (nn.ChannelShuffle(5), "channel_shuffle in 1, whose sizes are written in the forward"),
        (nn.RReLU(), "rrelu in 1"),
    ],
)
def test_what_is_taken_over_channels_or_not_known_keeps_them(layer, reason):
    net = nn.Sequential(nn.Conv2d(2, 5, 1), layer, nn.Conv2d(5, 2, 1)).eval()
    kill(net[0], [1, 2])
    result = slimmed(net, torch.randn(2, 2, 4, 4))
    assert sizes(result) == {}
    assert result.layers[0].pinned == {reason: 5}


def test_a_table_of_bags_is_not_followed_and_says_so():
    net = nn.Sequential(nn.EmbeddingBag(9, 6), nn.Linear(6, 2))
    net[0].weight.data[:, [1, 2]] = 0.0
    result = slimmed(net, torch.randint(0, 9, (2, 4)))
    assert sizes(result) == {}
    assert result.layers[0].pinned == {"embedding_bag in 0": 9}
