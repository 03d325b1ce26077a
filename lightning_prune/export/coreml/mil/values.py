"""The values of a Core ML package: how arrays are stored, and how compressed weights are put together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_prune.errors import ExportError

__all__ = [
    "Array",
    "BITS",
    "Stored",
    "blob_nbytes",
    "data_type",
    "decode",
    "look_up",
    "repeat_to",
    "scatter",
    "shift_scale",
    "step_name",
    "unfold",
    "unpack_bits",
]

Array = npt.NDArray[Any]

RECORD_BYTES = 64  # of the record before each array in a weight file
# MIL's data types: name, bits, numpy type of one element once unpacked.
# https://github.com/apple/coremltools/blob/main/mlmodel/format/MIL.proto
DTYPES: dict[int, tuple[str, int, type]] = {
    1: ("bool", 8, np.bool_),
    2: ("string", 0, np.str_),
    10: ("fp16", 16, np.float16),
    11: ("fp32", 32, np.float32),
    12: ("fp64", 64, np.float64),
    21: ("int8", 8, np.int8),
    22: ("int16", 16, np.int16),
    23: ("int32", 32, np.int32),
    24: ("int64", 64, np.int64),
    25: ("int4", 4, np.int8),
    31: ("uint8", 8, np.uint8),
    32: ("uint16", 16, np.uint16),
    33: ("uint32", 32, np.uint32),
    34: ("uint64", 64, np.uint64),
    35: ("uint4", 4, np.uint8),
    36: ("uint2", 2, np.uint8),
    37: ("uint1", 1, np.uint8),
    38: ("uint6", 6, np.uint8),
    39: ("uint3", 3, np.uint8),
}
BITS = {name: bits for name, bits, _ in DTYPES.values()}


@dataclass(frozen=True)
class Stored:
    """One array as it lies in the package: unpacked values, and the bytes it takes."""

    values: Array
    dtype: str
    nbytes: int


def data_type(number: int) -> tuple[str, int, type]:
    """Name, bits and numpy type of one of MIL's data types."""
    if number not in DTYPES:
        raise ExportError(f"The package holds values of MIL's data type {number}, which is not known here.")
    return DTYPES[number]


def blob_nbytes(elements: int, bits: int) -> int:
    """Bytes that an array takes in the weight file: its record, and its data filled up to a multiple of 64 bytes.

    Example:
        >>> blob_nbytes(100, 16)
        320
    """
    return RECORD_BYTES + -(-elements * bits // (8 * RECORD_BYTES)) * RECORD_BYTES


def unpack_bits(raw: bytes, bits: int, elements: int, *, signed: bool) -> Array:
    """Unpack numbers of 1 to 7 bits each, lowest bit first, without gaps.

    Example:
        >>> unpack_bits(bytes([0b11100100]), 2, 4, signed=False).tolist()
        [0, 1, 2, 3]
    """
    flat = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: elements * bits]
    values: Array = (flat.reshape(elements, bits) << np.arange(bits, dtype=np.uint8)).sum(1).astype(np.uint8)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values.astype(np.int16) - (1 << bits), values).astype(np.int8)
    return values


def decode(raw: bytes, dtype: int, shape: tuple[int, ...]) -> Array:
    """The array of a MIL data type that ``raw`` holds."""
    name, bits, numpy_type = data_type(dtype)
    elements = math.prod(shape)
    if bits < 8:
        return unpack_bits(raw, bits, elements, signed=name == "int4").reshape(shape)
    return np.frombuffer(raw, numpy_type, count=elements).reshape(shape)


def step_name(kind: str, parts: Mapping[str, Stored]) -> str:
    """What a user calls an encoding: ``"sparse"``, ``"int8"``, ``"palette4"``."""
    if kind == "const":
        return "dense"
    if "sparse_to_dense" in kind:
        return "sparse"
    if "lut" in parts:
        return f"palette{(parts['lut'].values.shape[-2 if parts['lut'].values.ndim > 1 else 0] - 1).bit_length()}"
    codes = next((parts[key].dtype for key in ("data", "nonzero_data", "quantized_data") if key in parts), "")
    return codes or kind.removeprefix("constexpr_")


