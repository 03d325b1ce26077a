"""What the tests share: small models, data and trainers."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.export.coreai import import_coreai

# An argument of a Trainer's methods that Lightning 2.5 does not have yet.
WEIGHTS_ONLY = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}

torch.set_num_threads(1)  # the tests run in several processes on few cores


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def coremltools() -> Any:
    """Core ML Tools, imported without the warnings and messages that it brings along."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("coremltools")
        import coremltools.optimize.torch.pruning  # noqa: F401
    return module


@pytest.fixture(scope="session")
def extras() -> None:
    """What the extra [all] installs, for examples and pages."""
    wanted = ("coremltools", "jsonargparse", "matplotlib", "safetensors", "sklearn", "tensorboard")
    if missing := [package for package in wanted if find_spec(package) is None]:
        pytest.skip(f"lightning-prune[all] is not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def coreai() -> Any:
    """Apple's converter to Core AI and its runtime."""
    pytest.importorskip("coreai.runtime", reason="coreai-torch is not installed: Python 3.11, lightning-prune[coreai]")
    return import_coreai()


class ToyModule(LightningModule):
    """A conv net for 1 x 8 x 8 images in 4 classes, which trains in milliseconds."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 16, 32)
        self.fc2 = nn.Linear(32, 4)
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(torch.relu(self.bn(self.conv(images))), 2)
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def make_loader(batches: int = 8, batch_size: int = 8, *, shuffle: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * batch_size, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (batches * batch_size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size, shuffle=shuffle)


def assert_plain(model: nn.Module) -> None:
    """No trace of pruning but the zeros is left on a :class:`ToyModule`."""
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not module._forward_hooks_always_called
        assert not module._state_dict_hooks
        assert not module._state_dict_pre_hooks
        assert not module._load_state_dict_pre_hooks
    for parameter in model.parameters():
        assert not parameter._post_accumulate_grad_hooks
        assert not parameter._backward_hooks
    assert list(model.state_dict()) == list(ToyModule().state_dict())


class ResumableLoader:
    """Batches in order; a Trainer that resumes in the middle of an epoch goes on with the next one."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def make_trainer(path: Path, **arguments: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": path,
    }
    return Trainer(**{**quiet, **arguments})


def sparsity_of(tensor: Tensor) -> float:
    return float((tensor == 0).float().mean())


POLYNOMIAL = {"global_config": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75}}
