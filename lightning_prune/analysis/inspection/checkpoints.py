"""The weights of a checkpoint, a state dict or a file of safetensors, read without running code from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_prune.basics import (
    NotLoaded,
    check_claims,
    home,
    import_safetensors,
    is_plain,
    load_content,
    read_safetensors,
)
from lightning_prune.errors import CheckpointError, first_names, shown
from lightning_prune.masking import plain_state_dict
from lightning_prune.plan import computed_weights

if TYPE_CHECKING:
    from lightning_prune.export import SparseFile

__all__ = [
    "SPARSE",
    "countable",
    "existing",
    "find_sparse",
    "is_weight",
    "read_checkpoint",
    "read_tensors",
    "read_weights",
]

SPARSE = "sparse safetensors file"
NAMES_OF_STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The floating tensors of rank 2 and more of a checkpoint, by name; those behind a weight norm as it computes them.

    Raises:
        CheckpointError: As :func:`read_tensors`; or there are none.
    """
    tensors = computed_weights(read_tensors(path)[1])
    weights = {name: tensor for name, tensor in tensors.items() if is_weight(tensor) and tensor.numel()}
    if not weights:
        raise CheckpointError(f"{path} holds no weights of rank 2 or more.")
    return weights


def read_tensors(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor], list[str]]:
    """Read the weights of a file, with masks that are held apart applied.

    Args:
        path: A Lightning checkpoint, a state dict, or ``.safetensors``.

    Returns:
        What sort of file it is, the tensors by plain name on the CPU, and notes on what was found.

    Raises:
        CheckpointError: There is no such file, or it holds no weights that can be read.
        ImportError: The package safetensors is needed and not installed.
    """
    path = home(path)
    if path.suffix == ".safetensors":
        found = find_sparse(path)
        tensors, notes = countable(_read_safetensors(path) if found is None else found.tensors, path)
        return "safetensors file" if found is None else SPARSE, tensors, notes
    content = read_checkpoint(path)
    kind, state = _find_state(path, content)
    check_claims(state.values(), path)
    plain = plain_state_dict(state)
    tensors, left = countable(plain, path)
    notes = [*_notes(content), *left]
    if len(held := [name for name in state if str(name).endswith("_orig") and name not in plain]):
        notes.append(
            f"{len(held)} weights are held apart from their masks (such as {held[0]}); "
            "lightning-prune convert puts them together."
        )
    return kind, tensors, notes


def countable(found: Mapping[Any, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors whose zeros can be counted, by name, and a note on the others."""
    values = {name if isinstance(name, str) else shown(name): value for name, value in found.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    check_claims(tensors.values(), path)
    left = [name for name, tensor in tensors.items() if not (is_plain(tensor) and _has_zeros(tensor.dtype))]
    left += [name for name, value in values.items() if isinstance(value, NotLoaded)]
    why = "sparse, quantized, without values, or of a type that torch cannot compare or would have to import"
    notes = [f"Not looked into: {first_names(left)} ({why})."] if left else []
    # as plain numbers: a tensor may say that its numbers are to be read with the other sign, or conjugate
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in tensors.items() if name not in left}, notes


def _has_zeros(dtype: torch.dtype) -> bool:
    """Whether torch can say which numbers of a type are zero."""
    try:
        return bool((torch.empty(1, dtype=dtype) != 0).numel())
    except (RuntimeError, NotImplementedError):
        return False


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Load a file of torch with ``weights_only=True``: no code in it runs.

    Objects whose classes would have to be imported, such as a path among hyperparameters, are :class:`NotLoaded`.

    Raises:
        CheckpointError: There is no such file, or it is none of torch.
    """
    path = existing(home(path))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Give a file, or a Core ML package that ends in .mlpackage.")
    return load_content(path, skip_objects=True)


def existing(path: Path) -> Path:
    """The path; there must be something at it."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    return path


def find_sparse(path: Path) -> SparseFile | None:
    """What a sparse file holds; None if a path is that of another file."""
    from lightning_prune.export import is_sparse_file, read_sparse

    is_sparse = path.suffix == ".safetensors" and path.is_file() and is_sparse_file(path)
    return read_sparse(path) if is_sparse else None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import_safetensors()  # what is missing is said first
    existing(path)
    try:
        return read_safetensors(path)[1]
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _find_state(path: Path, content: Any) -> tuple[str, Mapping[str, Any]]:
    """The state dict within what a file holds."""
    if isinstance(content, Tensor):
        return "tensor", {path.stem: content}
    if isinstance(content, Mapping):
        is_lightning = "pytorch-lightning_version" in content
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return "state dict", content
        for name in NAMES_OF_STATES:
            state = content.get(name)
            if isinstance(state, Mapping) and any(isinstance(value, Tensor) for value in state.values()):
                return "Lightning checkpoint" if is_lightning else f"checkpoint ({name})", state
        if any(isinstance(value, Tensor) for value in content.values()):
            return "state dict", content
        keys = [key if isinstance(key, str) else shown(key) for key in islice(content, 8)]
        found = f"a dict with {first_names(keys) or 'nothing in it'}"
    else:
        found = type(content).__name__
    raise CheckpointError(f"{path} must hold a state dict or a checkpoint with one, got {found}.")


def _notes(content: Any) -> Iterator[str]:
    """What a Lightning checkpoint says about pruning."""
    callbacks = content.get("callbacks") if isinstance(content, Mapping) else None
    if not isinstance(callbacks, Mapping):
        return
    if "epoch" in content and "global_step" in content:
        yield f"Saved at epoch {shown(content['epoch'])}, optimizer step {shown(content['global_step'])}."
    for key, state in callbacks.items():
        if "Pruning" in str(key) and isinstance(state, Mapping) and "step_count" in state:
            name, steps = first_names([str(key)]), shown(state["step_count"])
            yield f"Holds the pruning state of {name} after {steps} steps: a fit can be resumed from it."


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is listed and counted: floating, and of rank 2 or more."""
    return tensor.ndim > 1 and tensor.is_floating_point()
