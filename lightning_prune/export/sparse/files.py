"""A state dict in a file of safetensors, each tensor in the form that takes the fewest bytes.

The package safetensors reads and writes the file, and not code of our own: its reader checks every size of a header
from anywhere against the file, and is tested by more people than will ever test ours.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.basics import (
    home,
    import_safetensors,
    is_plain,
    put_in_place,
    uncompiled_name,
    write_safetensors,
    writing_to,
)
from lightning_prune.errors import CheckpointError, ConfigError, ExportError, first_names, one_line, shown
from lightning_prune.export.sparse.forms import DamagedPartsError, Parts, Words, smallest_form
from lightning_prune.export.sparse.layouts import View, find_views, memory_order
from lightning_prune.export.sparse.manifest import (
    DTYPES,
    FORMAT,
    Entry,
    StoredTensor,
    read_manifest,
    write_manifest,
)
from lightning_prune.export.sparse.signs import join_signs, split_signs

__all__ = [
    "SparseFile",
    "check_kind",
    "check_target",
    "is_sparse_file",
    "load_sparse",
    "read_sparse",
    "save_sparse",
    "write_sparse",
]


@dataclass(frozen=True)
class SparseFile:
    """What a sparse file holds.

    Attributes:
        tensors: The tensors by name, in the order in which they were saved.
        entries: How each of them is stored.
        nbytes: Bytes that each of them takes; 0 where it lies in the memory of another.
        checkpoint: What else it keeps of a Lightning checkpoint; None if it was made of a state dict.
    """

    tensors: dict[str, Tensor]
    entries: dict[str, Entry]
    nbytes: dict[str, int]
    checkpoint: dict[str, Any] | None = None

    def describe(self, name: str) -> str:
        """How a tensor is stored, in words."""
        entry = self.entries[name]
        return f"with {entry.of}" if isinstance(entry, View) else entry.describe()


def save_sparse(
    model_or_state_dict: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], *, overwrite: bool = True
) -> None:
    """Write a model's weights to a file that is small because they are sparse, for :func:`load_sparse`.

    Each tensor is stored as a bit mask and the numbers that are not zero, or with places in place of the mask where few
    are not zero, as n:m, or densely: whatever takes the fewest bytes. All its bits come back, and so do its strides if
    it fills its memory (``channels_last``, transposed). Tensors that share memory are stored once.

    Args:
        model_or_state_dict: A model, whose ``state_dict()`` is taken, without the names that ``torch.compile`` adds; or
            a state dict. On any device. Not changed.
        path: Where the file goes, usually ``.safetensors``. It appears when it is complete.
        overwrite: Whether another sparse file there may be replaced. What is something else is never replaced.

    Raises:
        ConfigError: The path is taken.
        ExportError: A value is no tensor or of a kind that cannot be stored, or the file cannot be written.
        ImportError: The package safetensors is not installed.

    Example:
        >>> path = getfixture("tmp_path") / "model.safetensors"
        >>> save_sparse({"weight": torch.eye(64)}, path)
        >>> bool((load_sparse(path)["weight"] == torch.eye(64)).all()), path.stat().st_size < 64 * 64
        (True, True)
    """
    target = home(path)
    check_target(target, overwrite=overwrite)
    tensors = state_of(model_or_state_dict)
    with writing_to(target) as place:
        write_sparse(tensors, place)
        check_target(target, overwrite=overwrite)
        put_in_place(place, target)


def load_sparse(
    path: str | os.PathLike[str], *, into: nn.Module | None = None, strict: bool = True
) -> dict[str, Tensor]:
    """Read what :func:`save_sparse` wrote: the same tensors, dense and on the CPU. No code in the file runs.

    Args:
        path: The file.
        into: A model that is to load them, wherever it is.
        strict: Whether its names must be those of the file, as for ``load_state_dict``.

    Returns:
        The state dict, in its order. Tensors that shared memory when they were saved share memory again.

    Raises:
        CheckpointError: It is no such file or is damaged, or does not fit ``into``.
        ImportError: The package safetensors is not installed.
    """
    path = home(path)
    tensors = read_sparse(path).tensors
    if into is not None:
        own = {uncompiled_name(name): name for name in into.state_dict()}
        try:
            into.load_state_dict({own.get(name, name): tensor for name, tensor in tensors.items()}, strict=strict)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit {type(into).__name__}: {one_line(error, most=1000)}") from error
    return tensors


def state_of(model_or_state_dict: Any) -> Mapping[str, Any]:
    """The state dict of a model, with plain names, or the state dict that is given."""
    if isinstance(model_or_state_dict, nn.Module):
        return {uncompiled_name(name): value for name, value in model_or_state_dict.state_dict().items()}
    if not isinstance(model_or_state_dict, Mapping):
        raise ConfigError(f"What is saved must be a module or a state dict, got {shown(model_or_state_dict)}.")
    return model_or_state_dict


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise unless a sparse file can be put at a path.

    Raises:
        ConfigError: Something else is there, or a sparse file that may not be replaced.
    """
    if path.is_symlink() or (path.exists() and not is_sparse_file(path)):
        raise ConfigError(
            f"path must be free or hold a file that save_sparse wrote, but {path} is something else. Choose another "
            "path."
        )
    if path.exists() and not overwrite:
        raise ConfigError(
            f"path must be free with overwrite=False, but {path} exists. Remove it or allow to overwrite."
        )


