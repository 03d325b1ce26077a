"""Train whole channels to zero, cut them out, and load the small network again: same answers, fewer weights, faster.

python examples/slim.py --epochs 8 --out runs/slim
"""

import argparse
from pathlib import Path

import torch
from digits import ConvNet, Digits
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_prune import MagnitudePruningCallback
from lightning_prune.analysis import plot_slim
from lightning_prune.slim import Slim, load_slim

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--out", type=Path, default=Path("runs/slim"))
args = parser.parse_args()

pruning = MagnitudePruningCallback(
    {
        "global_config": {
            "scheduler": {"begin": 0.1, "end": 0.6},
            "target_sparsity": 0.75,
            "granularity": "per_channel",
        }
    },
    slim=Slim(path=args.out / "slim.safetensors"),
)
seed_everything(0)
model, data = ConvNet(max_epochs=args.epochs), Digits()
trainer = Trainer(
    max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[pruning]
)
trainer.fit(model, data)


def accuracy(net: nn.Module) -> float:
    images, labels = next(iter(data.val_dataloader()))
    with torch.no_grad():
        return float((net.eval()(images).argmax(1) == labels).float().mean())


result = pruning.slim_result
small = load_slim(ConvNet(), args.out / "slim.safetensors")
plot_slim(result).savefig(args.out / "slim.png", dpi=120)
print(f"weights   {result.parameters:,} before, {result.slim_parameters:,} after")
print(f"accuracy  {accuracy(model):.2%} before, {accuracy(small):.2%} after, loaded from {args.out}")
