"""What commands share of their arguments: the model, its inputs, the format, examples in the help text."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lightning_prune.basics import home
from lightning_prune.cli.loading import load_model
from lightning_prune.errors import ConfigError

__all__ = ["HelpFormatter", "add_format", "add_input_shape", "add_model", "examples_of", "load", "new_command"]

_WIDTH = 80  # columns of a help text


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples; 80 columns are enough for all else."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_WIDTH)


def new_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, Console], int], text: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: What ``add_subparsers`` gave.
        name: As it is written on the command line.
        run: Does it; returns the exit code.
        text: What it does, in a sentence.
        examples: Lines of a shell.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(text, _WIDTH),
        epilog=f"examples:\n{examples}",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser, *, checkpoint_help: str, checkpoint_required: bool = False) -> None:
    """Add the arguments that name a model, its constructor arguments and its weights; :func:`load` reads them."""
    parser.add_argument("model", metavar="MODEL", help="package.module:Class, or a function that gives the model")
    parser.add_argument("--args", metavar="JSON", help="arguments of the class, an object or a list")
    parser.add_argument("--checkpoint", type=home, metavar="FILE", required=checkpoint_required, help=checkpoint_help)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a table, JSON or CSV."""
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


def load(options: argparse.Namespace) -> Any:
    """Load the model that the arguments name."""
    return load_model(options.model, arguments=options.args, checkpoint=options.checkpoint)


def add_input_shape(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says what the model is called with; :func:`examples_of` reads it."""
    text = "shape of one input, such as 1,3,224,224; repeatable. Default: the model's example_input_array"
    parser.add_argument("--input-shape", action="append", type=_shape, metavar="SHAPE", help=text)


def examples_of(options: argparse.Namespace, model: nn.Module) -> Any:
    """Inputs for one call: zeros of the shapes that were given, or else the model's own example.

    Raises:
        ConfigError: No shape was given and the model has no example, or a shape does not fit into memory.
    """
    if options.input_shape is None:
        examples = getattr(model, "example_input_array", None)
        if examples is None:
            raise ConfigError(
                f"{type(model).__name__} has no example_input_array, so the shape of an input must be said. "
                "Write --input-shape 1,3,224,224, once for each input."
            )
        return examples
    try:
        return tuple(torch.zeros(shape) for shape in options.input_shape)
    except (RuntimeError, OverflowError) as error:  # of more memory than there is
        raise ConfigError(f"--input-shape must fit into memory: {str(error).splitlines()[0]}") from error


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes such as 1,3,224,224, got {text!r}")
    return shape