def is_sparse_file(path: Path) -> bool:
    """Whether a file says that it is one of these; its content is not looked into."""
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, "pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (OSError, safetensors.SafetensorError):
        return False


def write_sparse(
    tensors: Mapping[str, Any], place: Path, *, checkpoint: Mapping[str, Any] | None = None
) -> dict[str, Entry]:
    """Write tensors to a place.

    Args:
        tensors: By name.
        place: Where the file goes; what is there is replaced.
        checkpoint: What else of a checkpoint is kept, of values that JSON has.

    Returns:
        How each of them is stored.

    Raises:
        ExportError: One of them cannot be stored, or the file cannot be written.
        ImportError: The package safetensors is not installed.
    """
    plain = {name: _checked(name, tensor) for name, tensor in tensors.items()}
    views = find_views(plain)
    entries: dict[str, Entry] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if name in views:
            entries[name] = views[name]
            continue
        entry, encoded = _encode(tensor)
        entries[name] = entry
        for part, key in entry.keys(name).items():
            values = torch.from_numpy(encoded[part])
            if entry.part_types[part] == "words":
                values = _as_stored(values, entry)
            parts[key] = values
    try:
        write_safetensors(parts, place, write_manifest(entries, checkpoint))
    except (OSError, ValueError) as error:
        raise ExportError(f"{place.name} cannot be written: {one_line(error)}") from error
    return entries


def read_sparse(path: Path) -> SparseFile:
    """Read a sparse file.

    Raises:
        CheckpointError: It is none, or is damaged.
        ImportError: The package safetensors is not installed.
    """
    safetensors = import_safetensors()
    if not path.is_file():
        raise CheckpointError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    try:
        with safetensors.safe_open(path, "pt") as file, _damage_of(path, "it"):
            return _read(path, file)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {one_line(error)}") from error


def _read(path: Path, file: Any) -> SparseFile:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be a file that save_sparse wrote (format {FORMAT!r}), but is another one of safetensors. "
            "Load it with safetensors.torch.load_file."
        )
    entries, checkpoint = read_manifest(metadata)
    stored = {name: entry for name, entry in entries.items() if isinstance(entry, StoredTensor)}
    wanted = {key for name, entry in stored.items() for key in entry.keys(name).values()}
    if wanted != (there := set(file.keys())):
        raise DamagedPartsError(f"it must hold all that it says and nothing else, but not {_some(wanted ^ there)}")
    tensors: dict[str, Tensor] = {}
    nbytes = dict.fromkeys(entries, 0)
    for name, entry in stored.items():
        with _damage_of(path, first_names([name])):
            parts = {part: _read_part(file, key, entry, part) for part, key in entry.keys(name).items()}
            nbytes[name] = _nbytes(parts)
            if _crc_of(parts) != entry.crc32:
                raise DamagedPartsError("the crc32 of its bytes must be the crc32 that was saved with it")
            tensors[name] = _decode(entry, parts)
    views = {name: entry for name, entry in entries.items() if isinstance(entry, View)}
    tensors |= {name: entry.take(tensors[entry.of]) for name, entry in views.items()}
    return SparseFile({name: tensors[name] for name in entries}, entries, nbytes, checkpoint)


