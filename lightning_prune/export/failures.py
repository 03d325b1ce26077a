"""Whatever ends an export becomes an ExportError that says what was not made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from lightning_prune.errors import ExportError, PruningError

__all__ = ["as_export_error", "not_made", "summary"]


@contextlib.contextmanager
def as_export_error(format: str, model: nn.Module, path: Path) -> Iterator[None]:
    """Turn every error within into an ExportError; what lies at the path is as it was.

    Args:
        format: What was to be made, such as ``"Core ML package"``.
        model: What it was to be made of.
        path: Where it was to lie.
    """
    try:
        yield
    except ExportError:
        raise
    except PruningError as error:
        raise ExportError(str(error)) from error
    except Exception as error:
        raise ExportError(f"{not_made(format, model, path)}\n  {summary(error)}") from error


def not_made(format: str, model: nn.Module, path: Path) -> str:
    """The first line of what is said of an export that failed."""
    return f"No {format} could be made of {type(model).__name__}; {path} was not touched."


def summary(error: Exception) -> str:
    """An error's type and message; of an error from elsewhere the first line, for what follows is often a page."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()] or [""]
    kept = lines if isinstance(error, PruningError) else lines[:1]
    return "\n    ".join([f"{type(error).__name__}: {kept[0]}", *kept[1:]])
