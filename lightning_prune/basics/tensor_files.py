"""Files of tensors from anywhere: loaded as data alone, and within the memory that their size explains."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.errors import CheckpointError, one_line

__all__ = ["check_claims", "has_values", "import_safetensors", "is_plain", "load_tensors"]

_MOST_CLAIMED = 2**28  # bytes that the tensors of a small file may stand for
_MOST_SHARED = 4  # tensors that may share each byte of a large one


def load_tensors(path: Path) -> Any:
    """Load what ``torch.save`` wrote with ``weights_only=True``: no code in it runs.

    Raises:
        CheckpointError: It is no file, would unpack to more than it is, or cannot be loaded so. It says why alone, to
            be put after the path.
    """
    if not path.is_file():
        raise CheckpointError("it is no file" if path.exists() else "it does not exist")
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for files that are no checkpoints
        first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(one_line(first_line)) from error


def check_claims(tensors: Iterable[Any], path: Path) -> None:
    """Refuse tensors that stand for far more numbers than the file holds, as one of stride 0 does.

    Raises:
        CheckpointError: They do.
    """
    storages: dict[int, int] = {}
    claimed = 0
    for tensor in tensors:
        if isinstance(tensor, Tensor) and is_plain(tensor):
            claimed += tensor.numel() * tensor.element_size()
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    held = sum(storages.values())
    if claimed > _MOST_SHARED * held + _MOST_CLAIMED:
        raise CheckpointError(
            f"{path} holds {held:,} bytes of tensors, which stand for {claimed:,} by repeating them (stride 0). Save "
            "what is meant: tensor.clone()."
        )


def import_safetensors() -> Any:
    """The package safetensors, with its part for torch.

    Raises:
        ImportError: It is not installed.
    """
    try:
        importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError("Files of safetensors need a package of that name: pip install safetensors") from error
    return importlib.import_module("safetensors")


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds its elements one by one, rather than sparse, quantized, nested or not at all (meta)."""
    is_strided = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return is_strided and not tensor.is_meta


def is_plain(tensor: Tensor) -> bool:
    """Whether it does, and is of no subclass that may mean something else by them."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and has_values(tensor)


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is; torch compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(f"it is compressed, and unpacks to {unpacked:,} bytes; torch.save compresses nothing")
