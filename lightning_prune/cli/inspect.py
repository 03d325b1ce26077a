"""``lightning-prune inspect``: sparsity, structure and bytes of each weight in a file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_format, new_command
from lightning_prune.cli.output import write_csv, write_json
from lightning_prune.errors import ConfigError

__all__ = ["add_inspect"]

_BELOW = 3  # exit code


def add_inspect(commands: Any) -> None:
    """Add the command ``inspect``."""
    examples = (
        "  lightning-prune inspect last.ckpt\n"
        "  lightning-prune inspect digits.mlpackage\n"
        "  lightning-prune inspect last.ckpt --at-least 0.75   # exit code 3 if less\n"
    )
    text = (
        "Show sparsity, structure and bytes of each weight in a checkpoint, state dict, .safetensors, .mlpackage, "
        ".aimodel or .onnx."
    )
    parser = new_command(commands, "inspect", _run, text, examples)
    parser.add_argument("file", type=home, metavar="FILE", help="what to look into; nothing in it is executed")
    parser.add_argument("--all", action="store_true", help="list vectors and integers too")
    parser.add_argument("--at-least", type=float, metavar="S", help="exit with code 3 if fewer weights are zero")
    add_format(parser)


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.analysis import inspect_file

    if options.at_least is not None and not 0 <= options.at_least <= 1:
        raise ConfigError(f"--at-least must be a fraction in [0, 1], got {options.at_least}. Write 0.75 for 75 %.")
    found = inspect_file(options.file, all_tensors=options.all)
    if options.format == "table":
        out.print(found)
    elif options.format == "json":
        summary = {"file": str(found.path), "kind": found.kind, "bytes": found.file_bytes, "sparsity": found.sparsity}
        write_json(out, {**summary, "notes": found.notes, "tensors": found.records()})
    else:
        write_csv(out, found.records())
    if options.at_least is not None and found.sparsity < options.at_least:
        print(f"sparsity is {found.sparsity:.4f}, less than {options.at_least}", file=sys.stderr)  # noqa: T201
        return _BELOW
    return 0
