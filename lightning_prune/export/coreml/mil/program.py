"""Read a saved Core ML package back: its program, its weights as they lie in the file, its bytes.

A package is a folder with a protobuf (the program, in Core ML's model intermediate language, MIL) and one weight file.
Small constants lie in the program, large ones in the file, each behind a 64-byte record of its own. Compressed weights
are stored as several parts (a bit mask and the nonzero values, say) that a ``constexpr_*`` operation puts together when
the model is loaded. Everything here reads what is on disk; nothing asks the converter what it meant to write.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.mil.files import PackageFiles
from lightning_prune.export.coreml.mil.values import (
    BITS,
    Array,
    Stored,
    blob_nbytes,
    data_type,
    decode,
    step_name,
    unfold,
)

__all__ = ["Block", "Constant", "Operation", "Package", "import_coremltools", "read_functions", "read_package"]


# Bytes of values for each byte of the files: a bit of a mask can stand for a number of four bytes.
MOST_PER_BYTE = 64


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


class Values:
    """Reads the values of one package, each once however often it is named, and no more than its files can hold."""

    def __init__(self, files: PackageFiles) -> None:
        self.files = files
        self.stored: dict[tuple[Any, ...], Stored] = {}
        self.unfolded: dict[tuple[Any, ...], tuple[Array, ...]] = {}
        self.kept: list[Mapping[str, Stored]] = []  # so that no other array gets the place of one that is known
        self.left = MOST_PER_BYTE * sum(files.sizes.values()) + MOST_PER_BYTE * 2**20

    def spend(self, arrays: Iterable[Array]) -> None:
        """Count arrays that were made."""
        self.left -= sum(array.nbytes for array in arrays)
        if self.left < 0:
            raise ExportError(f"{self.files.path} is damaged: it declares more values than its files can hold.")

    def value(self, spec: Any) -> Stored:
        """One value of the protobuf: in place, or in the weight file."""
        tensor = spec.type.tensorType
        shape = tuple(d.constant.size for d in tensor.dimensions)
        name, bits, numpy_type = data_type(tensor.dataType)
        if spec.WhichOneof("value") == "blobFileValue":
            file, offset = spec.blobFileValue.fileName, spec.blobFileValue.offset
            key = file, offset, tensor.dataType, shape
            if key not in self.stored:
                raw = self.files.data(file, offset, -(-math.prod(shape) * bits // 8))
                values = decode(raw, tensor.dataType, shape)
                self.spend([values])
                self.stored[key] = Stored(values, name, blob_nbytes(self.files.record(file, offset), 8))
            return self.stored[key]
        held = spec.immediateValue.tensor
        kind = held.WhichOneof("value")
        if kind == "bytes":
            raw = held.bytes.values
            return Stored(decode(raw, tensor.dataType, shape), name, len(raw))
        numbers = getattr(held, kind).values if kind else ()
        if name == "string":
            return Stored(np.array(list(numbers), object).reshape(shape), name, spec.immediateValue.ByteSize())
        values = np.fromiter(numbers, numpy_type, len(numbers)).reshape(shape)
        return Stored(values, name, spec.immediateValue.ByteSize())

    def unfold(self, kind: str, parts: Mapping[str, Stored], shape: tuple[int, ...]) -> tuple[Array, ...]:
        """What a ``constexpr_*`` operation makes of its parts; of the same parts, the same arrays."""
        key = kind, shape, *((name, identity(part.values)) for name, part in sorted(parts.items()))
        if key not in self.unfolded:
            arrays = unfold(kind, parts, shape)
            self.spend(arrays)
            self.unfolded[key] = arrays
            self.kept.append(parts)
        return self.unfolded[key]


def identity(values: Array) -> Any:
    """Of small arrays the content, of large ones which array it is."""
    return (
        (values.dtype.str, values.shape, values.tobytes())
        if values.size <= 64 and values.dtype != object
        else id(values)
    )


class Reader:
    """Turns the protobuf of one function into operations and constants."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.constants: dict[str, Constant] = {}

    def argument(self, argument: Any) -> tuple[str | Array, ...]:
        """The bindings of one input: names, or arrays given in place."""
        found: list[str | Array] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                found.append(binding.name)
            elif binding.value.immediateValue.WhichOneof("value") == "list":
                found.extend(self.values.value(item).values for item in binding.value.immediateValue.list.values)
            else:
                found.append(self.values.value(binding.value).values)
        return tuple(found)

    def constant(self, spec: Any) -> None:
        """Remember a ``const`` or ``constexpr_*`` operation as the constants that it makes."""
        parts = {key: self.values.value(value) for key, value in spec.attributes.items() if key != "name"}
        sources: list[Constant] = []
        for key, argument in spec.inputs.items():
            binding = argument.arguments[0]
            if binding.WhichOneof("binding") == "name":
                source = self.constants[binding.name]
                sources.append(source)
                parts[key] = Stored(source.values, source.dtype, source.nbytes)
            else:
                parts[key] = self.values.value(binding.value)
        outputs = [(out.name, *type_of(out.type)) for out in spec.outputs]
        values = (parts["val"].values,) if spec.type == "const" else self.values.unfold(spec.type, parts, outputs[0][2])
        # The mask and the codes of a compressed weight go on as two values; the bytes of the mask are counted with the
        # first.
        mask = next((parts[key] for key in ("data_mask", "indices_mask") if key in parts), None)
        names = ", ".join([step_name(spec.type, parts), *(source.encoding for source in sources)]).split(", ")
        steps = dict.fromkeys(step for step in names if step != "dense")
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
                    {name: self.values.value(value).values for name, value in op.attributes.items()},
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
    return data_type(tensor.dataType)[0], tuple(sizes)


