"""``lightning-prune slim``: a checkpoint without its dead channels, proven to compute the same."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_input_shape, add_model, examples_of, load, new_command
from lightning_prune.cli.output import need_folder, refuse_existing, write_text

__all__ = ["add_slim"]


def add_slim(commands: Any) -> None:
    """Add the command ``slim``."""
    examples = (
        "  lightning-prune slim digits:ConvNet --checkpoint a.ckpt -o slim.safetensors\n"
        "  lightning-prune slim torchvision.models:resnet18 --checkpoint r18.pt \\\n"
        "      -o r18-slim.pt --input-shape 1,3,224,224 --keep layer4.1.conv2\n"
    )
    text = (
        "Cut the channels that training made dead out of a network, prove that it computes the same, and write what "
        "load_slim needs to make a new network of its class slim."
    )
    parser = new_command(commands, "slim", _run, text, examples)
    add_model(parser, checkpoint_help="weights to make slim", checkpoint_required=True)
    parser.add_argument(
        "--output", "-o", type=home, required=True, metavar="FILE", help=".safetensors, or another ending for torch"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a slim network that is there")
    add_input_shape(parser)
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="a module whose channels all stay; repeatable"
    )


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.slim import slim

    refuse_existing(options.output, overwrite=options.overwrite)
    need_folder(options.output)
    model = load(options)
    result = slim(model, examples_of(options, model), keep=options.keep)
    out.print(result)
    write_text(out, f"Wrote {result.save(options.output)}")
    return 0
