"""Where a page is written: a path that is free, or that holds a page of a run before."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_prune.basics import home, put_in_place, writing_to
from lightning_prune.errors import ConfigError, shown
from lightning_prune.page.contents import RunPage
from lightning_prune.page.rendering import SIGN, render_page

__all__ = ["check_page_path", "page_path", "write_page"]

_HEAD = 2000  # bytes of a file in which the sign of a page lies


def page_path(path: object, *, name: str = "page") -> Path:
    """The path of a page as the user wrote it, in full; ``name`` is what the user calls it.

    Raises:
        ConfigError: It is no path, or does not end in ``.html``.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"{name} must be a path that ends in .html, got {shown(path)}.")
    place = home(os.fspath(path))
    if place.suffix.lower() not in (".html", ".htm"):
        better = str(place.with_suffix(".html")) if place.name else str(place / "run.html")
        raise ConfigError(f"{name} must end in .html, got {os.fspath(path)!r}. Write {better!r}.")
    return place.absolute()


def check_page_path(path: Path, *, name: str = "page") -> None:
    """Raise unless a page can be written; writes nothing.

    Args:
        path: Where it shall lie.
        name: What the user calls it.

    Raises:
        ConfigError: What lies there is no page of ours, or the folder cannot be written to.
    """
    if path.is_symlink() or (path.exists() and not is_page(path)):
        raise ConfigError(
            f"{name} must be free or hold the page of another run, but {path} is something else. Choose another path."
        )
    parent = path.parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{name} must lie in a folder that can be written to, but {parent} cannot. Choose another path."
        )


def is_page(path: Path) -> bool:
    """Whether a file says that it is the page of a run."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return SIGN.encode() in file.read(_HEAD)
    except OSError:
        return False


def write_page(page: RunPage, path: Path) -> Path:
    """Write a page whole, or not at all; folders on the way are made.

    Raises:
        ConfigError: As :func:`check_page_path`.
        OSError: It cannot be written.
    """
    check_page_path(path)
    text = render_page(page)
    with writing_to(path) as place:
        place.write_text(text, encoding="utf-8")
        put_in_place(place, path)
    return path
