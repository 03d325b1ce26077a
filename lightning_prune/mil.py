"""Read a saved Core ML package back: its program, its weights as they lie in the file, its bytes.

A package is a folder with a protobuf (the program, in Core ML's model intermediate language, MIL) and one weight file.
Small constants lie in the program, large ones in the file, each behind a 64-byte record of its own. Compressed weights
are stored as several parts (a bit mask and the nonzero values, say) that a ``constexpr_*`` operation puts together when
the model is loaded. Everything here reads what is on disk; nothing asks the converter what it meant to write.
"""

import logging
import math
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_prune.errors import ExportError

__all__ = ["Block", "Constant", "Operation", "Package", "import_coremltools", "read_package", "repeat_to"]

Array = npt.NDArray[Any]

# https://github.com/apple/coremltools/blob/main/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
RECORD = struct.Struct("<IIQQQ")  # sentinel, data type, bytes of data, offset of data, bits of padding
RECORD_BYTES = 64
SENTINEL = 0xDEADBEEF

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


@dataclass(frozen=True)
class Constant:
    """One constant of the program, put together from its stored parts.

    ``encoding`` is ``"dense"``, or names the steps that unpack it, such as ``"sparse"`` or ``"sparse, palette4"``;
    ``scale`` and ``lut`` are what quantized and palettized values were made with. ``nbytes`` counts the records and the
    data of all parts; ``dense_nbytes`` what the same values would take as one plain array.
    """

    name: str
    values: Array
    dtype: str
    encoding: str = "dense"
    nbytes: int = 0
    scale: Array | None = None
    lut: Array | None = None

    @property
    def dense_nbytes(self) -> int:
        """Bytes that the same values take when stored plainly in the weight file."""
        return blob_nbytes(self.values.size, BITS[self.dtype])

    @property
    def quantized(self) -> bool:
        """Whether the values are stored as codes, to be scaled or looked up in a table."""
        return self.scale is not None or self.lut is not None

    @property
    def sparse(self) -> bool:
        """Whether only the nonzero values (or their codes) are stored."""
        return "sparse" in self.encoding


@dataclass(frozen=True)
class Operation:
    """One operation of the program; inputs are names of values, or arrays given in place."""

    type: str
    inputs: Mapping[str, tuple[str | Array, ...]]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple["Block", ...] = ()

    @property
    def name(self) -> str:
        """The name of the first output, by which an operation is known."""
        return self.outputs[0][0] if self.outputs else self.type


@dataclass(frozen=True)
class Block:
    """Operations in order, what the block takes and what it gives."""

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A package as read from disk.

    ``states`` holds the shapes of what the program keeps from one call to the next, by name; these are not among the
    inputs of ``main``.
    """

    path: Path
    main: Block
    constants: Mapping[str, Constant]
    files: Mapping[str, int]
    specification_version: int
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the package."""
        return sum(self.files.values())

    @cached_property
    def uses(self) -> dict[str, list[tuple[Operation, str]]]:
        """For each constant, the operations that read it and the name of the input."""
        found: dict[str, list[tuple[Operation, str]]] = {}
        for op in walk(self.main):
            for input_name, values in op.inputs.items():
                for value in values:
                    if isinstance(value, str) and value in self.constants:
                        found.setdefault(value, []).append((op, input_name))
        return found