def unfold(kind: str, parts: Mapping[str, Stored], shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The values that a ``constexpr_*`` operation makes of its parts."""
    get = {key: part.values for key, part in parts.items()}
    if kind == "constexpr_sparse_to_dense":
        shape = tuple(int(size) for size in get["shape"]) if "shape" in get else get["mask"].shape
        mask = get["mask"]
        if "shape" in get:  # iOS16: the mask is a row of packed bits
            mask = unpack_bits(mask.tobytes(), 1, math.prod(shape), signed=False)
        return (scatter(get["nonzero_data"], mask.reshape(shape)),)
    if kind == "constexpr_affine_dequantize":
        data, axis = get["quantized_data"], int(get["axis"])
        if any(get[key].size not in (1, data.shape[axis]) for key in ("scale", "zero_point")):
            raise ExportError(f"The package is damaged: {get['scale'].size} scales for weights of shape {data.shape}.")
        along = [-1 if dim == axis else 1 for dim in range(data.ndim)]
        scale, zero = (get[key].reshape(along) if get[key].ndim else get[key] for key in ("scale", "zero_point"))
        return (((data.astype(np.float32) - zero.astype(np.float32)) * scale).astype(get["scale"].dtype),)
    if kind == "constexpr_blockwise_shift_scale":
        return (shift_scale(get["data"], get["scale"], get.get("offset")),)
    if kind == "constexpr_sparse_blockwise_shift_scale":
        mask = get["data_mask"].astype(bool)
        dense = shift_scale(scatter(get["nonzero_data"], mask), get["scale"], get.get("offset"))
        return get["data_mask"], dense[mask]
    if kind == "constexpr_lut_to_dense":
        indices = get["indices"]
        if "shape" in get:  # iOS16: packed indices into one table
            shape = tuple(int(size) for size in get["shape"])
            bits = (get["lut"].size - 1).bit_length()
            indices = unpack_bits(indices.tobytes(), bits, math.prod(shape), signed=False).reshape(shape)
            return (get["lut"][indices],)
        return (look_up(indices, get["lut"], get.get("vector_axis")),)
    if kind == "constexpr_lut_to_sparse":
        mask = get["indices_mask"].astype(bool)
        dense = look_up(scatter(get["indices_nonzero_data"], mask), get["lut"], get.get("vector_axis"))
        return get["indices_mask"], dense[mask]
    if kind == "constexpr_cast":
        return (get["source_val"].astype(np.float32 if str(get["output_dtype"].item()) == "fp32" else np.float16),)
    raise ExportError(
        f"The package holds a weight encoded by {kind}, which cannot be read back. Leave out the option of the "
        "converter that asks for it, or report it."
    )


def scatter(nonzero: Array, mask: Array) -> Array:
    """A dense array with ``nonzero`` where ``mask`` is 1, in memory order, and 0 elsewhere."""
    dense = np.zeros(mask.shape, nonzero.dtype)
    dense[mask.astype(bool)] = nonzero
    return dense


def repeat_to(small: Array, shape: Sequence[int]) -> Array:
    """Repeat each element along every dimension until the shape is ``shape``: one scale for a block of weights."""
    if small.ndim != len(shape) or any(own < 1 or size % own for own, size in zip(small.shape, shape, strict=True)):
        raise ExportError(
            f"The package is damaged: {small.shape} scales or tables for weights of shape {tuple(shape)}."
        )
    for dim, size in enumerate(shape):
        small = np.repeat(small, size // small.shape[dim], axis=dim)
    return small


def shift_scale(data: Array, scale: Array, offset: Array | None) -> Array:
    """``scale * (data - offset)``, each scale and offset for one block of the data."""
    values = data.astype(np.float32)
    if offset is not None:
        values -= repeat_to(offset.astype(np.float32), data.shape)
    return (values * repeat_to(scale.astype(np.float32), data.shape)).astype(scale.dtype)


def look_up(indices: Array, lut: Array, vector_axis: Array | None) -> Array:
    """The table entries that ``indices`` name; ``lut`` has shape ``(*groups, entries, vector)``."""
    if lut.shape[-1] != 1 or (vector_axis is not None and lut.shape[-1] != 1):
        raise ExportError("The package holds weights palettized in vectors, which cannot be read back.")
    groups = lut.shape[:-2]
    group = np.arange(math.prod(groups)).reshape(groups)
    table = lut.reshape(-1, lut.shape[-2])
    picked: Array = table[repeat_to(group, indices.shape), indices]
    return picked
