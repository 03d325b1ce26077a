"""What the reference makes of docstrings: their ``Example:`` is code, and names of ours in them are links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

__all__ = ["Docstrings", "as_markdown", "referenced"]

PAGES = Path(__file__).parents[1] / "reference"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(?:(?P<text>[^`<]+) <)?(?P<name>[~\w.]+)>?`")


def referenced() -> dict[str, str]:
    """What the pages of the reference describe: the path that each name is imported from."""
    pages = (path.read_text() for path in sorted(PAGES.glob("*.md")))
    return {path.rpartition(".")[2]: path for page in pages for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}


def as_markdown(docstring: str, owner: str, names: dict[str, str]) -> str:
    """A docstring with Markdown in place of the roles of Sphinx.

    Args:
        docstring: Its text.
        owner: The class whose members are meant by a name alone.
        names: As ``referenced`` gives them.

    Example:
        >>> as_markdown("See :class:`~house.room.Door`.", "Room", {"Door": "house.Door"})
        'See [`Door`][house.Door].'
        >>> print(as_markdown("See :meth:`open`.", "Door", {"Door": "house.Door"}))
        See <autoref optional identifier="house.Door.open"><code>open</code></autoref>.
    """

    def linked(match: re.Match[str]) -> str:
        path = match["name"].lstrip("~").split(".")
        text = match["text"] or ".".join(path[-1:] if match["name"].startswith("~") else path)
        if path[-1] in names:
            return f"[`{text}`][{names[path[-1]]}]"
        parent = path[-2] if len(path) > 1 else owner
        if parent not in names or not match[0].startswith(":meth:"):
            return f"`{text}`"
        # no link where the class inherits it
        return f'<autoref optional identifier="{names[parent]}.{path[-1]}"><code>{text}</code></autoref>'

    return ROLE.sub(linked, re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE))


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is read."""

    def __init__(self) -> None:
        self.names = referenced()

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            owner = obj if obj.is_class else obj.parent
            obj.docstring.value = as_markdown(obj.docstring.value, owner.name if owner else "", self.names)
