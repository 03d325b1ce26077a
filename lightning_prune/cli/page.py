"""``lightning-prune page``: a run that is over as one page of HTML."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import new_command
from lightning_prune.cli.output import refuse_existing, write_text

__all__ = ["add_page"]


def add_page(commands: Any) -> None:
    """Add the command ``page``."""
    examples = (
        "  lightning-prune page lightning_logs/version_0 -o run.html\n"
        "  lightning-prune page last.ckpt -o run.html\n"
        "  lightning-prune page model.safetensors -o weights.html\n"
    )
    text = (
        "Write one page of HTML that shows a run: sparsity and metrics over steps, layers, masks, configuration. It "
        "reads a checkpoint, or the newest in a folder, with the metrics.csv of a CSVLogger beside it. The page that "
        "the callback writes (page=) also has what was exported and made slim."
    )
    parser = new_command(commands, "page", _run, text, examples)
    parser.add_argument("source", type=home, metavar="RUN", help="a checkpoint, or a folder; nothing in it is executed")
    parser.add_argument("--output", "-o", type=home, required=True, metavar="FILE", help="where to write, .html")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    parser.add_argument(
        "--log-prefix", default="sparsity", metavar="TEXT", help="log_prefix of the callback (default: sparsity)"
    )


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.page import check_page_path, page_path, read_run, write_page

    path = page_path(options.output, name="--output")
    refuse_existing(path, overwrite=options.overwrite)
    check_page_path(path, name="--output")
    write_text(out, f"Wrote {write_page(read_run(options.source, prefix=options.log_prefix), path)}")
    return 0
