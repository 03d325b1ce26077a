"""``lightning-prune plan``: what a configuration prunes of a model, and when."""

from __future__ import annotations

import argparse
from contextlib import suppress
from math import inf
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_prune.basics import home, new_table
from lightning_prune.cli.arguments import add_format, add_model, load, new_command
from lightning_prune.cli.output import check_picture, save_figure, write_csv, write_json
from lightning_prune.errors import ConfigError

__all__ = ["add_plan"]


def add_plan(commands: Any) -> None:
    """Add the command ``plan``."""
    examples = (
        "  lightning-prune plan digits:ConvNet --config pruning.yaml\n"
        "  lightning-prune plan digits:ConvNet -c pruning.yaml --steps 700 --plot a.png\n"
        "  lightning-prune plan digits:ConvNet --config pruning.yaml --format json\n"
    )
    text = "Say what a configuration prunes of a model, by which rule, and what not and why."
    parser = new_command(commands, "plan", _run, text, examples)
    add_model(parser, checkpoint_help="weights of the model; a plan does not need them")
    parser.add_argument(
        "--config", "-c", metavar="FILE", help="YAML file, whose class_path is imported; default: half of each layer"
    )
    parser.add_argument(
        "--steps", type=_count, metavar="N", help="length of the run in optimizer steps: shows the curve"
    )
    parser.add_argument("--steps-per-epoch", type=_length, metavar="N", help="for schedules that count epochs")
    parser.add_argument("--plot", type=home, metavar="FILE", help="draw the curve; needs --steps")
    add_format(parser)


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.analysis import plan_curves, plot_plan
    from lightning_prune.config import load_config
    from lightning_prune.plan import plan_pruning
    from lightning_prune.schedules import TrainingRun

    if options.plot is not None and options.steps is None:
        raise ConfigError("--plot draws sparsity over steps, so it needs the length of the run. Write --steps 1000.")
    if options.plot is not None:
        check_picture("--plot", options.plot)
    plan = plan_pruning(load(options), load_config(options.config))
    run = TrainingRun(options.steps, options.steps_per_epoch)
    curve = plan_curves(plan, run)["all layers"] if options.steps else {}
    if options.format == "table":
        out.print(plan)
        if curve:
            out.print(_curve_table(curve))
    elif options.format == "json":
        write_json(out, {"modules": plan.records(), "sparsity": {str(step): value for step, value in curve.items()}})
    else:
        write_csv(out, plan.records())
    if options.plot is not None:
        save_figure(plot_plan(plan, run), options.plot, out, quiet=options.format != "table")
    return 0


def _curve_table(curve: dict[int, float], rows: int = 16) -> Table:
    """Sparsity over steps as a table with bars."""
    steps = list(curve)
    shown = steps if len(steps) <= rows else [steps[round(i * (len(steps) - 1) / (rows - 1))] for i in range(rows)]
    table = new_table("Sparsity over steps")
    table.add_column("step", justify="right")
    table.add_column("sparsity", justify="right")
    table.add_column("")
    for step in shown:
        table.add_row(f"{step:,}", f"{curve[step]:.1%}", "█" * round(40 * curve[step]))
    return table


def _length(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)
