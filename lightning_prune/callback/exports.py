"""The exports at the end of a fit: read in any form that a user may hold, saved, and warned of where they fail."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_prune.errors import ConfigError, ExportError, did_you_mean, one_line, shown
from lightning_prune.export import FORMATS, Export, ExportResult, format_of

__all__ = ["in_a_list", "load_exports", "named_numbers", "refuse_sharded", "save_all"]


def load_exports(given: Any) -> Any:
    """Read an export or a list of exports: each as it is, a path, a dict of its arguments, or what LightningCLI gives.

    Returns:
        An export, a list of exports, or None, as it was given.

    Raises:
        ConfigError: It is none of these, a key of it is not known, or two exports have the same path.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        exports = [load_export(export) for export in given]
        refuse_same_paths(exports)
        return exports
    return None if given is None else load_export(given)


def load_export(given: Any) -> Export:
    """Read an export in any form that a user may hold."""
    if isinstance(given, (str, os.PathLike)):
        return format_of(Path(given)).export(given)  # type: ignore[no-any-return]
    if type(given).__module__.startswith("jsonargparse.") and hasattr(given, "as_dict"):
        return load_export(given.as_dict())  # what LightningCLI could not build: the error says why
    if isinstance(given, Export) and not isinstance(given, type):
        return given
    classes = {row.export.__name__: row.export for row in FORMATS.values()}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"export must be a {', '.join(classes)}, a path or None, got {shown(given)}. It may be a list of these."
        )
    if "class_path" in given and set(given) <= {"class_path", "init_args"}:  # as LightningCLI writes
        name = str(given["class_path"]).rpartition(".")[2]
        if name not in classes:
            raise ConfigError(
                f"class_path of an export must be {' or '.join(classes)}, got {shown(given['class_path'])}."
            )
        return from_arguments(classes[name], given["init_args"] if given.get("init_args") else {})
    path = given.get("path")
    kind = format_of(Path(path if isinstance(path, (str, os.PathLike)) else "")).export
    if not _knows(kind, given):  # LightningCLI gives all arguments of a class whose name it has lost
        kind = next((other for other in classes.values() if _knows(other, given)), kind)
    return from_arguments(kind, given)


def _knows(kind: Any, arguments: Mapping[str, Any]) -> bool:
    return set(arguments) <= {entry.name for entry in fields(kind)}


def from_arguments(kind: Any, arguments: Mapping[str, Any]) -> Export:
    """An export of a class, made of a dict of its arguments."""
    known = [entry.name for entry in fields(kind)]
    for key in arguments:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" Known are {', '.join(known)}."
            raise ConfigError(f"export.{one_line(key)} is not a known key.{hint}")
    if "path" not in arguments:
        raise ConfigError('export.path is missing. Write where the file goes: {"path": "model.mlpackage"}.')
    return kind(**arguments)  # type: ignore[no-any-return]


def in_a_list(exports: Any) -> list[Export]:
    """What :func:`load_exports` gives, or what was put in its place, as a list."""
    if exports is None:
        return []
    return list(exports) if isinstance(exports, Sequence) else [exports]


def refuse_same_paths(exports: Sequence[Export]) -> None:
    """Raise if two exports go to the same place: the later would replace the earlier."""
    counts = Counter(Path(export.path).absolute().resolve() for export in exports)
    again = [str(path) for path, count in counts.items() if count > 1]
    if again:
        raise ConfigError(f"export must be a list of exports to different paths, got {again[0]} twice. Write another.")


def refuse_sharded() -> None:
    """Refuse the export at the end of a fit whose model lies in parts in several processes."""
    raise ConfigError(
        "export needs the whole model in one process, but it is sharded over several (DTensor). Take export out, and "
        "export a checkpoint afterwards: CoreMLExport(path).save(Model.load_from_checkpoint(checkpoint))."
    )


def save_all(
    exports: Sequence[Export], model: nn.Module, masks: Mapping[str, Tensor] | None
) -> tuple[list[ExportResult], list[tuple[Export, ExportError]]]:
    """Save every export; a failure is warned of, and costs neither the model nor another export.

    Args:
        exports: Exports to different paths.
        model: The finalized model.
        masks: Keep-masks by parameter name; None where the model's own zeros tell.

    Returns:
        The results of the exports that succeeded, and each other with its error.
    """
    results, errors = list[ExportResult](), list[tuple[Export, ExportError]]()
    for place, export in enumerate(exports):
        try:
            results.append(export.save(model, masks=masks))
            continue
        except ExportError as error:
            failure = error
        except Exception as error:  # an export of the user's own may raise whatever it likes
            failure = ExportError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        errors.append((export, failure))
        if export.on_error != "raise":
            which = f"[{place}]" if len(exports) > 1 else ""
            rank_zero_warn(
                f"The export to {export.path} failed; the trained and pruned model is unharmed. {failure} "
                f"Retry with callback.export{which}.save(model)."
            )
    return results, errors


def named_numbers(results: Sequence[ExportResult]) -> dict[str, float]:
    """The numbers of all results for a logger; of several with the same format, with the names of their files."""
    counts = Counter(result.prefix for result in results)
    numbers = dict[str, float]()
    for result in results:
        own = f"{result.path.stem}/" if counts[result.prefix] > 1 else ""
        numbers |= result.as_dict(result.prefix + own)
    return numbers
