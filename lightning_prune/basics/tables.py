"""Tables of rich as plain text, for logs and for print."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Table
from rich.text import Text, TextType

__all__ = ["DottedText", "LiteralTable", "as_text", "break_lines", "literal", "new_table", "printable"]


class DottedText:
    """Text of a cell in which names stand: what is too long for a line goes on in the next after a space or a dot.

    Nothing in it is markup.

    Args:
        text: The text.
        style: How it looks.
    """

    def __init__(self, text: str, style: StyleType = "") -> None:
        self.text, self.style = printable(text), style

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Between the longest part that is not broken and all on one line."""
        least = max(map(cell_len, re.findall(r"[^ .]+\.?", self.text)), default=0)
        return Measurement(least, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The text in lines."""
        yield Text("\n".join(break_lines(self.text, options.max_width)), self.style, overflow="fold")


def break_lines(text: str, width: int) -> list[str]:
    """Break a text into lines at spaces, and a word that is too long for a line after a dot, or where the line ends.

    Example:
        >>> break_lines("tied to encoder.layers.0.weight", 16)
        ['tied to', 'encoder.layers.', '0.weight']
    """
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for part in re.findall(r"[^.]+\.*|\.+", word):
            if lines[-1] and cell_len(lines[-1] + part) > width:
                lines.append("")
            whole, rest = divmod(len(part), max(1, width))  # longer than a line: wherever the line ends
            cut = (part[index * width : (index + 1) * width] for index in range(whole + bool(rest)))
            lines[-1:] = [lines[-1] + part] if whole == 0 else [lines[-1] + next(cut), *cut]
    return lines


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
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def new_table(title: str) -> Table:
    """An empty table in the style that all tables of this library have; 80 columns are to be enough for it."""
    table = LiteralTable(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    return table


def as_text(renderable: RenderableType, *, width: int = 160) -> str:
    """Render without colours, in at most ``width`` columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip()
