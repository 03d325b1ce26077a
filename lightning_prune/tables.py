"""Tables of rich as plain text, for logs and for print."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

__all__ = ["as_text"]


def as_text(renderable: RenderableType, *, width: int = 160) -> str:
    """Render without colours, in at most ``width`` columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip()
