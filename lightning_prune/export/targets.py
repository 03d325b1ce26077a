"""Where an export goes: a path with the right ending, free or replaceable, in a folder that can be written to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_prune.basics import home
from lightning_prune.errors import ConfigError

__all__ = ["check_choice", "check_path", "located", "target_path"]


def target_path(path: object, suffix: str, stem: str = "model") -> Path:
    """The path of an export as the user wrote it, in full.

    Args:
        path: What the user wrote.
        suffix: How it must end, such as ``".mlpackage"``.
        stem: What a path without a name should be called.

    Raises:
        ConfigError: It is no path, or ends otherwise.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"export.path must be a path that ends in {suffix}, got {path!r}.")
    place = located(path)
    if place.suffix != suffix:
        better = str(place.with_suffix(suffix)) if place.name else str(place / f"{stem}{suffix}")
        raise ConfigError(f"export.path must end in {suffix}, got {os.fspath(path)!r}. Write {better!r}.")
    return place


def located(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder for ``~``, and without ``..``, which needs folders that may not exist."""
    place = home(path)
    return place.parent.resolve() / place.name if ".." in place.parts else place


def check_path(path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], what: str) -> None:
    """Raise unless an export can be put at a path.

    Args:
        path: Where it shall lie.
        overwrite: Whether what is there may be replaced.
        is_ours: Whether what lies at a path is of the kind that the export writes; nothing else is ever replaced.
        what: Such a thing, with its article: ``"a Core ML package"``.

    Raises:
        ConfigError: Something else is there, it may not be replaced, or the folder cannot be written to.
    """
    if path.is_symlink() or (path.exists() and not is_ours(path)):
        raise ConfigError(
            f"export.path must be free or hold {what}, but {path} is something else. Choose another path."
        )
    if path.exists() and not overwrite:
        raise ConfigError(
            f"export.path must be free with overwrite=False, but {path} exists. Remove it or write overwrite=True."
        )
    parent = path.absolute().parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"export.path must lie in a folder that can be written to, but {parent} cannot. Choose another path."
        )


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless a value of an export is an allowed one."""
    if value not in allowed:
        raise ConfigError(f"export.{name} must be one of {', '.join(allowed)}, got {value!r}.")
