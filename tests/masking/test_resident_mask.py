"""Resident masks: what is pruned is selected, not multiplied, and gradients keep their graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune import MagnitudePruner
from lightning_prune.masking.products import keep_in_place, multiply_in_place, split

INF = float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_split_selects_bit_by_bit_whatever_the_weights_are(dtype, memory_format):
    values = torch.tensor([INF, -INF, -1.0, 2.0, -0.0, 1e-7, INF, -3.0]).repeat(3, 2, 2, 1).to(dtype)
    dense = values.contiguous(memory_format=memory_format).clone()
    mask = (torch.rand(values.shape) < 0.5).to(torch.uint8).contiguous(memory_format=memory_format)
    kept, stash = dense.clone(), torch.empty_like(dense)
    split(kept, mask, stash)
    zero = torch.zeros((), dtype=dtype)
    assert torch.equal(kept, torch.where(mask == 1, dense, zero))
    assert torch.equal(stash, torch.where(mask == 1, zero, dense))
    assert not torch.signbit(kept[mask == 0]).any()
    again = dense.clone()
    keep_in_place(again, mask)
    assert torch.equal(again, kept)
    assert not torch.signbit(again[mask == 0]).any()


def test_a_split_by_a_mask_that_broadcasts_selects_whole_channels():
    dense = torch.tensor([[[1.0, INF]], [[-2.0, -INF]]])
    kept, stash = dense.clone(), torch.empty_like(dense)
    split(kept, torch.tensor([[[1]], [[0]]], dtype=torch.uint8), stash)
    assert kept.tolist() == [[[1.0, INF]], [[0.0, 0.0]]]
    assert stash.tolist() == [[[0.0, 0.0]], [[-2.0, -INF]]]


def test_gradients_are_multiplied_so_that_an_overflow_is_not_hidden():
    gradient = torch.tensor([INF, 1.0, -2.0])
    multiply_in_place(gradient, torch.tensor([0, 0, 1], dtype=torch.uint8))
    assert gradient[0].isnan()
    assert gradient[1:].tolist() == [0.0, -2.0]


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_an_infinite_weight_that_is_kept_stays_infinite(masking):
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight[1, 2], layer.weight[3, 0] = INF, -INF
    rules = {
        "global_config": {"scheduler": {"update_steps": [1, 2, 3]}, "initial_sparsity": 0.2, "target_sparsity": 0.5}
    }
    pruner = MagnitudePruner(layer, rules, masking=masking)
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner.attach_optimizers(optimizer)
    for _ in range(4):
        layer.weight.grad = None
        optimizer.step()
        pruner.step()
        assert (layer.weight[1, 2].item(), layer.weight[3, 0].item()) == (INF, -INF)
    pruner.finalize(inplace=True)
    assert not layer.weight.isnan().any()
    assert int((layer.weight == 0).sum()) == 10


def train_by_second_order(masking: str, penalty: str) -> list[torch.Tensor]:
    """Train with a penalty on the gradients, which has to be differentiated through them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    rules = {
        "global_config": {"scheduler": {"update_steps": [1, 3, 5]}, "initial_sparsity": 0.3, "target_sparsity": 0.7}
    }
    pruner = MagnitudePruner(model, rules, masking=masking)
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner.attach_optimizers(optimizer)
    for _ in range(8):
        loss = (model(torch.randn(16, 8)) - torch.randn(16, 4)).square().mean()
        optimizer.zero_grad()
        if penalty == "backward":
            loss.backward(create_graph=True)
            gradients = [parameter.grad for parameter in model.parameters()]
            optimizer.zero_grad()
        else:
            gradients = list(torch.autograd.grad(loss, list(model.parameters()), create_graph=True))
        (10 * sum(gradient.square().sum() for gradient in gradients)).backward()
        optimizer.step()
        pruner.step()
    pruner.finalize(inplace=True)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("penalty", ["backward", "grad"])
def test_second_order_gradients_are_those_of_hooks(penalty):
    for ours, theirs in zip(
        train_by_second_order("resident", penalty), train_by_second_order("hook", penalty), strict=True
    ):
        assert torch.equal(ours, theirs)