def import_coremltools() -> Any:
    """The ``coremltools`` package.

    Its import logs nine lines about things that are normal (no Core ML framework on Linux, a newer torch), so its
    logger is set to ERROR for that moment and then put back.

    Raises:
        ExportError: It is not installed.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Deprecation warnings of coremltools' own imports are not the user's business.
            warnings.simplefilter("ignore")
            import coremltools
            import coremltools.optimize.coreml
    except ImportError as error:
        raise ExportError(
            f"Core ML export needs the package coremltools, which could not be imported ({error}). "
            'Write: pip install "lightning-prune[coreml]"'
        ) from error
    finally:
        logger.setLevel(level)
    return coremltools


def walk(block: Block) -> Iterator[Operation]:
    """All operations of a block and of the blocks inside it, in order."""
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from walk(inner)


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
    name, bits, numpy_type = DTYPES[dtype]
    elements = math.prod(shape)
    if bits < 8:
        return unpack_bits(raw, bits, elements, signed=name == "int4").reshape(shape)
    return np.frombuffer(raw, numpy_type, count=elements).reshape(shape)


class Reader:
    """Turns the protobuf of one package into operations and constants."""

    def __init__(self, path: Path) -> None:
        self.model_folder = path / "Data" / "com.apple.CoreML"
        self.blobs: dict[str, bytes] = {}
        self.constants: dict[str, Constant] = {}
        self.stored: dict[str, Stored] = {}

    def blob(self, file_name: str, offset: int) -> bytes:
        """The data of the record at ``offset`` of a weight file; the name begins with ``@model_path/``."""
        if file_name not in self.blobs:
            self.blobs[file_name] = (self.model_folder / file_name.removeprefix("@model_path/")).read_bytes()
        content = self.blobs[file_name]
        if offset + RECORD.size <= len(content):
            sentinel, _, size, start, _ = RECORD.unpack_from(content, offset)
            if sentinel == SENTINEL and start + size <= len(content):
                return content[start : start + size]
        raise ExportError(f"{file_name} is damaged: no whole record at byte {offset} of {len(content)}.")

    def value(self, spec: Any) -> Stored:
        """One value of the protobuf: in place, or in the weight file."""
        tensor = spec.type.tensorType
        shape = tuple(d.constant.size for d in tensor.dimensions)
        name, _, numpy_type = DTYPES[tensor.dataType]
        if spec.WhichOneof("value") == "blobFileValue":
            raw = self.blob(spec.blobFileValue.fileName, spec.blobFileValue.offset)
            return Stored(decode(raw, tensor.dataType, shape), name, blob_nbytes(len(raw), 8))
        held = spec.immediateValue.tensor
        kind = held.WhichOneof("value")
        if kind == "bytes":
            raw = held.bytes.values
            return Stored(decode(raw, tensor.dataType, shape), name, len(raw))
        numbers = list(getattr(held, kind).values) if kind else []
        values = np.array(numbers, dtype=object if name == "string" else numpy_type).reshape(shape)
        return Stored(values, name, spec.immediateValue.ByteSize())

    def argument(self, argument: Any) -> tuple[str | Array, ...]:
        """The bindings of one input: names, or arrays given in place."""
        found: list[str | Array] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                found.append(binding.name)
            elif binding.value.immediateValue.WhichOneof("value") == "list":
                found.extend(self.value(item).values for item in binding.value.immediateValue.list.values)
            else:
                found.append(self.value(binding.value).values)
        return tuple(found)

    def constant(self, spec: Any) -> None:
        """Remember a ``const`` or ``constexpr_*`` operation as the constants that it makes."""
        parts = {key: self.value(value) for key, value in spec.attributes.items() if key != "name"}
        sources: list[Constant] = []
        for key, argument in spec.inputs.items():
            binding = argument.arguments[0]
            if binding.WhichOneof("binding") == "name":
                source = self.constants[binding.name]
                sources.append(source)
                parts[key] = Stored(source.values, source.dtype, source.nbytes)
            else:
                parts[key] = self.value(binding.value)
        outputs = [(out.name, *type_of(out.type)) for out in spec.outputs]
        values = (parts["val"].values,) if spec.type == "const" else unfold(spec.type, parts, outputs[0][2])
        # The mask and the codes of a compressed weight go on as two values; the bytes of the mask are counted with the
        # first.
        mask = next((parts[key] for key in ("data_mask", "indices_mask") if key in parts), None)
        steps = [step for step in (step_name(spec.type, parts), *(s.encoding for s in sources)) if step != "dense"]
        common = {
            "scale": parts["scale"].values if "scale" in parts else first(s.scale for s in sources),
            "lut": parts["lut"].values if "lut" in parts else first(s.lut for s in sources),
        }
        nbytes = sum(part.nbytes for part in parts.values())
        for (name, dtype, _), array in zip(outputs, values, strict=True):
            if mask is not None and name == outputs[0][0]:
                self.constants[name] = Constant(name, array, dtype, nbytes=mask.nbytes)
            else:
                own = nbytes - (mask.nbytes if mask is not None else 0)
                self.constants[name] = Constant(name, array, dtype, ", ".join(steps) or "dense", own, **common)

    def block(self, spec: Any) -> Block:
        """A block; its constants are remembered, its other operations returned."""
        operations = []
        for op in spec.operations:
            if op.type == "const" or op.type.startswith("constexpr_"):
                self.constant(op)
                continue
            operations.append(
                Operation(
                    op.type,
                    {name: self.argument(argument) for name, argument in op.inputs.items()},
                    tuple((out.name, *type_of(out.type)) for out in op.outputs),
                    {name: self.value(value).values for name, value in op.attributes.items()},
                    tuple(self.block(inner) for inner in op.blocks),
                )
            )
        inputs = tuple((item.name, *type_of(item.type)) for item in spec.inputs)
        return Block(inputs, tuple(operations), tuple(spec.outputs))


def type_of(spec: Any) -> tuple[str, tuple[int, ...]]:
    """Data type and shape of a value; a size that is only known when the model runs is -1."""
    if spec.WhichOneof("type") == "stateType":
        return "state", type_of(spec.stateType.wrappedType)[1]
    if spec.WhichOneof("type") != "tensorType":
        return spec.WhichOneof("type") or "none", ()
    tensor = spec.tensorType
    sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    return DTYPES[tensor.dataType][0], tuple(sizes)


def first(values: Iterable[Array | None]) -> Array | None:
    """The first that is there."""
    return next((value for value in values if value is not None), None)


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


def read_package(path: str | Path) -> Package:
    """Read a package from disk.

    Raises:
        ExportError: It is not a package with an ML program, or its weight file is damaged.
    """
    root = Path(path)
    spec = import_coremltools().utils.load_spec(str(root))
    if spec.WhichOneof("Type") != "mlProgram":
        raise ExportError(f"{root} holds a {spec.WhichOneof('Type')}, not an ML program.")
    function = spec.mlProgram.functions["main"]
    reader = Reader(root)
    inner = reader.block(function.block_specializations[function.opset])
    inputs = tuple((item.name, *type_of(item.type)) for item in function.inputs)
    states = {name: shape for name, dtype, shape in inputs if dtype == "state"}
    main = Block(tuple(item for item in inputs if item[0] not in states), inner.operations, inner.outputs)
    files = {str(file.relative_to(root)): file.stat().st_size for file in sorted(root.rglob("*")) if file.is_file()}
    return Package(root, main, reader.constants, files, spec.specificationVersion, states)
