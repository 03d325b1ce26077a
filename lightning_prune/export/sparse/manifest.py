"""What a sparse file says of itself, as JSON in its metadata: of each tensor how it is stored, read with distrust."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch

from lightning_prune.errors import first_names, shown
from lightning_prune.export.sparse.forms import PLAIN_FORMS, DamagedPartsError, Dense, Form, NofM
from lightning_prune.export.sparse.layouts import View, memory_order

__all__ = ["DTYPES", "FORMAT", "Entry", "StoredTensor", "read_manifest", "write_manifest"]

FORMAT, VERSION = "lightning_prune.sparse", "1"
# Types that can be stored, by name.
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
        *("uint64", "uint32", "uint16", "complex128", "complex64", "complex32"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
}
# Those that every version of safetensors has.
_KNOWN = tuple(DTYPES)[:10]
# More dimensions than torch works with; more numbers than there is memory.
_MOST_DIMS, _MOST_NUMBERS = 64, 2**56
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has parts of its own in the file.

    Attributes:
        dtype: Its type, as torch calls it without ``torch.``.
        shape: Its shape.
        stride: Numbers between two neighbours of each dimension; None if it is contiguous.
        form: How its numbers are stored, which are taken in the order in which they lie in memory.
        has_signs: Whether the signs of its zeros are stored apart.
        crc32: Of the bytes of all its parts.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    form: Form = Dense()
    has_signs: bool = False
    crc32: int = 0

    @property
    def order(self) -> tuple[int, ...]:
        """The dimensions, the slowest in memory first."""
        found = None if self.stride is None else memory_order(self.shape, self.stride)
        return tuple(range(len(self.shape))) if found is None else found

    @property
    def word(self) -> torch.dtype:
        """The type of whole numbers that stands for its own."""
        return _WORDS[DTYPES[self.dtype].itemsize]

    @property
    def word_shape(self) -> tuple[int, ...]:
        """Its shape as words, in the order of memory; of numbers of 16 bytes, two words are a pair."""
        sizes = tuple(self.shape[dim] for dim in self.order)
        return sizes if self.word.itemsize == DTYPES[self.dtype].itemsize else (*sizes, 2)

    @property
    def is_known(self) -> bool:
        """Whether every version of safetensors has its type; else its values are stored as bytes."""
        return self.dtype in _KNOWN

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of its values in the file."""
        return DTYPES[self.dtype] if self.is_known else torch.uint8

    @property
    def dense_nbytes(self) -> int:
        """Bytes that it would take densely."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def part_types(self) -> dict[str, str]:
        """The type of each of its parts."""
        return {**self.form.part_types, **({"signs": "uint8"} if self.has_signs else {})}

    def keys(self, name: str) -> dict[str, str]:
        """The name of each of its parts in the file: ``fc.weight:values``, or ``fc.weight`` for one like the tensor."""
        is_same = self.form.name == "dense" and self.stride is None and self.is_known
        is_free = ":" not in name and name != "__metadata__"
        is_itself = is_same and is_free and not self.has_signs
        return {part: name if is_itself else f"{name}:{part or 'dense'}" for part in self.part_types}

    def describe(self) -> str:
        """Its form in words."""
        if isinstance(self.form, NofM):
            return f"{self.form.num_zeros}:{self.form.group_size}"
        return self.form.name


Entry = StoredTensor | View


def write_manifest(entries: Mapping[str, Entry], checkpoint: Mapping[str, Any] | None) -> dict[str, str]:
    """The metadata of a file.

    Args:
        entries: Each tensor, by name and in order.
        checkpoint: What else of a checkpoint is kept, of values that JSON has.
    """
    tensors = json.dumps({name: _as_plain(entry) for name, entry in entries.items()})
    rest = {} if checkpoint is None else {"checkpoint": json.dumps(checkpoint)}
    crc32 = str(_crc_of(tensors, rest.get("checkpoint", "")))
    return {"format": FORMAT, "format_version": VERSION, "tensors": tensors, **rest, "crc32": crc32}


def read_manifest(metadata: Mapping[str, str]) -> tuple[dict[str, Entry], dict[str, Any] | None]:
    """The inverse; nothing in it is believed.

    Raises:
        DamagedPartsError: It is not what it must be.
    """
    if metadata.get("format_version") != VERSION:
        raise DamagedPartsError(
            f"its format_version must be {VERSION}, got {shown(metadata.get('format_version'))}; a newer version of "
            "lightning-prune may read it"
        )
    tensors, rest = metadata.get("tensors", ""), metadata.get("checkpoint")
    if metadata.get("crc32") != str(_crc_of(tensors, rest or "")):
        raise DamagedPartsError("the crc32 of what it says of its tensors must be right")
    try:
        rows, checkpoint = json.loads(tensors), None if rest is None else json.loads(rest)
    except (ValueError, RecursionError) as error:
        raise DamagedPartsError("what it says of its tensors must be JSON") from error
    if not isinstance(rows, dict) or not isinstance(checkpoint, dict | None):
        raise DamagedPartsError("what it says of its tensors must be a JSON object")
    entries = {name: _read_entry(name, row) for name, row in rows.items()}
    for name, entry in entries.items():
        if isinstance(entry, View):
            base = entries.get(entry.of)
            if not isinstance(base, StoredTensor) or not entry.fits(prod(base.shape)):
                raise DamagedPartsError(f"{first_names([name])} must lie within a tensor that the file holds")
    return entries, checkpoint


def _as_plain(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, View):
        return {"form": "view", **asdict(entry)}
    row = {"form": entry.form.name, "dtype": entry.dtype, "shape": entry.shape, "crc32": entry.crc32}
    if entry.has_signs:
        row["signs"] = True
    if entry.stride is not None:
        row["stride"] = entry.stride
    if isinstance(entry.form, NofM):
        dim = (*entry.order, len(entry.shape))[entry.form.axis]  # behind the last: real and imaginary parts
        row |= {"num_zeros": entry.form.num_zeros, "group_size": entry.form.group_size, "dim": dim}
    return row


def _read_entry(name: str, row: Any) -> Entry:
    wrong = DamagedPartsError(
        f"{first_names([name])} must be described by form, dtype, shape and crc32, got {shown(row)}"
    )
    given = row.get("form") if isinstance(row, dict) else None
    form = given if isinstance(given, str) else ""
    wholes = {key: row.get(key) for key in ("shape", "stride") if row.get(key) is not None} if form else {}
    if "shape" not in wholes or not all(_are_wholes(sizes) for sizes in wholes.values()):
        raise wrong
    if prod(max(1, size) for size in wholes["shape"]) >= _MOST_NUMBERS:
        raise wrong
    shape, stride = tuple(wholes["shape"]), tuple(wholes["stride"]) if "stride" in wholes else None
    if form == "view":
        if stride is None or not isinstance(row.get("of"), str) or not _are_wholes([row.get("offset")]):
            raise wrong
        return View(row["of"], shape, stride, row["offset"])
    if (
        form not in (*PLAIN_FORMS, NofM.name)
        or type(row.get("dtype")) is not str
        or row["dtype"] not in DTYPES
        or not _are_wholes([row.get("crc32")])
    ):
        raise wrong
    entry = StoredTensor(row["dtype"], shape, stride, has_signs=row.get("signs") is True, crc32=row["crc32"])
    if stride is not None and (len(stride) != len(shape) or not prod(shape) or memory_order(shape, stride) is None):
        raise DamagedPartsError(f"the stride of {first_names([name])} must fill its memory, got {shown(stride)}")
    if form in PLAIN_FORMS:
        return replace(entry, form=PLAIN_FORMS[form])
    pattern = [row.get(key) for key in ("num_zeros", "group_size", "dim")]
    if not _are_wholes(pattern) or pattern[2] >= len(entry.word_shape):
        raise wrong
    axis = (*entry.order, len(shape)).index(pattern[2])
    return replace(entry, form=NofM(pattern[0], pattern[1], axis))


def _are_wholes(values: Any) -> bool:
    """Whether it is a list of whole numbers as a tensor's sizes and strides are."""
    is_list = isinstance(values, list) and len(values) <= _MOST_DIMS
    return is_list and all(type(number) is int and 0 <= number < _MOST_NUMBERS for number in values)


def _crc_of(*texts: str) -> int:
    return zlib.crc32("\0".join(texts).encode("utf-8", "surrogatepass"))
