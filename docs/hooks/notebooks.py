"""A Jupyter notebook as a page: its text, its code, and the outputs that are kept in the file."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["notebook_page"]

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def notebook_page(text: str) -> str:
    """Markdown of a notebook.

    Args:
        text: The file's text, a JSON object of format 4.

    Example:
        >>> cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]}
        >>> print(notebook_page(json.dumps({"cells": [cell]})))
        ```python
        1 + 1
        ```
        <BLANKLINE>
        ```text
        2
        ```
        <BLANKLINE>
    """
    parts: list[str] = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts += [f"```python\n{source}\n```", *map(_shown, cell["outputs"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join("".join(data["image/png"]).split())
        return f'<img alt="The picture that this cell draws" src="data:image/png;base64,{picture}">'
    text = ESCAPES.sub("", "".join(output.get("text", data.get("text/plain", []))))
    return f"```text\n{text.strip(chr(10))}\n```" if text.strip() else ""
