"""The export at the end of a fit: read in any form that a user may hold, refused or warned of where it fails."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.errors import ConfigError, ExportError, did_you_mean, one_line, shown
from lightning_prune.export import CoreMLExport

__all__ = ["load_export", "refuse_sharded", "warn_of_failure"]


def load_export(export: Any) -> CoreMLExport | None:
    """Read an export: as it is, a path, a dict of its arguments, or what LightningCLI makes of them.

    Raises:
        ConfigError: It is none of these, or a key of it is not known.
    """
    if isinstance(export, (CoreMLExport, type(None))):
        return export
    if isinstance(export, (str, os.PathLike)):
        return CoreMLExport(export)
    if type(export).__module__.startswith("jsonargparse.") and hasattr(export, "as_dict"):
        return load_export(export.as_dict())  # what LightningCLI could not build: the error says why
    if not isinstance(export, Mapping):
        raise ConfigError(f"export must be a CoreMLExport, a path or None, got {shown(export)}.")
    if "class_path" in export and set(export) <= {"class_path", "init_args"}:  # as LightningCLI writes
        if str(export["class_path"]).rpartition(".")[2] != CoreMLExport.__name__:
            raise ConfigError(f"class_path of an export must be CoreMLExport, got {shown(export['class_path'])}.")
        return load_export(export["init_args"] if export.get("init_args") else {})
    known = [entry.name for entry in fields(CoreMLExport)]
    for key in export:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" Known are {', '.join(known)}."
            raise ConfigError(f"export.{one_line(key)} is not a known key.{hint}")
    if "path" not in export:
        raise ConfigError('export.path is missing. Write where the package goes: {"path": "model.mlpackage"}.')
    return CoreMLExport(**export)


def refuse_sharded() -> None:
    """Refuse the export at the end of a fit whose model lies in parts in several processes."""
    raise ConfigError(
        "export needs the whole model in one process, but it is sharded over several (DTensor). Take export out, and "
        "export a checkpoint afterwards: CoreMLExport(path).save(Model.load_from_checkpoint(checkpoint))."
    )


def warn_of_failure(error: ExportError) -> None:
    """Say that an export failed, and how to try again: the model is trained and pruned all the same."""
    rank_zero_warn(
        f"The Core ML export failed; the trained and pruned model is unharmed. {error} "
        "Retry with callback.export.save(model)."
    )
