"""Layers with weights: which channels are left of small networks whose channels were made dead."""

import pytest
import torch
from dead_channels import Net, answers, kill, sizes, slimmed, stir
from torch import nn
from torch.nn import functional

from lightning_prune.slim import slim

CONVS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


@pytest.mark.parametrize("rank", CONVS)
def test_filters_go_with_their_norms_and_live_shifts_end_in_the_next_bias(rank):
    conv, norm = CONVS[rank]
    net = nn.Sequential(conv(2, 6, 3), norm(6), nn.ReLU(), conv(6, 4, 3), nn.ReLU(), conv(4, 2, 1))
    kill(net[0], [1, 4], 0.7)
    kill(net[3], [0], 0.3)
    result = slimmed(stir(net), torch.randn(2, 2, *[6] * rank))
    kernel = [3] * rank
    assert sizes(result) == {
        "0.weight": (4, 2, *kernel),
        "3.weight": (3, 4, *kernel),
        "5.weight": (2, 3, *[1] * rank),
    }
    first, batch_norm, _, second, _, last = result.model
    assert (first.in_channels, first.out_channels, second.in_channels, last.in_channels) == (2, 4, 4, 3)
    assert batch_norm.num_features == len(batch_norm.running_mean) == len(batch_norm.bias) == 4
    assert result.pinned == {"an output of the model": 2}


@pytest.mark.parametrize("rank", CONVS)
def test_dead_filters_of_transposed_convolutions_go(rank):
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    net = nn.Sequential(conv(2, 6, 3, 2), nn.ReLU(), conv(6, 4, 3, bias=False), nn.ReLU(), conv(4, 2, 1))
    kill(net[0], [1, 4])
    kill(net[2], [0])
    result = slimmed(net, torch.randn(2, 2, *[3] * rank))
    assert [tuple(net.weight.shape[:2]) for net in result.model[::2]] == [(2, 4), (4, 3), (3, 2)]
    assert (result.model[2].in_channels, result.model[2].out_channels) == (4, 3)
    assert [layer.channels for layer in result.layers] == [6, 4, 2]


def test_a_layer_without_a_bias_gets_one_for_the_constants_that_it_read_and_only_the_rows_that_stay():
    net = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))
    kill(net[0], [0, 5], 0.5)
    kill(net[2], [1])
    net[2].weight.data[1, 0] = 1.0  # a constant as well: all that it reads is constant
    model = slimmed(net, torch.randn(4, 3)).model
    assert [tuple(layer.weight.shape) for layer in model[::2]] == [(4, 3), (4, 4), (2, 4)]
    assert model[2].bias.shape == (4,)
    assert model[4].bias.shape == (2,)
    assert net[2].bias is None
    assert net[4].bias is None


def test_a_frozen_layer_gets_a_frozen_bias():
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2, bias=False))
    kill(net[0], [0, 5], 0.5)
    net[1].requires_grad_(False)
    model = slimmed(net, torch.randn(4, 3)).model
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]


def test_a_constant_that_zero_padding_would_show_at_the_border_stays_and_zero_goes():
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 2, 3, padding=1))
    kill(net[0], [1])
    kill(net[0], [2, 3], 0.5)
    result = slimmed(net, torch.randn(2, 2, 4, 4))
    assert sizes(result) == {"0.weight": (4, 2, 1, 1), "1.weight": (2, 4, 3, 3)}
    assert result.layers[0].pinned == {"constant, but not zero, and 1 pads with zeros or has no bias for it": 2}


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_padding_shows_a_constant_nowhere(mode):
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 2, 3, padding=1, padding_mode=mode))
    kill(net[0], [1, 2], 0.5)
    assert sizes(slimmed(net, torch.randn(2, 2, 4, 4))) == {"0.weight": (3, 2, 1, 1), "1.weight": (2, 3, 3, 3)}


def test_a_channel_that_nothing_reads_goes_though_it_lives():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].weight.data[:, [0, 3]] = 0.0
    assert sizes(slimmed(net, torch.randn(4, 3))) == {"0.weight": (4, 3), "2.weight": (2, 4)}


def test_what_only_dead_channels_read_goes_all_the_way_back():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    kill(net[2], [1, 2, 3, 4], 0.5)
    net[2].weight.data[0, :4] = 0.0
    assert [tuple(layer.weight.shape) for layer in slimmed(net, torch.randn(4, 3)).model[::2]] == [
        (2, 3),
        (1, 2),
        (2, 1),
    ]


