"""What commands write: text, JSON, CSV and pictures, and never over a file that is there by accident."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightning_prune.basics import printable
from lightning_prune.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "need_folder", "refuse_existing", "save_figure", "write_csv", "write_json", "write_text"]

_PICTURES = (".png", ".pdf", ".svg")


def write_text(out: Console, text: str) -> None:
    """Write text as it is, without markup, colours or line breaks."""
    out.file.write(f"{printable(text)}\n")


def write_json(out: Console, value: object) -> None:
    """Write a value as JSON, indented."""
    write_text(out, json.dumps(value, indent=2))


def write_csv(out: Console, records: Sequence[dict[str, Any]]) -> None:
    """Write one line a record, below the names of its values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        shape = record.get("shape")
        writer.writerow({**record, "shape": "x".join(map(str, shape)) if shape else ""})
    write_text(out, text.getvalue().rstrip("\n"))


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file, unless that was asked for."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Write to another path, or add --overwrite.")


def need_folder(path: Path) -> None:
    """Refuse a path whose folder is not there."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {str(path.parent)!r}. Make it first.")


def check_picture(option: str, path: Path) -> None:
    """Refuse a path of no known ending before anything is drawn: matplotlib would add an ending of its own."""
    if path.suffix.lower() not in _PICTURES:
        write = "" if path.suffix.strip(".") else f" Write {str(path).rstrip('.') + '.png'!r}."
        endings = f"{', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}"
        raise ConfigError(f"{option} must end in {endings}, got {str(path)!r}.{write}")
    need_folder(path)


def save_figure(figure: Figure, path: Path, out: Console, *, quiet: bool = False) -> None:
    """Write a figure to a file, and say so unless ``quiet``."""
    figure.savefig(path, dpi=150)
    if not quiet:
        write_text(out, f"Wrote {path}")
