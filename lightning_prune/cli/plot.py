"""``lightning-prune plot``: pictures of a log, or of the weights in a file."""

from __future__ import annotations

import argparse
import csv
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import new_command
from lightning_prune.cli.output import check_picture, save_figure
from lightning_prune.errors import CheckpointError, ConfigError, did_you_mean, first_names, one_line, shown
from lightning_prune.pruner import MOST_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_plot"]


def add_plot(commands: Any) -> None:
    """Add the command ``plot``."""
    examples = (
        "  lightning-prune plot sparsity logs/version_0/metrics.csv -o sparsity.png\n"
        "  lightning-prune plot layers last.ckpt -o layers.png\n"
        "  lightning-prune plot weights last.ckpt --before dense.ckpt -o weights.png\n"
        "  lightning-prune plot mask last.ckpt --tensor body.0.weight -o mask.png\n"
    )
    text = "Draw logged sparsity, or the layers, weights or one mask of a checkpoint."
    parser = new_command(commands, "plot", _run, text, examples)
    parser.add_argument("what", choices=("sparsity", "layers", "weights", "mask"), help="what to draw")
    parser.add_argument("file", type=home, metavar="FILE", help="metrics.csv of a CSVLogger for sparsity, else weights")
    parser.add_argument("--output", "-o", type=home, required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument("--before", type=home, metavar="FILE", help="for weights: the checkpoint before pruning")
    parser.add_argument("--tensor", metavar="NAME", help="for mask: the weight to draw")
    parser.add_argument("--layers", action="store_true", help="for sparsity: each layer too")


def _run(options: argparse.Namespace, out: Console) -> int:
    check_picture("--output", options.output)
    draw = {"sparsity": _draw_log, "layers": _draw_layers, "weights": _draw_weights, "mask": _draw_mask}
    save_figure(draw[options.what](options), options.output, out)
    return 0


def _draw_log(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_sparsity

    if options.file.exists() and not options.file.is_file():  # a device has no end
        raise CheckpointError(f"{options.file} is no file. Give the metrics.csv of a CSVLogger.")
    try:
        with options.file.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("sparsity/global") and row.get("step")]
        steps = [_step(row["step"]) for row in rows]
        names = [name for name in (rows[0] if rows else ()) if name and name.startswith("sparsity/")]
        names = [name for name in names if options.layers or name == "sparsity/global"]
        curves = {name.removeprefix("sparsity/"): [float(row[name] or "nan") for row in rows] for name in names}
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{options.file} cannot be read as a table of metrics: {one_line(error)}") from error
    if not rows:
        raise CheckpointError(f"{options.file} has no rows with sparsity/global. Give the metrics.csv of a CSVLogger.")
    return plot_sparsity(steps, curves)


def _step(text: str) -> int:
    step = int(text)
    if not 0 <= step <= MOST_STEPS:
        raise ValueError(f"step must be a whole number from 0 to {MOST_STEPS}, got {shown(step)}")
    return step


def _draw_layers(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_layers, report_of

    return plot_layers(report_of(options.file))


def _draw_weights(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_weights, read_weights

    return plot_weights(read_weights(options.before or options.file), read_weights(options.file))


def _draw_mask(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_mask, read_weights

    weights = read_weights(options.file)
    if options.tensor not in weights:
        hint = did_you_mean(options.tensor or "", weights) or f" There are {first_names(weights)}."
        raise ConfigError(f"--tensor must name a weight in {options.file}, got {shown(options.tensor)}.{hint}")
    return plot_mask(weights[options.tensor], name=options.tensor)
