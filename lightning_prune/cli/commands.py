"""The command line ``lightning-prune``: plan before training, look into files and export after it.

Exit codes: 0, done; 1, it could not be done (one line on standard error says why); 2, the command is not written right;
3, ``inspect --at-least`` found less sparsity than asked; 130, interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

import lightning_prune
from lightning_prune.basics import printable
from lightning_prune.cli.arguments import HelpFormatter
from lightning_prune.cli.convert import add_convert
from lightning_prune.cli.export import add_export
from lightning_prune.cli.init import add_init
from lightning_prune.cli.inspect import add_inspect
from lightning_prune.cli.page import add_page
from lightning_prune.cli.plan import add_plan
from lightning_prune.cli.plot import add_plot
from lightning_prune.cli.slim import add_slim
from lightning_prune.errors import PruningError

__all__ = ["build_parser", "main"]

_INTERRUPTED = 130  # exit code

_DESCRIPTION = """\
Magnitude pruning for PyTorch Lightning: plan it before training, inspect files,
make them slim and export after it.

A MODEL is written as package.module:Class, looked for in the current folder
too; its constructor arguments are given as JSON by --args, or come from the
checkpoint of a LightningModule that called save_hyperparameters().
"""
_EPILOG = """\
examples:
  lightning-prune init digits:ConvNet --output pruning.yaml
  lightning-prune plan digits:ConvNet --config pruning.yaml --steps 700
  lightning-prune inspect last.ckpt
  lightning-prune export digits:ConvNet --checkpoint a.ckpt -o a.mlpackage

exit codes: 0 done, 1 it could not be done, 2 the command is not written right,
            3 inspect --at-least found less, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit code; see the top of this module.
    """
    options = build_parser().parse_args(arguments)
    out, err = (Console(stderr=to_err, markup=False, emoji=False, highlight=False) for to_err in (False, True))
    try:
        return int(options.run(options, out))
    except (PruningError, ImportError, OSError) as error:
        if options.debug:
            raise
        err.print("error: ", style="bold red", end="")
        err.print(_said(error), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        err.print("interrupted")
        return _INTERRUPTED


def _said(error: Exception) -> str:
    """What an error says, on one line and letter for letter."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}."
    return printable(" ".join(line.strip() for line in text.splitlines()))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="lightning-prune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lightning-prune {lightning_prune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (add_init, add_plan, add_inspect, add_export, add_slim, add_convert, add_plot, add_page):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