def test_a_depthwise_filter_goes_with_its_channel():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 2, 1),
    )
    stir(net)
    for norm in (net[1], net[4]):
        norm.weight.data[[1, 2]] = 0.0
        norm.bias.data[[1, 2]] = 0.0
    net[4].weight.data[5] = 0.0  # its shift lives
    model = slimmed(net, torch.randn(2, 2, 5, 5)).model
    assert [tuple(model[index].weight.shape[:2]) for index in (0, 3, 6)] == [(3, 2), (3, 1), (2, 3)]
    assert model[3].groups == model[3].in_channels == model[3].out_channels == 3


def test_groups_of_a_convolution_go_as_a_whole_or_stay():
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    kill(net[0], [0, 2, 3])  # half of the first group, all of the second
    kill(net[2], [1], 0.5)
    model = slimmed(net, torch.randn(2, 2, 5, 5)).model
    assert [tuple(layer.weight.shape[:2]) for layer in model[::2]] == [(6, 2), (3, 2), (2, 3)]
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (3, 6, 3)


def test_groups_of_a_transposed_convolution_go_as_a_whole():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 8, 2, groups=4), nn.Conv2d(8, 2, 1))
    kill(net[0], [1])
    kill(net[2], [1])
    net[2].bias.data[2:4] = 0.0
    model = slimmed(net, torch.randn(2, 2, 5, 5)).model
    assert [tuple(model[index].weight.shape[:2]) for index in (0, 2, 3)] == [(3, 2), (3, 2), (2, 6)]
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (3, 3, 6)


def test_instance_norms_follow_with_tensors_and_without():
    net = nn.Sequential(
        nn.Conv2d(2, 8, 1),
        nn.InstanceNorm2d(8, affine=True),
        nn.Conv2d(8, 4, 1),
        nn.InstanceNorm2d(4),
        nn.Conv2d(4, 2, 1),
    )
    kill(net[0], [2, 3], 0.4)
    kill(net[2], [0])
    net[1].bias.data.normal_()
    model = slimmed(net, torch.randn(2, 2, 5, 5)).model
    assert [tuple(layer.weight.shape[:2]) for layer in model[::2]] == [(6, 2), (3, 6), (2, 3)]
    assert (model[1].num_features, model[3].num_features) == (6, 3)


def test_columns_of_an_embedding_go():
    net = nn.Sequential(nn.Embedding(9, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].weight.data[:, [1, 2]] = 0.0
    net[0].weight.data[:, 3] = 0.5
    model = slimmed(net, torch.randint(0, 9, (2, 4))).model
    assert model[0].embedding_dim == model[2].in_features == 3


def test_a_head_tied_to_an_embedding_stays_tied():
    net = Net(lambda self, x: self.head(self.mix(self.words(x))))
    net.words, net.mix, net.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
    net.head.weight = net.words.weight
    net.words.weight.data[:, 1] = 0.0
    kill(net.mix, [1, 2])
    model = slimmed(net, torch.randint(0, 9, (2, 4))).model
    assert model.head.weight is model.words.weight
    assert model.words.weight.shape == (9, 5)
    assert (model.mix.in_features, model.mix.out_features, model.head.in_features) == (5, 5, 5)


def _twice(self, x):
    return self.o(functional.relu(self.a(functional.relu(self.i(x))))) + self.o(self.a(functional.relu(self.j(x))))


@pytest.mark.parametrize(("second", "left"), [(0.5, 5), (0.7, 6)])
def test_a_layer_that_is_used_twice_takes_a_constant_only_if_it_is_the_same_each_time(second, left):
    net = Net(_twice, i=nn.Linear(3, 6), j=nn.Linear(3, 6), a=nn.Linear(6, 4, bias=False), o=nn.Linear(4, 2))
    kill(net.i, [1], 0.5)
    kill(net.j, [1], second)
    result = slimmed(net, torch.randn(2, 3))
    assert result.model.a.in_features == result.model.i.out_features == result.model.j.out_features == left
    if left == 6:
        assert "constant, but not the same at each use of the bias of a" in result.pinned


def test_a_module_with_two_names_stays_one_module_and_its_bias_is_added_once():
    net = Net(lambda self, x: self.o(self.second(functional.relu(self.i(x)))))
    net.i, net.first, net.o = nn.Linear(3, 6), nn.ModuleDict({"a": nn.Linear(6, 4, bias=False)}), nn.Linear(4, 2)
    net.second = net.first["a"]
    kill(net.i, [1], 0.5)
    model = slimmed(net, torch.randn(2, 3)).model
    assert model.second is model.first["a"]
    assert model.second.in_features == 5


def test_two_layers_with_one_weight_both_get_a_bias():
    net = Net(lambda self, x: self.o(self.a(self.i(x).sigmoid())) * self.o(self.b(self.i(x).sigmoid())))
    net.i, net.a, net.b, net.o = (
        nn.Linear(3, 6),
        nn.Linear(6, 4, bias=False),
        nn.Linear(6, 4, bias=False),
        nn.Linear(4, 2),
    )
    net.b.weight = net.a.weight
    kill(net.i, [1], 0.5)
    model = slimmed(net, torch.randn(2, 3)).model
    assert model.a.weight is model.b.weight
    assert model.a.bias is not None
    assert model.b.bias is not None
    assert model.a.in_features == model.b.in_features == 5


def test_a_bias_shared_by_two_layers_takes_nothing_that_only_one_of_them_reads():
    def forward(self, x):
        return self.o(functional.relu(self.a(functional.relu(self.i(x)))) + functional.relu(self.b(x)))

    net = Net(forward, i=nn.Linear(3, 4), a=nn.Linear(4, 6), b=nn.Linear(3, 6), o=nn.Linear(6, 2))
    net.b.bias = net.a.bias
    kill(net.i, [1], 0.5)
    kill(net.a, [1, 2], 0.5)
    net.b.weight.data[1] = 0.0
    model = slimmed(net, torch.randn(2, 3)).model
    assert model.a.bias is model.b.bias
    assert (model.i.out_features, model.a.out_features, model.b.out_features) == (4, 5, 5)


def test_a_parameter_that_a_forward_multiplies_with_is_cut_in_both_axes():
    net = Net(lambda self, x: self.o(functional.relu(functional.relu(self.i(x)) @ self.w)))
    net.i, net.w, net.o = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 2)
    kill(net.i, [1], 0.5)  # no bias can take it
    kill(net.i, [2])
    net.w.data[:, 1] = 0.0
    assert slimmed(net, torch.randn(2, 3)).model.w.shape == (5, 3)


