"""Keys of ``module_name_configs`` that match some modules of a model and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

__all__ = ["dense_advice", "exact_pattern", "shared_patterns"]


def exact_pattern(name: str, modules: Iterable[str]) -> str:
    r"""Write a name as a regular expression: as it is, where that matches it and no other module.

    Example:
        >>> exact_pattern("a.b", ["a.b", "a_b"]), exact_pattern("a.b", ["a.b", "c"])
        ('a\\.b', 'a.b')
    """
    try:
        found = [other for other in modules if re.fullmatch(name, other)]
    except re.error:
        found = []
    return name if found == [name] else re.escape(name)


def shared_patterns(chosen: Collection[str], others: Collection[str]) -> list[str]:
    r"""Write a few patterns that match all chosen names and none of the others.

    A container stands for all that lies in it, where nothing in it is to be left out: the largest that there is.

    Args:
        chosen: Names of modules.
        others: Names that must not match.

    Example:
        >>> shared_patterns(["base.0", "base.1", "head"], ["tail", "base"])
        ['base\\..*', 'head']
    """
    known = {*chosen, *others}
    patterns: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        above = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        free = (prefix for prefix in above if not any(other.startswith(f"{prefix}.") for other in others))
        container = next(free, None)
        inside = [] if container is None else [other for other in chosen if other.startswith(f"{container}.")]
        pattern = exact_pattern(name, known) if len(inside) < 2 else rf"{re.escape(container or '')}\..*"
        patterns[pattern] = None
    return list(patterns)


def dense_advice(chosen: Collection[str], others: Collection[str]) -> str:
    """Write the setting that leaves modules dense, as Python.

    Example:
        >>> dense_advice(["head"], ["body"])
        'module_name_configs={"head": None}'
    """
    rules = ", ".join(f"{json.dumps(pattern)}: None" for pattern in shared_patterns(chosen, others))
    return f"module_name_configs={{{rules}}}"
