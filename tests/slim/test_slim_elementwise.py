"""Operations place by place: what is added or multiplied is one channel, and constants are computed through."""

import pytest
import torch
from dead_channels import Net, kill, sizes, slimmed
from torch import nn
from torch.nn import functional


def _residual(self, x):
    hidden = self.stem(x)
    return self.out(functional.relu(hidden + self.b(functional.relu(self.a(hidden)))))


def test_a_channel_of_a_sum_goes_where_every_term_is_constant():
    net = Net(_residual, stem=nn.Linear(2, 6), a=nn.Linear(6, 5), b=nn.Linear(5, 6), out=nn.Linear(6, 2))
    kill(net.stem, [0, 1], 0.5)
    kill(net.b, [1, 2], -0.5)
    kill(net.a, [3])
    assert sizes(slimmed(net, torch.randn(4, 2))) == {
        "stem.weight": (5, 2),
        "a.weight": (4, 5),
        "b.weight": (5, 4),
        "out.weight": (2, 5),
    }


def test_a_channel_goes_with_the_gate_that_closes_it():
    def forward(self, x):
        hidden = functional.relu(self.c(x))
        gate = torch.sigmoid(self.e(functional.relu(self.r(hidden.mean((2, 3), keepdim=True)))))
        return self.out(hidden * gate)

    net = Net(forward, c=nn.Conv2d(2, 6, 3), r=nn.Conv2d(6, 3, 1), e=nn.Conv2d(3, 6, 1), out=nn.Conv2d(6, 2, 1))
    kill(net.c, [0, 1])
    kill(net.r, [2], 0.3)
    assert sizes(slimmed(net, torch.randn(2, 2, 5, 5))) == {
        "c.weight": (4, 2, 3, 3),
        "r.weight": (2, 4, 1, 1),
        "e.weight": (4, 2, 1, 1),
        "out.weight": (2, 4, 1, 1),
    }


def test_layer_scale_goes_with_what_it_scales():
    net = Net(lambda self, x: self.o(self.a(x) + self.scale * self.c(functional.gelu(self.b(x)))))
    net.a, net.b, net.c, net.o = nn.Linear(3, 5), nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
    net.scale = nn.Parameter(torch.randn(5))
    kill(net.a, [1, 2, 3], 0.4)
    net.scale.data[1] = 0.0
    kill(net.c, [2])
    kill(net.b, [0, 1], 0.4)
    model = slimmed(net, torch.randn(2, 3)).model
    assert (len(model.scale), model.a.out_features, model.b.out_features, model.c.out_features) == (3, 3, 4, 3)


def test_positions_go_with_their_channel_where_they_are_the_same_at_each_place():
    net = Net(lambda self, x: self.o(functional.relu(self.a(x) + self.places)), a=nn.Linear(3, 5), o=nn.Linear(5, 2))
    net.places = nn.Parameter(torch.randn(1, 7, 5))
    kill(net.a, [1, 2, 3])
    net.places.data[..., 1] = 0.0
    net.places.data[..., 2] = 0.5
    assert slimmed(net, torch.randn(2, 7, 3)).model.places.shape == (1, 7, 3)


def test_buffers_are_cut_too_and_those_that_no_checkpoint_holds():
    net = Net(lambda self, x: self.o(functional.relu(self.a(x) * self.scale) - self.shift), a=nn.Linear(3, 6))
    net.o = nn.Linear(6, 2)
    net.register_buffer("scale", torch.rand(6) + 1)
    net.register_buffer("shift", torch.rand(6), persistent=False)
    kill(net.a, [1, 4], 0.5)
    model = slimmed(net, torch.randn(2, 3)).model
    assert (len(model.scale), len(model.shift)) == (4, 4)
    assert "shift" not in model.state_dict()


FUNCTIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.GELU(),
    nn.SiLU(),
    nn.Hardswish(),
    nn.Softplus(),
    nn.ELU(),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.PReLU(5),
    nn.Identity(),
    nn.Dropout2d(),
]


def test_activations_turn_constants_into_constants():
    """All of them one after another, each behind a layer with a dead channel."""
    layers = [layer for function in FUNCTIONS for layer in (nn.Conv2d(5, 5, 1), function)]
    net = nn.Sequential(*layers, nn.Conv2d(5, 2, 1)).eval()
    for layer in layers[::2]:
        kill(layer, [1, 2], -0.5)
        layer.weight.data *= 2
    result = slimmed(net, torch.randn(2, 5, 4, 4))
    assert all(layer.slim_channels == 3 for layer in result.layers[:-1] if layer.name.endswith("weight"))
    assert result.model[19].num_parameters == 3


def test_what_is_written_in_place_is_followed():
    def forward(self, x):
        hidden = self.c(x)
        hidden += 1
        hidden.relu_().mul_(2).add_(hidden)
        return self.o(hidden)

    net = Net(forward, c=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.c, [1, 4], 0.5)
    assert sizes(slimmed(net, torch.randn(2, 3))) == {"c.weight": (4, 3), "o.weight": (2, 4)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h * torch.arange(1.0, 7.0), "arange"),
        (lambda h: h * torch.tensor([1.0, 2, 3, 4, 5, 6]), "a tensor made in the forward"),
        (lambda h: h + torch.linspace(0, 1, h.shape[1]), "linspace"),
        (lambda h: h / h.shape[1], "div, whose sizes are written in the forward"),
        (lambda h: h - h.mean(), "mean"),
        (lambda h: h.cumsum(1), "cumsum"),
        (lambda h: torch.einsum("bi,i->bi", h, torch.ones(6, dtype=h.dtype)), "einsum"),
    ],
)
def test_what_cannot_be_followed_is_left_whole_and_named(change, reason):
    net = Net(lambda self, x: self.o(change(self.c(x))), c=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.c, [1, 4], 0.5)
    result = slimmed(net, torch.randn(4, 3))
    assert sizes(result) == {}
    assert reason in result.pinned


def test_a_constant_that_is_cut_to_a_whole_number_is_not_folded_as_it_was():
    net = Net(lambda self, x: self.o(self.c(x).to(torch.int32).to(x.dtype)), c=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.c, [1], 2.7)
    kill(net.c, [2])
    assert sizes(slimmed(net, 5 * torch.randn(4, 3))) == {"c.weight": (5, 3), "o.weight": (2, 5)}