def check_kind(name: object, value: Any) -> None:
    """Raise unless it is a tensor with a name.

    Raises:
        ExportError: It is something else.
    """
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ExportError(
            f"A sparse file holds tensors by name, but {shown(name)} is {shown(value)}. Leave it out, or use "
            "torch.save."
        )


def _checked(name: str, tensor: Any) -> Tensor:
    """A tensor that can be stored."""
    check_kind(name, tensor)
    if not is_plain(tensor) or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise ExportError(
            f"{name!r} must be a plain tensor with numbers in it to be stored, but is of {type(tensor).__name__}, "
            f"{tensor.layout} and {tensor.dtype} on {tensor.device}. Save what tensor.to_dense() or full_tensor() "
            "gives."
        )
    plain: Tensor = tensor.detach().resolve_conj().resolve_neg()
    return plain


def _encode(tensor: Tensor) -> tuple[StoredTensor, Parts]:
    """A tensor's numbers in the smallest form, in the order in which they lie in memory if they fill it."""
    if not tensor.numel() or memory_order(tensor.shape, tensor.stride()) is None:
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    plain_stride = torch.empty(tensor.shape, device="meta").stride()
    stride = None if tensor.stride() == plain_stride else tensor.stride()
    entry = StoredTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), stride)
    flat = tensor.as_strided((tensor.numel(),), (1,)).cpu()
    words = flat.view(entry.word).numpy().reshape(entry.word_shape)
    entry, parts = _encode_words(entry, words)
    return replace(entry, crc32=_crc_of(parts)), parts


def _encode_words(entry: StoredTensor, words: Words) -> tuple[StoredTensor, Parts]:
    """Words in the smallest form, with the signs of zeros apart where that is smaller."""
    form = smallest_form(words)
    parts = form.encode(words)
    if DTYPES[entry.dtype].is_floating_point:
        plain, signs = split_signs(words)
        if signs.any():
            other = smallest_form(plain)
            if _nbytes(others := {**other.encode(plain), "signs": signs}) < _nbytes(parts):
                return replace(entry, form=other, has_signs=True), others
    return replace(entry, form=form), parts


def _decode(entry: StoredTensor, parts: Parts) -> Tensor:
    words = entry.form.decode(parts, entry.word_shape)
    if entry.has_signs:
        join_signs(words, parts["signs"])
    flat = torch.from_numpy(words.reshape(-1)).view(DTYPES[entry.dtype])
    return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)


def _as_stored(words: Tensor, entry: StoredTensor) -> Tensor:
    """Words as numbers of the type that they have in the file."""
    flat = words.reshape(-1).view(entry.stored_dtype)
    return flat.reshape(words.shape) if entry.is_known else flat


def _read_part(file: Any, key: str, entry: StoredTensor, part: str) -> Words:
    """A part as it was encoded; no more bytes are taken than it has in the file."""
    kind = entry.part_types[part]
    dtype = entry.stored_dtype if kind == "words" else getattr(torch, kind)
    tensor = file.get_tensor(key)
    if tensor.dtype != dtype:
        raise DamagedPartsError(f"{shown(key)} must be of {dtype}, got {tensor.dtype}")
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # of a version that gives parts of one map of the file
    word = entry.word if kind == "words" else dtype
    if tensor.nbytes % word.itemsize:
        raise DamagedPartsError(f"{shown(key)} must be of whole numbers of {entry.dtype}, got {tensor.nbytes} bytes")
    words: Words = tensor.reshape(-1).view(word).numpy()
    return words


@contextmanager
def _damage_of(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DamagedPartsError as error:
        raise CheckpointError(f"{path} is damaged: of {what}, {error}.") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than there is: for {what}.") from error


def _nbytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())


def _crc_of(parts: Parts) -> int:
    crc = 0
    for part in sorted(parts):
        crc = zlib.crc32(np.ascontiguousarray(parts[part]).reshape(-1).view(np.uint8).data, crc)
    return crc


def _some(names: set[str]) -> str:
    return first_names(sorted(names), most=3)
