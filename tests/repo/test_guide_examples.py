"""The longer code of the guide runs as it stands there."""

import re
from pathlib import Path

import torch
from torch import nn

from lightning_prune import FixedMasks, MagnitudePruner, ModuleMagnitudePrunerConfig

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()


def blocks_of(heading: str) -> list[str]:
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def test_scores_of_the_guide_prune_what_they_say():
    taylor, wanda = blocks_of("A score of your own")
    names = {"nn": nn, "torch": torch}
    exec(taylor, names)
    layer, score = nn.Linear(8, 4), names["Taylor"]()
    pruner = MagnitudePruner(layer, ModuleMagnitudePrunerConfig({"begin_step": 1}, score=score))
    layer = pruner.prepare(inplace=True)
    layer(torch.randn(3, 8)).square().sum().backward()
    score.add(layer)
    smallest = (layer.weight_orig * layer.weight_orig.grad).abs().flatten().argsort()[:16].sort().values
    pruner.step()
    assert (layer.weight.flatten() == 0).nonzero().flatten().tolist() == smallest.tolist()

    model, batches = make_net(), [torch.randn(5, 8) for _ in range(3)]
    weight = model[0].weight.detach().clone()
    exec(
        wanda,
        {
            "nn": nn,
            "torch": torch,
            "model": model,
            "batches": batches,
            "MagnitudePruner": MagnitudePruner,
            "ModuleMagnitudePrunerConfig": ModuleMagnitudePrunerConfig,
        },
    )
    scores = (weight.abs() * torch.cat(batches).square().sum(0).sqrt()).view(-1, 4)
    expected = torch.ones_like(scores).scatter(1, scores.argsort(1)[:, :2], 0.0).view_as(weight)
    assert torch.equal(model[0].weight, weight * expected)


def test_adapters_of_the_guide_keep_the_zeros():
    ways, adapters = blocks_of("Masks from elsewhere")
    model = nn.ModuleDict({"fc1": nn.Linear(6, 5)})
    model.forward = lambda inputs: model["fc1"](inputs)
    weight = model["fc1"].weight
    with torch.no_grad():
        weight[torch.rand(5, 6) < 0.5] = 0.0
    weight.requires_grad_(False)
    zeros = weight == 0
    up, down = torch.randn(5, 2), torch.randn(2, 6)
    names = {"torch": torch, "weight": weight, "model": model, "scale": 2.0, "up": up, "down": down}
    exec(adapters, {**names, "inputs": torch.randn(3, 6)})
    assert torch.equal(weight == 0, zeros)
    masks = MagnitudePruner(model, FixedMasks.from_zeros())
    masks.prepare()
    assert torch.equal(masks.masks()["fc1.weight"], ~zeros)
    assert ways.count("FixedMasks") == 5  # with its import
