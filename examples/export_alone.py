"""Export any finished network, with no pruner, no Trainer: its zeros are found, stored sparse, and proven in the file.

python examples/export_alone.py --out runs/export_alone
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn.utils import prune

from lightning_prune import CoreMLExport

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("runs/export_alone"))
args = parser.parse_args()

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)
for layer in (model[0], model[4], model[9]):  # as any tool would prune it
    prune.l1_unstructured(layer, "weight", amount=0.75)
    prune.remove(layer, "weight")

console = Console()
examples = torch.rand(1, 3, 32, 32)
console.print(CoreMLExport(args.out / "sparse.mlpackage", examples).save(model))

# The nonzero weights themselves in 4 bits: a table of 16 values for each layer.
smaller = CoreMLExport(
    args.out / "sparse-palette4.mlpackage", examples, compression="palette4", minimum_deployment_target="iOS18"
)
console.print(smaller.save(model))
