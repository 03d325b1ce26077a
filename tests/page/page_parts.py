"""Pages that the tests share, and the browser that looks at them."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_prune import MagnitudePruner, MagnitudePrunerConfig
from lightning_prune.export import ExportedLayer, ExportResult
from lightning_prune.page import History, RunPage, gather_page, planned_curve
from lightning_prune.slim import SlimResult, slim

CONFIG = {"scheduler": {"update_steps": [2, 4, 6]}, "target_sparsity": 0.75}
HOSTILE = '</script><img src=x onerror="document.title=1"><script>document.title=2</script>\'"&'


def make_page(model: nn.Module | None = None, **changes: object) -> RunPage:
    """The page of a small network that was pruned for six steps."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 16)) if model is None else model
    pruner = MagnitudePruner(model, MagnitudePrunerConfig(CONFIG))
    pruner.prepare()
    history = History()
    history.describe(MagnitudePrunerConfig(CONFIG))
    history.planned = planned_curve(pruner.plan, pruner.schedules, 8)
    for step in range(1, 9):
        pruner.step()
        if step in (2, 4, 6):
            history.add_sparsity(step, pruner.report().sparsity)
        history.add_metrics(step, {"accuracy": torch.tensor(1 - 1 / step)}, prefix="sparsity")
    page = gather_page(
        title="Net",
        status="Finished after 8 optimizer steps.",
        is_finished=True,
        plan=pruner.plan,
        report=pruner.report(),
        masks=pruner.masks(),
        history=history,
    )
    return dataclasses.replace(page, **changes)


def make_slim() -> SlimResult:
    """A slim network of two layers, of which half of the hidden channels are dead."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = 0
    return slim(model, torch.zeros(2, 4))


def make_export(name: str = "fc.weight", **changes: object) -> ExportResult:
    """What an export of one layer gives."""
    layer = ExportedLayer(name, (16, 32), 384, 512, "sparse", 400, 1024)
    result = ExportResult(
        Path("net.mlpackage"),
        2_000,
        4_000,
        (layer,),
        checks=("1 of 1 pruned parameters is stored sparse",),
        not_checked=("the state of an LSTM",),
        notes=("rounded to float16",),
        near_error=2e-4,
    )
    return dataclasses.replace(result, **changes)


def find_browser() -> str:
    """The path of a headless browser; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if (path := shutil.which(name)) is not None:
            return path
    pytest.skip("no browser of the Chromium family is installed")


def browse(page: Path, folder: Path, *arguments: str) -> str:
    """Open a page in a headless browser; what it prints."""
    command = [
        find_browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'browser'}",
        *arguments,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
