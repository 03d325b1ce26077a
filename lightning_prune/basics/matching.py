r"""Regular expressions that match whole names, in a time that is bounded whatever the expression.

Python's ``re`` goes back and tries again where a choice was wrong. An expression such as ``(\w+\.?)*x`` has more
choices on a name of thirty letters than can ever be tried. So the choices that an expression leaves are counted first.
Where they are few, as in any ordinary one, ``re`` matches it; otherwise all places that can be reached are followed
side by side, which finds the same answer in a time that is bounded by the lengths of the expression and the name.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from lightning_prune.errors import ConfigError, one_line, shown

__all__ = ["check_pattern", "fullmatch"]

# the parser that re itself uses; it has no public name
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_compiler: Any = importlib.import_module("re._compiler" if sys.version_info >= (3, 11) else "sre_compile")

_MOST_CHOICES = 2 * 10**8  # of which re tries a small part: what can be reached is split, not squared
_LONG_NAME = 100
_MOST_LETTERS = 100_000
_MOST_ITEMS = 300  # of an expression that is followed place by place
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_LOOKS = ("ASSERT", "ASSERT_NOT")
_GROUPS = ("SUBPATTERN", "BRANCH", *_REPEATS, *_LOOKS)
_UNKNOWN = ("GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP", "POSSESSIVE_REPEAT")


def check_pattern(pattern: Any) -> None:
    """Refuse what is no regular expression, or one that cannot be matched in a bounded time.

    Raises:
        ConfigError: Says what is wrong with it; to be put after the path of the setting.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"must be a text, got {shown(pattern)}")
    if len(pattern) > _MOST_LETTERS:
        raise ConfigError(f"must have at most {_MOST_LETTERS:,} letters, has {len(pattern):,}")
    _matcher(pattern)


def fullmatch(pattern: str, name: str) -> bool:
    r"""Whether a regular expression matches a whole name, as ``re.fullmatch`` finds it.

    Raises:
        ConfigError: As :func:`check_pattern`.

    Example:
        >>> fullmatch(r"body\.(0|2)\..*", "body.2.conv"), fullmatch(r"(\w+\.?)*!", "a.name.that.is.long" * 10)
        (True, False)
    """
    return _matcher(pattern)(name)


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], bool]:
    try:
        compiled, tree = re.compile(pattern), _parser.parse(pattern)
        is_simple = _choices(tree) <= _MOST_CHOICES
        unknown = set() if is_simple else {item for item in _kinds(tree) if item in _UNKNOWN}
        size = 0 if is_simple else sum(1 for _ in _kinds(tree))
    except RecursionError as error:
        raise ConfigError("is nested too deeply") from error
    except (re.error, OverflowError, ValueError) as error:
        raise ConfigError(one_line(error)) from error
    if is_simple:
        return lambda name: compiled.fullmatch(name) is not None
    if unknown or size > _MOST_ITEMS:
        why = f"it has {' and '.join(sorted(unknown)).lower()}" if unknown else "it is too long for that"
        raise ConfigError(
            f"may be tried in too many ways, and {why}. Repeat nothing that is repeated itself, as in (a+)+, and write "
            "several shorter expressions"
        )
    places = _Places(tree, compiled.flags)
    return places.fullmatch


def _choices(tree: Any) -> int:
    """In how many ways an expression can be laid over a name, at most; cut off where there are too many."""
    ways = 1
    for kind, value in tree:
        name = str(kind)
        if name == "BRANCH":
            ways *= sum(_choices(part) for part in value[1])
        elif name in (*_REPEATS, "POSSESSIVE_REPEAT"):
            least, most, body = value
            inner, most = _choices(body), min(int(most), _LONG_NAME)
            least = min(int(least), most)
            ways *= most - least + 1 if inner == 1 else min(inner**most * (most - least + 1), _MOST_CHOICES + 1)
        else:
            for inner in _bodies(kind, value):
                ways *= _choices(inner)
        ways = min(ways, _MOST_CHOICES + 1)
    return ways


def _kinds(tree: Any) -> Iterable[str]:
    """What an expression is made of, part by part."""
    for kind, value in tree:
        yield str(kind)
        for body in _bodies(kind, value):
            yield from _kinds(body)


def _bodies(kind: Any, value: Any) -> list[Any]:
    """The expressions within one part of an expression."""
    name = str(kind)
    if name == "BRANCH":
        return list(value[1])
    if name == "SUBPATTERN":
        return [value[3]]
    if name in (*_REPEATS, "POSSESSIVE_REPEAT"):
        return [value[2]]
    if name in _LOOKS:
        return [value[1]]
    if name == "ATOMIC_GROUP":
        return [value]
    if name == "GROUPREF_EXISTS":
        return [part for part in value[1:] if part is not None]
    return []


class _Places:
    """An expression, matched by following all places of the name that can be reached.

    Args:
        tree: The parsed expression.
        flags: Its flags, which may be written in it: ``(?i)``.
    """

    def __init__(self, tree: Any, flags: int) -> None:
        self._tree, self._flags = tree, flags
        self._single: dict[tuple[int, int], Any] = {}  # parts that match one letter or a boundary, by their flags
        self._name = ""
        self._known: dict[tuple[int, int, int], frozenset[int]] = {}

    def fullmatch(self, name: str) -> bool:
        """Whether the end of the name can be reached from its beginning."""
        self._name, self._known = name, {}
        return len(name) in self._after(self._tree, {0}, self._flags)

    def _after(self, tree: Any, starts: Iterable[int], flags: int) -> set[int]:
        """Places that can be reached from any of some places by a sequence of parts."""
        places = set(starts)
        for item in tree:
            places = {end for start in places for end in self._ends(item, start, flags)}
        return places

    def _ends(self, item: Any, start: int, flags: int) -> frozenset[int]:
        """Places that one part reaches from one place."""
        key = id(item), start, flags
        if key not in self._known:
            self._known[key] = frozenset(self._find(item, start, flags))
        return self._known[key]

    def _find(self, item: Any, start: int, flags: int) -> Iterable[int]:
        kind, value = item
        name = str(kind)
        if name not in _GROUPS:
            found = self._compiled(item, flags).match(self._name, start)
            return () if found is None else (found.end(),)
        if name == "SUBPATTERN":
            _, added, removed, body = value
            return self._after(body, {start}, (flags | added) & ~removed)
        if name == "BRANCH":
            return set().union(*(self._after(part, {start}, flags) for part in value[1]))
        if name in _LOOKS:
            return (start,) if self._looks(value, start, flags) is (name == "ASSERT") else ()
        return self._repeat(value, start, flags)

    def _looks(self, value: Any, start: int, flags: int) -> bool:
        direction, body = value
        if direction > 0:
            return bool(self._after(body, {start}, flags))
        begin = start - body.getwidth()[0]  # looking back has one width
        return begin >= 0 and start in self._after(body, {begin}, flags)

    def _repeat(self, value: Any, start: int, flags: int) -> set[int]:
        least, most, body = value
        places = {start}
        for _ in range(min(int(least), len(self._name) + 1)):  # nothing new is reached by more
            places = self._after(body, places, flags)
        reached, more = set(places), int(most) - int(least)
        while places and more > 0:
            places = self._after(body, places, flags) - reached
            reached |= places
            more -= 1
        return reached

    def _compiled(self, item: Any, flags: int) -> Any:
        key = id(item), flags
        if key not in self._single:
            alone = _parser.SubPattern(self._tree.state, [item])
            self._single[key] = _compiler.compile(alone, flags & ~re.DEBUG)
        return self._single[key]
