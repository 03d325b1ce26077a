"""Classes known by their names: ``lightning`` and ``pytorch_lightning`` have one each, and neither is imported."""

from __future__ import annotations

__all__ = ["is_a"]


def is_a(thing: object, *names: str) -> bool:
    """Whether an object is of a class, or of one derived from it, that has one of these names.

    Example:
        >>> is_a(True, "int"), is_a(1.0, "int", "str")
        (True, False)
    """
    return any(cls.__name__ in names for cls in type(thing).__mro__)
