"""``lightning-prune init``: a first configuration for a model."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from rich.console import Console

from lightning_prune.analysis import Method
from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_model, load, new_command
from lightning_prune.cli.output import need_folder, refuse_existing, write_text
from lightning_prune.cli.starter import starter_yaml

__all__ = ["add_init"]


def add_init(commands: Any) -> None:
    """Add the command ``init``."""
    examples = (
        "  lightning-prune init digits:ConvNet > pruning.yaml\n"
        "  lightning-prune init digits:ConvNet --sparsity 0.9 --dense head -o prune.yaml\n"
        "  lightning-prune init digits:ConvNet --sparsity 0.9 --spread erdos_renyi_kernel\n"
        "  lightning-prune init digits:ConvNet --checkpoint last.ckpt --spread global\n"
    )
    text = "Write a configuration for a model, as YAML with comments, to be edited."
    parser = new_command(commands, "init", _run, text, examples)
    add_model(parser, checkpoint_help="weights of the model; --spread global ranks them")
    parser.add_argument("--output", "-o", type=home, metavar="FILE", help="where to write; default: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--sparsity", type=float, default=0.75, metavar="S", help="fraction of zeros (default 0.75)")
    for name, default, what in (
        ("begin", 0.1, "first update"),
        ("end", 0.6, "last update, at which the target is reached"),
        ("frequency", None, "distance of updates"),
    ):
        usual = default or "100 steps, or less for ten updates at least"
        text = f'{what}: steps (an int), a fraction of the run (a float) or "2 epochs" (default {usual})'
        parser.add_argument(f"--{name}", type=_moment, default=default, metavar="WHEN", help=text)
    parser.add_argument("--dense", action="append", default=[], metavar="NAME", help="leave a module dense; repeatable")
    parser.add_argument(
        "--spread", choices=get_args(Method), help="write one rule a layer that spreads the sparsity over the model"
    )


def _run(options: argparse.Namespace, out: Console) -> int:
    text = starter_yaml(
        load(options),
        name=options.model,
        sparsity=options.sparsity,
        scheduler={
            name: getattr(options, name) for name in ("begin", "end", "frequency") if getattr(options, name) is not None
        },
        dense=options.dense,
        method=options.spread,
    )
    if options.output is None:
        write_text(out, text.rstrip("\n"))
    else:
        refuse_existing(options.output, overwrite=options.overwrite)
        need_folder(options.output)
        options.output.write_text(text, encoding="utf-8")
        write_text(out, f"Wrote {options.output}")
    return 0


def _moment(text: str) -> int | float | str:
    """A moment of a training run, as a schedule takes it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
