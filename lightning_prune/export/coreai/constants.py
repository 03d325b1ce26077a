"""The constants of a saved ``.aimodel``, read by Apple's own reader.

That reader does not raise at a damaged program, but ends the process. So this file is also a program of its own, which
reads a file from elsewhere and writes down what it found: it imports nothing of this library, and so starts at once.

python -P constants.py ASSET FOUND.npz
"""

import hashlib
import importlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Constants",
    "DenseConstant",
    "SparseConstant",
    "fingerprint",
    "folder_size",
    "load_constants",
    "read_constants",
]

# What makes a tensor of a bit mask and values.
BUILD_SPARSE = "coreai.build_sparse_with_bitmask"
CONSTANT = "coreai.constant"
# What holds the numbers of the types whose zeros are counted.
FLOATS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16}
# A constant whose values are all equal is stored as one value: so many times larger than its file may a program be,
# and so many bytes larger still, which is what an honest program has of them.
MOST_TIMES, SPARE_BYTES = 1024, 2**28


@dataclass(frozen=True)
class SparseConstant:
    """A weight that is stored as a bit mask and its kept values.

    Attributes:
        mask: Bool, ``True`` = kept, in the shape of the weight.
        values: The kept values in row-major order, as bytes.
        dtype: Their type, as Core AI calls it (``"f32"``).
        itemsize: Bytes of one value.
    """

    mask: npt.NDArray[np.bool_]
    values: bytes
    dtype: str
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of the bit mask."""
        return len(self.values) + -(-self.mask.size // 8)

    @property
    def dense_nbytes(self) -> int:
        """Bytes that it would take without sparse storage."""
        return int(self.mask.size) * self.itemsize

    @property
    def fingerprint(self) -> str:
        """A short text that tells it from others."""
        return fingerprint(self.mask, self.values)


@dataclass(frozen=True)
class DenseConstant:
    """A constant that is stored value by value.

    Attributes:
        dtype: The type of its values, as Core AI calls it (``"f32"``, ``"si32"``).
        nbytes: Bytes of its values.
        is_zero: Of floating point numbers of 16 or 32 bits, which are zero, in the shape of the constant; else None.
    """

    dtype: str
    nbytes: int
    is_zero: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class Constants:
    """All constants of a program: the sparse weights, each once, and the others."""

    sparse: tuple[SparseConstant, ...]
    dense: tuple[DenseConstant, ...]


def fingerprint(mask: npt.NDArray[np.bool_], values: bytes) -> str:
    """A short text that tells a sparse weight from others, whatever its name.

    Example:
        >>> fingerprint(np.array([[True, False]]), b"abcd")
        'dabe5a4030c8c8de'
    """
    text = "x".join(map(str, mask.shape)).encode()
    return hashlib.sha256(text + b"\0" + np.packbits(mask, axis=None).tobytes() + values).hexdigest()[:16]


def folder_size(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def read_constants(authoring: Any, ir: Any, compiler: Any, path: Path) -> Constants:
    """Read the constants of a file, in a process that may be ended by it.

    Args:
        authoring: ``coreai.authoring``.
        ir: ``coreai._compiler.ir``.
        compiler: What copies the values of a constant.
        path: Where the file lies.

    Raises:
        ValueError: The program is not what its hash says, or far larger than the file.
        Exception: Apple's own, where the folder holds no file of theirs, or one of a later version.
    """
    if hashlib.sha256((path / "main.mlirb").read_bytes()).digest() != (path / "main.hash").read_bytes():
        raise ValueError("main.mlirb is not what main.hash says of it")
    loaded = authoring.AIModelAsset.load(path)
    program = loaded.program  # kept while its constants are read
    found: list[Any] = []

    def collect(operation: Any) -> Any:
        if operation.name == CONSTANT:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    program._module._mlir_module.operation.walk(collect)
    refuse_larger(found, MOST_TIMES * folder_size(path) + SPARE_BYTES)
    made: dict[Any, dict[int, Any]] = {}
    dense: list[DenseConstant] = []
    for constant in found:
        uses = [use for use in constant.result.uses if use.owner.name == BUILD_SPARSE]
        for use in uses:
            made.setdefault(use.owner, {})[use.operand_number] = constant
        if not uses:
            dense.append(dense_constant(compiler, constant))
    sparse = [sparse_constant(compiler, row[0], row[1]) for row in made.values()]
    return Constants(tuple({constant.fingerprint: constant for constant in sparse}.values()), tuple(dense))


def refuse_larger(constants: Iterable[Any], most: int) -> None:
    """Raise if constants take more than so many bytes together, before memory is taken for them."""
    if (total := sum(data_size(constant.result.type) for constant in constants)) > most:
        raise ValueError(f"its constants would take {total:,} bytes, more than a file of its size holds")


def sparse_constant(compiler: Any, values: Any, mask: Any) -> SparseConstant:
    """The weight that two constants make."""
    shape: Sequence[int] = tuple(mask.result.type.shape)
    bits = np.unpackbits(np.frombuffer(data_of(compiler, mask), dtype=np.uint8), bitorder="little")
    kept = bits[: math.prod(shape)].astype(bool).reshape(shape)
    kind = values.result.type.element_type
    return SparseConstant(kept, data_of(compiler, values), str(kind), kind.width // 8)


def dense_constant(compiler: Any, constant: Any) -> DenseConstant:
    """A constant that is stored value by value."""
    kind, is_zero = constant.result.type, None
    if (dtype := FLOATS.get(str(kind.element_type))) is not None:
        is_zero = np.frombuffer(data_of(compiler, constant), dtype=dtype).reshape(tuple(kind.shape)) == 0
    return DenseConstant(str(kind.element_type), data_size(kind), is_zero)


def data_size(kind: Any) -> int:
    """Bytes of a constant of a type."""
    bits: int = math.prod(kind.shape) * kind.element_type.width
    return -(-bits // 8)


def data_of(compiler: Any, constant: Any) -> bytes:
    """The values of a constant as they lie in memory, row by row, bits packed from the lowest on."""
    room = np.zeros(data_size(constant.result.type), dtype=np.uint8)
    if room.size:
        compiler.copy_constant_value_to_array(constant_op=constant, destination=room)
    return room.tobytes()


def save_constants(constants: Constants, path: Path) -> None:
    """Write constants to a file of arrays alone, from which no code is run when it is read."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    sparse = [{"dtype": one.dtype, "itemsize": one.itemsize} for one in constants.sparse]
    dense = [{"dtype": one.dtype, "nbytes": one.nbytes} for one in constants.dense]
    for at, weight in enumerate(constants.sparse):
        arrays[f"mask_{at}"], arrays[f"values_{at}"] = weight.mask, np.frombuffer(weight.values, np.uint8)
    for at, one in enumerate(constants.dense):
        if one.is_zero is not None:
            arrays[f"zero_{at}"] = one.is_zero
    about = json.dumps({"sparse": sparse, "dense": dense}).encode()
    np.savez(path, about=np.frombuffer(about, np.uint8), **arrays)  # type: ignore[arg-type]


def load_constants(path: Path) -> Constants:
    """What :func:`save_constants` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        sparse = [
            SparseConstant(arrays[f"mask_{at}"], arrays[f"values_{at}"].tobytes(), row["dtype"], row["itemsize"])
            for at, row in enumerate(about["sparse"])
        ]
        dense = [
            DenseConstant(row["dtype"], row["nbytes"], arrays[name] if (name := f"zero_{at}") in arrays else None)
            for at, row in enumerate(about["dense"])
        ]
    return Constants(tuple(sparse), tuple(dense))


def main() -> None:
    """Read the file of the first argument, and write what it holds to the second; an error goes to the exit status."""
    source, target = map(Path, sys.argv[1:])
    authoring = importlib.import_module("coreai.authoring")
    ir = importlib.import_module("coreai._compiler.ir")
    compiler = importlib.import_module("coreai._compiler._mlir_libs._coreaiIR")._bindings.compiler
    try:
        save_constants(read_constants(authoring, ir, compiler, source), target)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
