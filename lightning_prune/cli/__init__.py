"""The command line."""

from __future__ import annotations

from lightning_prune.cli.commands import build_parser, main
from lightning_prune.cli.loading import load_model
from lightning_prune.cli.starter import starter_yaml

__all__ = [
    "build_parser",
    "load_model",
    "main",
    "starter_yaml",
]
