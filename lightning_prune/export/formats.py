"""The formats that a network can be exported to: a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning_prune.errors import ConfigError
from lightning_prune.export.coreai import CoreAIExport
from lightning_prune.export.coreml import CoreMLExport
from lightning_prune.export.onnx import ONNXExport
from lightning_prune.export.sparse import SparseExport

__all__ = ["FORMATS", "Format", "format_of"]


class Format(NamedTuple):
    """A format.

    Attributes:
        name: What the command line calls it.
        suffix: How a path of it ends.
        export: The class that writes it, an :class:`~lightning_prune.export.protocol.Export`; its first argument is the
            path.
    """

    name: str
    suffix: str
    export: Any


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        row.name: row
        for row in (
            Format("coreml", ".mlpackage", CoreMLExport),  # the first is what is taken where nothing says otherwise
            Format("coreai", ".aimodel", CoreAIExport),
            Format("onnx", ".onnx", ONNXExport),
            Format("safetensors", ".safetensors", SparseExport),
        )
    }
)


def format_of(path: Path, name: str | None = None) -> Format:
    """The format of a file that is to be written: the named format, else that of its ending, else Core ML.

    Raises:
        ConfigError: There is no format of that name.
    """
    if name is not None and name not in FORMATS:
        raise ConfigError(f"The format of an export must be one of {', '.join(FORMATS)}, got {name!r}.")
    if name is not None:
        return FORMATS[name]
    rows = list(FORMATS.values())
    return next((row for row in rows if row.suffix == path.suffix), rows[0])
