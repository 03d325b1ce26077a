"""Tables of rich as plain text, for logs and for print."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["as_text", "new_table"]


def new_table(title: str) -> Table:
    """An empty table in the style that all tables of this library have; 80 columns are to be enough for it."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    return table


def as_text(renderable: RenderableType, *, width: int = 160) -> str:
    """Render without colours, in at most ``width`` columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip()
