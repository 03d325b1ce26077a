"""The page of a run that is over, from what it left: a checkpoint, or a folder with checkpoints and logs."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_prune.analysis import read_checkpoint, read_weights, report_of
from lightning_prune.basics import home
from lightning_prune.errors import CheckpointError, first_names, one_line
from lightning_prune.page.contents import Curve, DenseRow, RunPage
from lightning_prune.page.gathering import layer_rows, mask_pictures, now, thinned, versions
from lightning_prune.page.history import MOST_METRICS, MOST_POINTS, History
from lightning_prune.pruner import MOST_STEPS

__all__ = ["read_run"]

_PATTERNS = ("*.ckpt", "*/*.ckpt", "*/*/*.ckpt")
_LEAST_ZEROS = 1 / 16  # of a weight that is taken for pruned where nothing says which are
_LOG = "metrics.csv"


def read_run(path: str | os.PathLike[str], *, prefix: str = "sparsity") -> RunPage:
    """Read what a run has left; nothing in it is executed.

    Args:
        path: A Lightning checkpoint, a state dict, ``.safetensors``, or a folder in which a checkpoint lies, such as
            ``lightning_logs/version_0``: the newest is taken, and the ``metrics.csv`` of a CSVLogger beside it.
        prefix: What the names of logged sparsities start with.

    Raises:
        CheckpointError: There is no such file, or it holds no weights that can be read.
        ImportError: The package safetensors is needed and not installed.
    """
    place = home(path)
    folder, file, notes = (place, *_newest(place)) if place.is_dir() else (None, place, ())
    content = {} if file.suffix == ".safetensors" else read_checkpoint(file)
    content = content if isinstance(content, Mapping) else {}
    state, history = _pruning_state(content), History()
    if "history" in state:
        history.load_state_dict(state["history"])
    weights = read_weights(file)
    targets = _targets(state)
    rows = tuple(replace(row, target=targets.get(row.name)) for row in layer_rows(report_of(weights)))
    pruned = tuple(row for row in rows if (row.name in targets if targets else row.sparsity >= _LEAST_ZEROS))
    names = {row.name for row in pruned}
    others = tuple(row.name for row in rows if row.name not in names)
    pictures, more = mask_pictures(
        (name, weight != 0, tuple(weight.shape)) for name, weight in weights.items() if name in names
    )
    log = None if folder is None else _log_beside(file, folder)
    logged = {} if log is None else _read_log(log)
    of_log = {name: curve for name, curve in logged.items() if not name.startswith(prefix)}
    lasting = {**history.metrics, **of_log} if history.metrics else dict(list(of_log.items())[:MOST_METRICS])
    if log is not None:
        notes = (*notes, f"Curves are those of {log}, and of the checkpoint.")
    return RunPage(
        title=file.name,
        status=_status(content, state),
        is_finished=True,
        layers=pruned,
        dense=(DenseRow(others, "", "It is not pruned."),) if others else (),
        planned=history.planned,
        actual=_joined(history.actual, logged.get(f"{prefix}/global")),
        metrics={name: _joined(history.metrics.get(name), lasting[name]) for name in [*lasting][:MOST_METRICS]},
        masks=pictures,
        more_masks=more,
        notes=(
            f"Read from {file}. What was exported and made slim is on the page that the callback writes.",
            *notes,
        ),
        versions=_versions(content),
        configuration=history.configuration,
    )


def _newest(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The newest checkpoint in a folder, and a note on the others."""
    found = [file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()]
    if not found:
        raise CheckpointError(
            f"{folder} has no checkpoint (.ckpt) in it or two folders below. Give a checkpoint, a state dict or "
            "the folder of a logger."
        )
    newest = max(found, key=lambda file: (file.stat().st_mtime, str(file)))
    others = [str(file.relative_to(folder)) for file in found if file != newest]
    return newest, (f"The newest of {len(found)} checkpoints; the others: {first_names(others)}.",) if others else ()


def _pruning_state(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state of the pruning callback in a checkpoint; empty where there is none."""
    callbacks = content.get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if "Pruning" in str(key) and isinstance(state, Mapping) and isinstance(state.get("parameters"), Mapping):
            return state
    return {}


def _targets(state: Mapping[Any, Any]) -> dict[str, float | None]:
    """The target of each pruned parameter, as far as its state says it."""
    targets: dict[str, float | None] = {}
    for name, entry in dict(state.get("parameters", {})).items():
        rule = entry.get("rule") if isinstance(entry, Mapping) else None
        try:
            asked: object = json.loads(rule)["target_sparsity"] if isinstance(rule, str) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            asked = None
        if not isinstance(asked, (int, float)) or not 0 <= asked <= 1 or state.get("scope") == "global":
            asked = None  # of weights that are ranked together, none has a target of its own
        targets[str(name)] = asked
    return targets


def _status(content: Mapping[Any, Any], state: Mapping[Any, Any]) -> str:
    steps, epoch = state.get("step_count", content.get("global_step")), content.get("epoch")
    if type(steps) is not int:
        return f"A file of weights; page of {now()}."
    after = f" in epoch {epoch}" if type(epoch) is int else ""
    return f"A checkpoint after {steps:,} optimizer steps{after}; page of {now()}."


def _versions(content: Mapping[Any, Any]) -> dict[str, str]:
    found = {f"{name} (of this page)": text for name, text in versions().items() if name == "lightning-prune"}
    lightning = content.get("pytorch-lightning_version")
    return {**found, "Lightning (of the checkpoint)": lightning} if isinstance(lightning, str) else found


def _log_beside(file: Path, folder: Path) -> Path | None:
    """The log of a CSVLogger in the folder of a checkpoint, or above that up to the folder of the run."""
    for parent in (file.parent, *file.parent.parents):
        if (parent / _LOG).is_file():
            return parent / _LOG
        if parent == folder:
            break
    return None


def _read_log(path: Path) -> dict[str, Curve]:
    """Curves of a table of metrics by name."""
    points: dict[str, dict[int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.get("step") or -1)
                for name, text in row.items():
                    is_metric = isinstance(name, str) and name not in ("step", "epoch") and not name.endswith("_step")
                    if not is_metric or not isinstance(text, str) or not text or not 0 <= step <= MOST_STEPS:
                        continue
                    if math.isfinite(value := float(text)):
                        points.setdefault(str(name), {})[step] = value
    except (ValueError, csv.Error, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a table of metrics: {one_line(error)}") from error
    return {name: _joined(None, Curve(tuple(curve), tuple(curve.values()))) for name, curve in points.items()}


def _joined(curve: Curve | None, other: Curve | None) -> Curve:
    """The points of two curves, within bounds; where both have a step, those of the second."""
    points: dict[int, float] = {}
    for each in (curve, other):
        if each is not None:
            points |= dict(zip(each.steps, each.values, strict=True))
    steps = thinned(sorted(points), MOST_POINTS)
    return Curve(tuple(steps), tuple(points[step] for step in steps))
