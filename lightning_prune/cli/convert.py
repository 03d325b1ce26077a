"""``lightning-prune convert``: a checkpoint of another pruning library with plain names."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import new_command
from lightning_prune.cli.output import need_folder, refuse_existing, write_text

__all__ = ["add_convert"]


def add_convert(commands: Any) -> None:
    """Add the command ``convert``."""
    examples = "  lightning-prune convert coremltools.ckpt plain.ckpt\n"
    text = (
        "Rewrite a checkpoint of Core ML Tools, torch.nn.utils.prune or Lightning's ModelPruning with plain names and "
        "pruned weights."
    )
    parser = new_command(commands, "convert", _run, text, examples)
    parser.add_argument("source", type=home, metavar="IN", help="a checkpoint or state dict")
    parser.add_argument("target", type=home, metavar="OUT", help="where to write it")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is there")


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.masking import convert_checkpoint

    if options.source.exists():  # a wrong source is the first thing to say
        refuse_existing(options.target, overwrite=options.overwrite)
        need_folder(options.target)
    converted = convert_checkpoint(options.source, options.target, overwrite=options.overwrite)
    for name, sparsity in converted.items():
        write_text(out, f"{name}: {sparsity:.2%} zero")
    write_text(out, f"Wrote {options.target}, {len(converted)} weights converted")
    return 0
