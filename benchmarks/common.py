"""What the benchmarks share: the peer, quietly imported, and pages of tables with what made them."""

import logging
import os
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


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    first, *rest = ("| " + " | ".join(line) + " |" for line in (headings, *rows))
    return "\n".join([first, "|" + "---|" * len(headings), *rest])


def write_page(name: str, title: str, command: str, *parts: str, note: str, picture: str = "") -> None:
    """Write a Markdown page under results/ and print it.

    Args:
        name: Of the file.
        title: Its heading.
        command: The command that made it.
        parts: Tables, and text between them.
        note: What to know of all parts; it follows the versions and the machine.
        picture: Name of a picture under results/.
    """
    made_with = (
        f"torch {torch.__version__}, Core ML Tools {version('coremltools')}, Python {platform.python_version()}, "
        f"{os.cpu_count()} {platform.machine()} cores, load average {os.getloadavg()[0]:.1f} at the end. {note}"
    )
    shown = [f"![{title}]({picture})"] if picture else []
    text = "\n\n".join([f"# {title}", f"`{command}`", made_with, *parts, *shown]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)
