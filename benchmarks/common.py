"""What the benchmarks share: the peer, quietly imported, and tables with versions and the command that made them."""

import logging
import platform
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def import_coremltools() -> Any:
    """Core ML Tools without the lines that it writes when it is imported."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
        import coremltools.optimize.torch.pruning
    return coremltools


def write_table(
    name: str,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    command: str,
    *,
    note: str,
    picture: str = "",
) -> None:
    """Write a Markdown table under results/, with what made it, and print it."""
    lines = [f"# {title}", "", f"`{command}`", ""]
    lines += [
        f"torch {torch.__version__}, Core ML Tools {version('coremltools')}, Python {platform.python_version()}, "
        f"{platform.machine()}. {note}",
        "",
    ]
    lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"![{title}]({picture})"] if picture else []
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)
