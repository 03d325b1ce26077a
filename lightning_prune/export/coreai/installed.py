"""Apple's packages: are they installed, and new enough?"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from lightning_prune.errors import ExportError, one_line
from lightning_prune.export.coreai.silence import silence

__all__ = ["CoreAI", "import_coreai"]

OLDEST = (0, 4, 3)
OLDEST_PYTHON = (3, 11)
INSTALL = 'pip install "lightning-prune[coreai]"'


@dataclass(frozen=True)
class CoreAI:
    """What is used of Apple's packages.

    Attributes:
        torch: ``coreai_torch``, the converter.
        authoring: ``coreai.authoring``, which writes and reads files.
        runtime: ``coreai.runtime``, which runs them.
        ir: ``coreai._compiler.ir``, the operations of a file.
        compiler: What reads the values of a constant, which have no public reader.
        compression: The converter's tools for weights that are stored in fewer bits.
    """

    torch: Any
    authoring: Any
    runtime: Any
    ir: Any
    compiler: Any
    compression: Any


def import_coreai() -> CoreAI:
    """Import the converter and the runtime.

    Raises:
        ExportError: They are not installed, too old, or do not work with this Python.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise ExportError(
            f"CoreAIExport needs Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, as Apple's packages do, and this "
            f"is {sys.version_info.major}.{sys.version_info.minor}. Export from a checkpoint with a newer one."
        )
    try:
        with silence():
            converter = importlib.import_module("coreai_torch")
            importlib.import_module("coreai_torch._compression.custom_layers")  # registers coreai::sparse_to_dense
            found = CoreAI(
                converter,
                importlib.import_module("coreai.authoring"),
                importlib.import_module("coreai.runtime"),
                importlib.import_module("coreai._compiler.ir"),
                importlib.import_module("coreai._compiler._mlir_libs._coreaiIR")._bindings.compiler,
                importlib.import_module("coreai_torch._compression.utils"),
            )
    except Exception as error:  # a compiled library may fail in ways of its own
        raise ExportError(
            f"CoreAIExport needs coreai-torch and coreai-core, which cannot be imported ({one_line(error)}). "
            f"Write: {INSTALL}"
        ) from error
    if numbers(version := str(converter.__version__)) < OLDEST:
        raise ExportError(
            f"CoreAIExport needs coreai-torch {'.'.join(map(str, OLDEST))} or newer, got {version}. Write: {INSTALL}"
        )
    return found


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    Example:
        >>> numbers("0.4.3"), numbers("1.0.0b3")
        ((0, 4, 3), (1, 0))
    """
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
