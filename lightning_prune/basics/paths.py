"""Paths as users write them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["home"]


def home(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder for a leading ``~``; left as it is where that is no user's.

    Example:
        >>> home("~/net.mlpackage") == Path.home() / "net.mlpackage"
        True
        >>> home("~draft.mlpackage").name
        '~draft.mlpackage'
    """
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
