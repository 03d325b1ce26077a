"""What can go wrong, as one tree.

* PruningError
    * ConfigError (also ValueError): a value, key or name in a configuration that cannot work.
    * LifecycleError (also RuntimeError): a method called at a moment when it cannot do its work.
    * ExportError: a file for another runtime that could not be made, or is not what it must be.
    * SlimError: a network from which nothing can be cut with proof, or a recipe that does not fit.
    * PageError: a page of a run that could not be written.
    * CheckpointError: a saved state that is damaged, or belongs to another model or configuration.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "LifecycleError",
    "PageError",
    "PruningError",
    "SlimError",
    "did_you_mean",
    "first_names",
    "one_line",
    "shown",
]


class PruningError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(PruningError, ValueError):
    """A value, key or name in a configuration cannot work: says what must hold, what came, what to write."""


class LifecycleError(PruningError, RuntimeError):
    """A method was called at a moment when it cannot do its work: says what to call first."""


class ExportError(PruningError):
    """An export could not be written, or did not pass its verification."""


class SlimError(PruningError):
    """A network could not be made smaller with proof that it computes the same, or a recipe does not fit a network."""


class PageError(PruningError):
    """The page of a run could not be written."""


class CheckpointError(PruningError):
    """A saved state is damaged, or belongs to another model or configuration."""


def shown(value: object, *, most: int = 100) -> str:
    """A value as an error shows it: its ``repr`` on one line, cut where it would be long.

    No more of it is built than is shown, whatever is nested in it and however often: a few lines of YAML can stand for
    more text than there is memory. A tensor or an array is told by its shape.

    Example:
        >>> shown([1, "a"]), shown(list(range(10**6)), most=20)
        ("[1, 'a']", '[0, 1, 2, 3, 4, 5...')
    """
    text = ""
    for piece in _pieces(value, most):
        text += piece
        if len(text) > most:
            return text[: most - 3] + "..."
    return text


def one_line(error: object, *, most: int = 300) -> str:
    """The text of a foreign error on one line, cut where it is long."""
    text = " ".join(str(error)[: 4 * most].split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def first_names(names: Iterable[str], *, most: int = 20) -> str:
    """Names as an error lists them: the first few, and how many more there are.

    Example:
        >>> first_names(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    listed = list(names)
    text = ", ".join(_cut(name, 200) for name in listed[:most])
    return f"{text} and {len(listed) - most} more" if len(listed) > most else text


_MARKS: dict[type, str] = {list: "[]", tuple: "()", set: "{}"}


def _pieces(value: object, most: int) -> Iterator[str]:
    """The text of a value in short pieces; those that are not asked for are never made."""
    kind = type(value)
    if isinstance(value, Mapping):
        yield "{" if kind is dict else f"{kind.__name__}({{"
        for index, (key, item) in enumerate(value.items()):
            yield ", " if index else ""
            yield from _pieces(key, most)
            yield ": "
            yield from _pieces(item, most)
        yield "}" if kind is dict else "})"
    elif isinstance(value, (list, tuple)) or (isinstance(value, (set, frozenset)) and value):
        marks = _MARKS.get(kind)
        yield marks[0] if marks else f"{kind.__name__}(["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item, most)
        yield "," if kind is tuple and len(value) == 1 else ""
        yield marks[1] if marks else "])"
    elif isinstance(value, (str, bytes, bytearray)):
        yield repr(value[:most] if len(value) > most else value)
    elif isinstance(value, int) and value.bit_length() > 4 * most:
        yield f"a number of about {value.bit_length() * 3 // 10} digits"
    elif getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        yield f"{kind.__name__} of shape {tuple(value.shape)}"  # type: ignore[attr-defined]
    else:
        yield _repr_of(value)


def _repr_of(value: object) -> str:
    try:
        return " ".join(repr(value).split())
    except Exception:  # the user's own class may raise anything
        return f"<{type(value).__name__}>"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give the end of an error message that lists the known names nearest to a wrong name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
