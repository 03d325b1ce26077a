"""Which slots of small networks are coupled, which of their classes are chosen, and why the rest stays."""

import torch
from dead_channels import Net, kill
from torch import nn

from lightning_prune.slim.choosing import choose, uses_of
from lightning_prune.slim.cutting import apply_cut, cut_of
from lightning_prune.slim.graph import as_call, capture
from lightning_prune.slim.names import standing_names, states_of
from lightning_prune.slim.walk import walk


def _follow(net, inputs):
    net.eval()
    graph = capture(net, as_call(inputs))
    found = walk(graph, net)
    return found, choose(found, uses_of(graph.nodes, graph.states, standing_names(net)))


def test_filters_biases_norms_and_columns_of_one_channel_are_one_class():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    found, choice = _follow(net, torch.randn(2, 2, 4, 4))
    classes = {key: choice.classes[ids].tolist() for key, ids in found.flow.slots.items()}
    filters = classes["0.weight", 0]
    assert len(set(filters)) == 4
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert classes[name, 0] == filters
    assert classes["4.weight", 1] == [number for number in filters for _ in range(4)]  # 2 x 2 places of each
    assert not choice.gone[filters].any()


def test_a_cut_names_what_stays_of_each_axis_and_what_is_added_to_biases():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    kill(net[0], [1], 0.5)
    found, choice = _follow(net, torch.randn(2, 3))
    cut = cut_of(found.flow, choice)
    kept = {(name, axis): indices.tolist() for name, axes in cut.kept.items() for axis, indices in axes.items()}
    assert kept == {("0.weight", 0): [0, 2, 3], ("0.bias", 0): [0, 2, 3], ("2.weight", 1): [0, 2, 3]}
    assert cut.new_biases == {"2.bias": "2"}
    torch.testing.assert_close(cut.shifts["2.bias"], 0.5 * net[2].weight[:, 1].detach().double())
    apply_cut(net, cut)
    assert (net[0].out_features, net[2].in_features, len(net[2].bias)) == (3, 3, 2)


def test_a_tensor_with_two_names_stands_under_its_first():
    net = Net(None, a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    net.b.weight = net.a.weight
    assert standing_names(net)["b.weight"] == "a.weight"
    assert list(states_of(net)) == ["a.weight", "a.bias", "b.bias"]