def first(values: Iterable[Array | None]) -> Array | None:
    """The first that is there."""
    return next((value for value in values if value is not None), None)


def read_package(path: str | Path, function: str | None = None) -> Package:
    """Read one function of a package from disk.

    Args:
        path: A package, or a single file with an ML program.
        function: Which of its functions. Default: the function that the package calls when none is named.

    Raises:
        ExportError: It is not a package with an ML program, it has no such function, or its files are damaged.
    """
    with reading(path) as (files, spec):
        names = sorted(spec.mlProgram.functions)
        name = function or default_function(spec)
        if name not in names:
            raise ExportError(
                f"{path} has no function {name!r}. Its functions are: {', '.join(names) or 'none'}."
                if name
                else f"{path} has the functions {', '.join(names) or '(none)'}, and none is its default. Say which."
            )
        return read_function(Values(files), spec, name)


def read_functions(path: str | Path) -> dict[str, Package]:
    """Read all functions of a package from disk, by name; the default one first.

    Constants that lie in the files once are the same arrays in all of them.

    Raises:
        ExportError: As :func:`read_package`.
    """
    with reading(path) as (files, spec):
        values, default = Values(files), default_function(spec)
        names = sorted(spec.mlProgram.functions, key=lambda name: (name != default, name))
        if not names:
            raise ExportError(f"{path} has no function.")
        return {name: read_function(values, spec, name) for name in names}


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[tuple[PackageFiles, Any]]:
    """The files of a package and its model; whatever is wrong with them is an ExportError."""
    import_coremltools()
    try:
        with PackageFiles(Path(path)) as files:
            yield files, load_model(files)
    except ExportError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ExportError(f"{path} cannot be read as a Core ML package: {type(error).__name__}: {error}") from error


def load_model(files: PackageFiles) -> Any:
    """The protobuf of a model with an ML program."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString(files.program())
    if spec.WhichOneof("Type") != "mlProgram":
        raise ExportError(f"{files.path} holds a {spec.WhichOneof('Type')}, not an ML program.")
    return spec


def default_function(spec: Any) -> str:
    """The function that is called when none is named; ``""`` if the package does not tell."""
    names = list(spec.mlProgram.functions)
    if spec.description.defaultFunctionName:
        return str(spec.description.defaultFunctionName)
    return "main" if "main" in names else names[0] if len(names) == 1 else ""


def read_function(values: Values, spec: Any, name: str) -> Package:
    """One function of a model as a package of its own."""
    function = spec.mlProgram.functions[name]
    if function.opset not in function.block_specializations:  # a map of protobuf makes what is missing
        raise ExportError(
            f"{values.files.path} is damaged: its function {name!r} has no program for {function.opset!r}."
        )
    reader = Reader(values)
    inner = reader.block(function.block_specializations[function.opset])
    inputs = tuple((item.name, *type_of(item.type)) for item in function.inputs)
    states = {name: shape for name, dtype, shape in inputs if dtype == "state"}
    main = Block(tuple(item for item in inputs if item[0] not in states), inner.operations, inner.outputs)
    files = values.files
    return Package(files.path, main, reader.constants, files.sizes, spec.specificationVersion, states)
