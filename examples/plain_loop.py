"""Pruning in a training loop of your own, without Lightning. A script for Core ML Tools' pruner runs unchanged.

python examples/plain_loop.py --steps 300
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_prune import MagnitudePruner, MagnitudePrunerConfig

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(288, 10),
)
config = MagnitudePrunerConfig.from_dict(
    {
        "module_type_configs": {
            "Conv2d": {"scheduler": {"update_steps": f"range(20, {args.steps // 2}, 20)"}, "target_sparsity": 0.75},
        }
    }
)
pruner = MagnitudePruner(model, config)
model = pruner.prepare()  # a copy, as in Core ML Tools, unless inplace=True: make the optimizer after it
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(args.steps):
    batch = torch.randint(0, 1400, (64,))
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pruner.step()
    if step % 50 == 49:
        print(f"step {step + 1:4}  loss {loss:.3f}  sparsity {pruner.report().sparsity:.1%}")
pruner.finalize(inplace=True)

with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean()
print(pruner.report())
print(f"accuracy on held-out digits: {accuracy:.2%}")
