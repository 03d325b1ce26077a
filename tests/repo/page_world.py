"""What the code of the pages may use without making it: a small module, its data, a configuration."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import MagnitudePruner

__all__ = ["CONFIG", "Net", "make_loader", "world_of"]

CONFIG = {"global_config": {"scheduler": {"begin": 0.1, "end": 0.6}, "target_sparsity": 0.75}}
STEPS = {"global_config": {"scheduler": {"begin_step": 1}, "target_sparsity": 0.75}}


class Net(LightningModule):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)
        self.example_input_array = torch.zeros(2, 64)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.fc1(images).relu())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class PlainNet(nn.Module):
    """The same without Lightning, for what captures the whole module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.fc1(images).relu())


def make_loader() -> DataLoader:
    """Four batches."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 64, generator=random), torch.randint(10, (64,), generator=random)
    return DataLoader(TensorDataset(images, labels), 16)


def world_of(page: str) -> dict[str, Any]:
    """Fresh objects by the names that a page uses for what its reader has."""
    if page == "docs/tutorial.md":
        return _tutorial()
    torch.manual_seed(0)
    masks = {"fc1.weight": torch.rand(32, 64) > 0.5}
    torch.save(masks, "masks.pt")
    net = PlainNet if page == "docs/exports.md" else Net
    model, finished = net(), net().eval()
    pruner = MagnitudePruner(net(), STEPS)
    pruner.prepare(inplace=True)
    return {
        "Net": net,
        "batches": [batch[0] for batch in make_loader()],
        "config": CONFIG,
        "data": make_loader(),
        "example": torch.randn(2, 64),
        "example_inputs": torch.zeros(2, 64),
        "finished": finished,
        "inputs": torch.randn(2, 64),
        "loader": make_loader(),
        "loss_of": lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]),
        "masks": masks,
        "model": model,
        "nn": nn,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "pruner": pruner,
        "scale": 2.0,
        "torch": torch,
        "up": torch.randn(32, 2),
        "down": torch.randn(2, 64),
        "weight": finished.fc1.weight.detach().clone(),
        "weight_mask": masks["fc1.weight"],
    }


def _tutorial() -> dict[str, Any]:
    examples = str(Path(__file__).parents[2] / "examples")
    if examples not in sys.path:
        sys.path.append(examples)
    from digits import ConvNet, Digits
    from lightning.pytorch import Trainer
    from text import Transformer
    from tutorial import accuracy, attention_too

    from lightning_prune import MagnitudePruningCallback
    from lightning_prune.analysis import count_macs

    data = Digits()
    data.setup("fit")
    rules = attention_too({"scheduler": {"begin": 0.0, "end": 0.6, "frequency": 10}})
    return {
        "MagnitudePruningCallback": MagnitudePruningCallback,
        "Trainer": lambda **options: Trainer(**{**options, "max_epochs": 3}),  # the tutorial's script runs all of them
        "accuracy": accuracy,
        "count_macs": count_macs,
        "data": data,
        "model": ConvNet(),
        "rules": rules,
        "transformer": Transformer(),
    }
