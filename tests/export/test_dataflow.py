"""What a parameter meets in one call: the inputs of the model, or only what the model holds itself."""

import pytest
import torch
import torch.nn.functional as F
from coreml_nets import Decoder, Small, Tagger, UNet, ViT
from torch import nn

from lightning_prune.export.dataflow import watch
from lightning_prune.export.standalone import Standalone


def live_rows(model, *inputs):
    """For each parameter of rank 2 and more, the fraction of rows that a call with other inputs needs."""
    standalone = Standalone(model.eval(), inputs)
    weights = {name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.ndim > 1}
    return {name: float(met.live.float().mean()) for name, met in watch(standalone, weights).items()}


def test_layers_of_queries_and_tables_are_constant_and_cross_attention_is_so_in_part():
    assert live_rows(Decoder(), torch.randn(1, 10, 16)) == {
        "query.weight": 0,
        "position.weight": 0,
        "own.in_proj_weight": 0,
        "own.out_proj.weight": 0,
        "bias.0.weight": 0,
        "bias.2.weight": 0,
        "cross.in_proj_weight": pytest.approx(2 / 3),  # of query, key and value, the query
        "cross.out_proj.weight": 1,
        "out.weight": 1,
    }


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Small(), torch.rand(1, 3, 8, 8)),
        (ViT(), torch.rand(1, 3, 32, 32)),
        (Tagger(), torch.zeros(1, 4, dtype=torch.long)),
        (Tagger("GRU", layers=1), torch.zeros(1, 4, dtype=torch.long)),
        (UNet(), torch.rand(1, 1, 8, 8)),
    ],
    ids=["conv", "vit", "lstm", "gru", "unet"],
)
def test_every_weight_of_an_ordinary_network_meets_the_input(model, inputs):
    assert set(live_rows(model, inputs).values()) == {1.0}


class Computes(nn.Module):
    """A weight that is computed from another before it is used on the input: its zeros are lost, not folded away."""

    def __init__(self, how):
        super().__init__()
        self.fc, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.how = how

    def forward(self, x):
        return F.linear(x, self.how(self, self.fc.weight))


class Rotates(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.eye(8))

    def forward(self, weight):
        return weight @ self.by


@pytest.mark.parametrize(
    "how",
    [
        lambda self, weight: (weight - weight.mean()) / weight.std(),
        lambda self, weight: weight / (weight @ torch.ones(8)).norm(),
        lambda self, weight: weight + self.other.weight @ self.other.weight,
        lambda self, weight: weight @ self.other.weight,
        lambda self, weight: self.other.weight @ weight,
        lambda self, weight: self.rotate(weight),
        lambda self, weight: self.other(weight),
        lambda self, weight: torch.zeros(8, 8).copy_(weight),
        lambda self, weight: torch.cat([weight[:4] * 2, weight[4:]]),
    ],
)
def test_a_weight_that_another_is_computed_from_is_not_constant(how):
    model = Computes(how)
    model.rotate = Rotates()
    assert live_rows(model, torch.randn(2, 8))["fc.weight"] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.detach().clone(),
        lambda x: (x > 0).float(),
        lambda x: torch.zeros(2, 8).copy_(x),
        lambda x: torch.zeros(3, 8).index_put_((torch.tensor([0]),), x[0])[:2],
        lambda x: torch.full((2, 8), float(x.sum())),
        lambda x: torch.ones(int((x > 0).sum()) + 1, 8),
        lambda x: torch.stack(x.unbind())[[1, 0]],
    ],
)
def test_whatever_is_made_of_an_input_depends_on_it(make):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(make(x))

    assert live_rows(Net(), torch.randn(2, 8)) == {"fc.weight": 1}


def test_what_only_has_the_shape_of_an_input_does_not_depend_on_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.fc(torch.zeros_like(x)) + self.fc(x.new_ones(x.shape))

    assert live_rows(Net(), torch.randn(2, 8)) == {"fc.weight": 0}


def test_a_layer_that_is_used_on_constants_and_on_the_input_is_live_under_all_its_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight
            self.query = nn.Parameter(torch.randn(2, 8))

        def forward(self, x):
            return self.one(self.query) + self.two(x)

    model = Net()
    assert live_rows(model, torch.randn(2, 8)) == {"one.weight": 1, "two.weight": 1, "query": 0}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
