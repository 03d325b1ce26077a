"""Tables of rich as plain text, for logs and for print."""

from __future__ import annotations

import io
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text, TextType

__all__ = ["LiteralTable", "as_text", "literal", "new_table", "printable"]


class LiteralTable(Table):
    """A table in which a text is shown letter for letter: what a file or a user has named is no markup."""

    @property
    def title(self) -> TextType | None:
        """What stands above it."""
        return self._title

    @title.setter
    def title(self, text: TextType | None) -> None:
        self._title = literal(text, "table.title") if isinstance(text, str) else text

    @property
    def caption(self) -> TextType | None:
        """What stands below it."""
        return self._caption

    @caption.setter
    def caption(self, text: TextType | None) -> None:
        self._caption = literal(text, "table.caption") if isinstance(text, str) else text

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row, of texts or of anything that rich can show."""
        super().add_row(*map(_as_cell, cells), **options)


def _as_cell(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, Text) and not cell.spans:
        return literal(cell.plain, cell.style)
    return literal(cell) if isinstance(cell, str) else cell


def literal(text: str, style: StyleType = "") -> Text:
    """Text for rich that is shown as it is: no markup, no emoji, and no letter that steers a terminal.

    Example:
        >>> literal("run[red] :smile:").plain
        'run[red] :smile:'
    """
    return Text(printable(text), style)


def printable(text: str) -> str:
    r"""The text with what no terminal can show, or what steers it, written as an escape; line breaks stay.

    Example:
        >>> print(printable(f"fc{chr(27)}[2J"))
        fc\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )


def new_table(title: str) -> Table:
    """An empty table in the style that all tables of this library have; 80 columns are to be enough for it."""
    table = LiteralTable(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    return table


def as_text(renderable: RenderableType, *, width: int = 160) -> str:
    """Render without colours, in at most ``width`` columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip()
