"""Masks from elsewhere on weights that several processes hold; scores, which need them whole."""

import torch
from distributed_runs import join_group, launch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_prune import ConfigError, FixedMasks, MagnitudePruner


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def make_masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.rand(7, 5, generator=generator) < 0.5,
        "2.weight": torch.tensor([True, False, True])[:, None],
    }


def train(model: nn.Module) -> MagnitudePruner:
    pruner = MagnitudePruner(model, FixedMasks(make_masks()), masking="resident")
    model = pruner.prepare(inplace=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    pruner.attach_optimizers(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.full((2, 5), step + 1.0)).square().mean().backward()
        optimizer.step()
        pruner.step()
    return pruner


def sharded() -> tuple[list, float, list]:
    join_group()
    model, messages = make_net(), []
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    score = {"scheduler": {"begin_step": 1}, "score": lambda weight, parameter: weight.abs()}
    for config in (FixedMasks.from_zeros(), {"global_config": score}):
        try:
            MagnitudePruner(model, config, masking="resident").prepare(inplace=True)
        except ConfigError as error:
            messages.append(str(error))
    pruner = train(model)
    pruner.finalize(inplace=True)
    weights = [parameter.full_tensor().detach() for parameter in model.parameters()]
    return weights, pruner.report().sparsity, messages


def test_given_masks_hold_on_sharded_weights_as_on_whole_weights():
    whole = make_net()
    pruner = train(whole)
    expected = pruner.finalize(inplace=True)
    for weights, sparsity, messages in launch(sharded, 2):
        for ours, theirs in zip(weights, expected.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach())
        assert not weights[0][~make_masks()["0.weight"]].any()
        assert not weights[2][1].any()
        assert sparsity == pruner.report().sparsity
        assert "from_zeros() cannot look at 0.weight, which is sharded" in messages[0]
        assert "global_config.score needs the whole weight in one process, but 0.weight is sharded" in messages[1]
