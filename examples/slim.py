"""Train whole channels to zero, cut them out, and load the small network again: same answers, fewer weights, faster.

python examples/slim.py --epochs 8 --out runs/slim
"""

import argparse
from pathlib import Path

import torch
from digits import ConvNet, Digits
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from torch import nn

from lightning_prune import MagnitudePruningCallback
from lightning_prune.slim import load_slim, slim


class Unpadded(ConvNet):
    """The same with convolutions that do not pad, so that a constant channel can move into a bias."""

    def __init__(self, max_epochs: int = 8) -> None:
        super().__init__(max_epochs=max_epochs)
        widths = (1, 32, 64, 64)
        layers: list[nn.Module] = []
        for channels_in, channels_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(channels_in, channels_out, 3, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64 * 2 * 2, 120), nn.ReLU(), nn.Linear(120, 10))


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--out", type=Path, default=Path("runs/slim"))
args = parser.parse_args()

seed_everything(0)
console = Console()
model, data = Unpadded(args.epochs), Digits()
pruning = MagnitudePruningCallback(
    {
        "global_config": {
            "scheduler": {"begin": 0.1, "end": 0.6},
            "target_sparsity": 0.75,
            "granularity": "per_channel",
        },
        "module_name_configs": {"head.2": None},  # its rows are the answers
    }
)
trainer = Trainer(
    max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[pruning]
)
trainer.fit(model, data)


def accuracy(net: nn.Module) -> float:
    images, labels = next(iter(data.val_dataloader()))
    with torch.no_grad():
        return float((net.eval()(images).argmax(1) == labels).float().mean())


result = slim(model, model.example_input_array)
console.print(result)
path = result.save(args.out / "slim.safetensors")
small = load_slim(Unpadded(), path)
print(f"weights   {result.parameters:,} before, {result.slim_parameters:,} after")
print(f"accuracy  {accuracy(model):.2%} before, {accuracy(small):.2%} after, loaded from {path}")