class Conv1D(nn.Module):
    """A layer as GPT-2 of transformers has it: the weight transposed, and its width in a number of its own."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return rows.view(*x.size()[:-1], self.nf)


def test_a_linear_layer_of_transformers_whose_forward_names_its_width_is_cut():
    net = nn.Sequential(Conv1D(8, 4), nn.GELU(), Conv1D(4, 8))
    with torch.no_grad():
        net[0].weight[:, [1, 2, 5]] = 0
    result = slimmed(net, torch.randn(2, 3, 4))
    small = result.model
    assert (small[0].nf, small[0].nx, small[2].nf, small[2].nx) == (5, 4, 4, 5)
    assert sizes(result) == {"0.weight": (4, 5), "2.weight": (5, 4)}


def test_values_of_attention_pass_and_queries_and_keys_stay():
    def forward(self, x):
        heads = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    net = Net(forward, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(8, 8))
    for part in (net.q, net.k, net.v):
        kill(part, [1, 5])
    result = slimmed(net, torch.randn(2, 5, 8))
    assert sizes(result) == {"v.weight": (6, 8), "o.weight": (8, 6)}
    reasons = {layer.name: layer.pinned for layer in result.layers}
    assert reasons["q.weight"] == reasons["k.weight"] == {"scaled_dot_product_attention, queries and keys": 8}


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.LayerNorm(6), "layer_norm in b"),
        (nn.GroupNorm(2, 6), "group_norm in b"),
        (nn.Softmax(-1), "softmax in b"),
        (nn.Bilinear(6, 6, 6), "bilinear in b"),
        (nn.LSTM(6, 6), "lstm in b"),
        (nn.GRU(6, 6), "gru in b"),
    ],
)
def test_what_mixes_channels_keeps_them_and_is_named(middle, reason):
    def forward(self, x):
        hidden = self.a(x)
        hidden = self.b(hidden, hidden) if isinstance(self.b, nn.Bilinear) else self.b(hidden)
        return self.o(hidden[0] if isinstance(hidden, tuple) else hidden)

    net = Net(forward, a=nn.Linear(3, 6), b=middle, o=nn.Linear(6, 2))
    kill(net.a, [1, 2])
    result = slimmed(net, torch.randn(4, 3))
    assert sizes(result) == {}
    assert result.layers[0].pinned == {reason: 6}


def test_the_feed_forward_of_a_transformer_layer_is_cut():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    kill(net.linear1, [0, 1, 2], 0.4)
    assert sizes(slimmed(net.eval(), torch.randn(2, 6, 8))) == {"linear1.weight": (13, 8), "linear2.weight": (8, 13)}


def test_a_layer_of_which_all_is_dead_keeps_one_channel():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], range(6), 0.5)
    assert sizes(slimmed(net, torch.randn(2, 3))) == {"0.weight": (1, 3), "2.weight": (2, 1)}


def test_single_precision_is_as_near_as_rounding_the_bias_allows():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], [1, 2], 0.5)
    inputs = torch.randn(4, 3)
    result = slim(net, inputs)
    assert result.difference <= 1e-9
    torch.testing.assert_close(answers(result.model, inputs), answers(net, inputs))
