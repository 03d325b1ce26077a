"""Files of tensors from anywhere: loaded as data alone, and within the memory that their size explains."""

from __future__ import annotations

import importlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lightning_prune.errors import CheckpointError, one_line

__all__ = [
    "NotLoaded",
    "check_claims",
    "has_values",
    "import_safetensors",
    "is_plain",
    "load_checkpoint",
    "load_content",
    "load_tensors",
    "read_safetensors",
    "write_safetensors",
]

_MOST_CLAIMED = 2**28  # bytes that the tensors of a small file may stand for
_MOST_SHARED = 4  # tensors that may share each byte of a large tensor
_MOST_CLASSES = 256  # that a file may name without their being imported
_NEEDED = re.compile(r"GLOBAL ([\w.]+)")  # the function or class that torch would have had to import


class NotLoaded:
    """An object of a file whose class is not imported, so that nothing but its name is known."""

    def __new__(cls, *args: Any) -> NotLoaded:
        """As the file says that it is made, with arguments that nobody looks at."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, not loaded>"


def load_tensors(path: Path, *, skip_objects: bool = False) -> Any:
    """Load what ``torch.save`` wrote with ``weights_only=True``: no code in it runs.

    Args:
        path: Of the file.
        skip_objects: Put a :class:`NotLoaded` where the file has an object of a class that torch does not know as
            harmless, in place of refusing all of it. Lightning saves such in hyperparameters: paths, enums, losses.

    Raises:
        CheckpointError: It is no file, would unpack to more than it is, or cannot be loaded so. It says why alone, to
            be put after the path.
    """
    if not path.is_file():
        raise CheckpointError("it is no file" if path.exists() else "it does not exist")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Validating sparse tensor")  # what it does is what is wanted here
            with safe_globals(_stand_ins(path) if skip_objects else []):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises half a dozen types for files that are no checkpoints
        raise CheckpointError(_why_not(path, error)) from error
    if isinstance(content, NotLoaded):
        raise CheckpointError(_needs_code(type(content).__name__))
    return content


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


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file of safetensors.

    Raises:
        CheckpointError: It is none. It says why alone, to be put after the path.
        ImportError: The package safetensors is not installed.
    """
    safetensors = import_safetensors()
    if not path.is_file():
        raise CheckpointError("it is no file" if path.exists() else "it does not exist")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(one_line(error)) from error


def write_safetensors(tensors: Mapping[str, Tensor], place: Path, metadata: Mapping[str, str]) -> None:
    """Write a file of safetensors, with the rights that new files have here.

    Raises:
        OSError: It cannot be written.
        ImportError: The package safetensors is not installed.
    """
    safetensors = import_safetensors()
    place.touch()
    mode = place.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), place, dict(metadata))
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    place.chmod(mode)  # the package makes files that others cannot read


def load_content(path: Path, *, skip_objects: bool = False) -> Any:
    """What :func:`load_tensors` loads.

    Raises:
        CheckpointError: As there, and it names the path.
    """
    try:
        return load_tensors(path, skip_objects=skip_objects)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}.") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """What ``torch.save`` wrote of a checkpoint or a state dict, and the state dict in it, which may be all of it.

    Raises:
        CheckpointError: It is neither, or stands for far more numbers than it holds.
    """
    content = load_content(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a state dict or a checkpoint, got {type(content).__name__}.")
    state = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    check_claims(state.values(), path)
    return content, state


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds its elements one by one, rather than sparse, quantized, nested or not at all (meta)."""
    is_strided = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return is_strided and not tensor.is_meta


def is_plain(tensor: Tensor) -> bool:
    """Whether it does, and is of no subclass that may mean something else by them."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and has_values(tensor)


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is, torch compresses nothing; and one of something else."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        files = {name.rpartition("/")[2] for name in archive.namelist()}
    if unpacked > path.stat().st_size:
        raise CheckpointError(f"it is compressed, and unpacks to {unpacked:,} bytes; torch.save compresses nothing")
    if "constants.pkl" in files:
        raise CheckpointError("it is a program of TorchScript; save the state_dict() of its module alone")
    if "data.pkl" not in files:
        raise CheckpointError("it is an archive, but torch.save did not write it")


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A class of nothing for each that a file names and torch does not know as harmless."""
    if not zipfile.is_zipfile(path):
        return []
    names = get_unsafe_globals_in_checkpoint(path)
    if len(names) > _MOST_CLASSES:
        raise CheckpointError(
            f"it names {len(names):,} classes and functions, of which at most {_MOST_CLASSES} are passed over; save "
            "the state_dict() alone"
        )
    return [(type(name, (NotLoaded,), {}), name) for name in names]


def _needs_code(name: str) -> str:
    return (
        f"it holds {one_line(name)}, which is neither a tensor nor a plain value, and no code of a file is run here; "
        "save the state_dict() alone"
    )


def _why_not(path: Path, error: Exception) -> str:
    """What is wrong with a file; torch's own words are of its reader, and of loading what is not trusted."""
    if isinstance(error, OSError | MemoryError):
        return one_line(error)
    needed = _NEEDED.search(str(error))
    if needed is not None:
        return _needs_code(needed[1])
    if zipfile.is_zipfile(path):
        stumbled = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        what = one_line(stumbled or type(error).__name__)
        return f"it is damaged, or holds more than tensors and plain values ({what})"
    return "it is empty" if not path.stat().st_size else "torch.save did not write it, or it was cut off"
