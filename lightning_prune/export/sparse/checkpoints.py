"""Checkpoints and sparse files, each made of the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.basics import (
    home,
    load_checkpoint,
    put_in_place,
    read_safetensors,
    writing_to,
)
from lightning_prune.errors import CheckpointError, one_line
from lightning_prune.export.sparse.files import check_target, is_sparse_file, read_sparse, write_sparse
from lightning_prune.masking import plain_state_dict

__all__ = ["Conversion", "convert_sparse"]

# What ``load_from_checkpoint`` needs of a Lightning checkpoint beside the weights; a fit is not resumed from these.
_KEPT = (
    *("epoch", "global_step", "pytorch-lightning_version"),
    *("hparams_name", "hyper_parameters", "datamodule_hparams_name", "datamodule_hyper_parameters"),
)
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        tensors: How many tensors there are.
        nbytes: Bytes of the file that was written.
        lost: What of the source the target does not hold, such as ``"optimizer_states"``.
    """

    tensors: int
    nbytes: int
    lost: tuple[str, ...]


def convert_sparse(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False
) -> Conversion:
    """Turn a checkpoint into a sparse file, or a file of safetensors, sparse or not, into a checkpoint.

    A sparse file keeps the weights under plain names and, of a Lightning checkpoint, what ``load_from_checkpoint``
    needs: the hyperparameters that JSON has, epoch and step. What resumes a fit (optimizer states, callbacks, loops) is
    lost. The way back loses nothing that the sparse file holds.

    Args:
        source: A Lightning checkpoint or a state dict, or ``.safetensors``. No code in it runs.
        target: ``.safetensors`` for a sparse file, else a checkpoint.
        overwrite: Replace the target if it is there; what is not a sparse file is never replaced by one.

    Raises:
        CheckpointError: The source cannot be read, or the target exists or cannot be written.
        ConfigError: Something else than a sparse file lies where one is to go.
        ExportError: A tensor cannot be stored.
        ImportError: The package safetensors is not installed.
    """
    source, target = home(source), home(target)
    is_sparse = target.suffix == SUFFIX
    if is_sparse:
        check_target(target, overwrite=overwrite)
    elif target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists. Write to another path, or pass overwrite=True.")
    state, checkpoint = _read(source)
    kept, lost = _keep(checkpoint) if is_sparse and checkpoint is not None else (checkpoint, [])
    try:
        with writing_to(target) as place:
            if is_sparse:
                write_sparse(state, place, checkpoint=kept)
            else:
                torch.save(dict(state) if kept is None else {**kept, "state_dict": dict(state)}, place)
            put_in_place(place, target)
    except (OSError, RuntimeError) as error:  # torch has errors of its own for a full disk
        raise CheckpointError(f"{target} cannot be written: {one_line(error)}") from error
    return Conversion(len(state), target.stat().st_size, tuple(lost))


def _read(source: Path) -> tuple[Mapping[str, Tensor], dict[str, Any] | None]:
    """The weights of a file, and the rest of its checkpoint; None if it is a state dict alone."""
    if source.suffix == SUFFIX:
        if source.is_file() and not is_sparse_file(source):
            return _read_dense(source), None
        found = read_sparse(source)
        return found.tensors, found.checkpoint
    content, state = load_checkpoint(source)
    rest = None if state is content else {key: value for key, value in content.items() if key != "state_dict"}
    return plain_state_dict(state), rest


def _read_dense(source: Path) -> Mapping[str, Tensor]:
    try:
        return read_safetensors(source)[1]
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be read as safetensors: {error}") from error


def _keep(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a checkpoint a sparse file keeps, and the names of what is lost."""
    kept: dict[str, Any] = {}
    lost: list[str] = []
    for key, value in checkpoint.items():
        if key not in _KEPT:
            lost += [str(key)] if value else []  # an empty list of callbacks is no loss
        elif isinstance(value, Mapping):
            plain = {name: item for name, item in value.items() if _comes_back({name: item})}
            lost += [f"{key}[{name!r}]" for name in value if name not in plain]
            kept[key] = plain
        elif _comes_back(value):
            kept[key] = value
        else:
            lost.append(key)
    return kept, lost


def _comes_back(value: Any) -> bool:
    """Whether JSON gives back what is put into it: a tuple comes back as a list, a path not at all."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
