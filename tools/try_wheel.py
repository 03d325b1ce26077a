"""Does the package work as it is installed, without any extra? ``make test-wheel`` runs this in a fresh environment.

Run with ``python -I``, so that the package comes from the environment and not from the current folder.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_prune
from lightning_prune import CoreMLExport, MagnitudePruningCallback

EXTRAS = ("coreai", "coremltools", "jsonargparse", "matplotlib", "onnx", "onnxruntime", "safetensors", "sklearn")
CONFIG = {"global_config": {"scheduler": {"begin": 0.1, "end": 0.6}, "target_sparsity": 0.75}}
COMMAND = Path(sys.executable).with_name("lightning-prune")
NETWORK = """
from torch import nn

class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
"""


class Classifier(LightningModule):
    """A network of two layers, whose state dict is that of ``Network``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def expect(holds: bool, what: str) -> None:
    """Say what holds, or end with what does not."""
    if not holds:
        sys.exit(f"not so: {what}")
    print(f"ok  {what}")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)


def try_package(folder: Path) -> None:
    """Import, plan, fit, and a message for what is not installed."""
    package = Path(lightning_prune.__file__).parent
    expect("site-packages" in package.parts, "the package is the installed one")
    expect((package / "py.typed").is_file(), "its types are there")
    installed = [name for name in EXTRAS if importlib.util.find_spec(name)]
    expect(not installed, f"no package of an extra is installed {installed or ''}")

    torch.manual_seed(0)
    model = Classifier()
    pruning = MagnitudePruningCallback(CONFIG)
    expect("network.0" in str(pruning.plan(model)), "a plan names the layers")
    data = DataLoader(TensorDataset(torch.randn(256, 16), torch.randint(0, 4, (256,))), batch_size=16)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    zeros = {name: int((weight == 0).sum()) for name, weight in model.network.named_parameters() if weight.ndim == 2}
    expect(zeros == {"0.weight": 384, "2.weight": 96}, f"a fit prunes 3 of 4 weights: {zeros}")
    torch.save(model.network.state_dict(), folder / "weights.pt")

    try:
        CoreMLExport(folder / "model.mlpackage").check(model)
    except Exception as error:
        expect("pip install" in str(error), f"an export that needs an extra says so: {error}")
    else:
        expect(False, "an export that needs an extra says so")


def try_commands(folder: Path) -> None:
    """The commands that need no extra."""
    (folder / "nets.py").write_text(NETWORK)
    version = run("--version", cwd=folder)
    expect(lightning_prune.__version__ in version.stdout, f"lightning-prune --version: {version.stdout.strip()}")
    started = run("init", "nets:Network", "--output", "prune.yaml", cwd=folder)
    expect(started.returncode == 0, f"lightning-prune init {started.stderr}")
    planned = run("plan", "nets:Network", "--config", "prune.yaml", "--steps", "700", cwd=folder)
    expect(planned.returncode == 0 and "75" in planned.stdout, f"lightning-prune plan {planned.stderr}")
    inspected = run("inspect", "weights.pt", "--at-least", "0.75", cwd=folder)
    expect(inspected.returncode == 0, f"lightning-prune inspect {inspected.stderr}")
    converted = run("convert", "weights.pt", "weights.safetensors", cwd=folder)
    expect(converted.returncode == 1 and "pip install" in converted.stderr, f"convert says: {converted.stderr.strip()}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        try_package(Path(place))
        try_commands(Path(place))
