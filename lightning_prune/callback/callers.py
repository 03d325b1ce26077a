"""Who is calling: for the errors that a caller would bury, or say in words of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType

__all__ = ["builder", "listed_beside"]


def builder() -> str:
    """The package whose code builds an object; call it in the constructor, be it that of a base class or not.

    Example:
        >>> class Thing:
        ...     def __init__(self):
        ...         self.builder = builder()
        >>> Thing().builder == __name__.partition(".")[0]
        True
    """
    for frame in _callers():
        if frame.f_code.co_name != "__init__":
            return str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return ""


def listed_beside(check: str, name: str) -> list[object]:
    """The list that a function among the callers holds; empty where there is no such function.

    Args:
        check: Name of the function.
        name: Of its variable that holds the list.
    """
    for frame in _callers():
        if frame.f_code.co_name == check:
            return list(frame.f_locals.get(name, ()))
    return []


def _callers() -> Iterator[FrameType]:
    """The frames outside of this file, the nearest first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back
