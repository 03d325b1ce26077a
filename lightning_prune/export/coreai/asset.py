"""What a saved ``.aimodel`` holds, read back from disk by Apple's own reader."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_prune.errors import ExportError
from lightning_prune.export.coreai.installed import CoreAI

__all__ = [
    "Asset",
    "DenseConstant",
    "SparseConstant",
    "fingerprint",
    "folder_size",
    "name_parameters",
    "read_asset",
]

# What makes a tensor of a bit mask and values.
BUILD_SPARSE = "coreai.build_sparse_with_bitmask"
CONSTANT = "coreai.constant"
# What holds the numbers of the types whose zeros are counted.
FLOATS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16}


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
class Asset:
    """A file that was read back.

    Attributes:
        path: Where it lies.
        nbytes: Bytes of all that is in the folder.
        sparse: The weights that are stored as bit mask and values, each once.
        dense: The other constants.
        parameters: By fingerprint of a sparse weight, the names of the parameters that it holds, where the writer
            left them.
    """

    path: Path
    nbytes: int
    sparse: tuple[SparseConstant, ...]
    dense: tuple[DenseConstant, ...]
    parameters: dict[str, list[str]]

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same file with every weight stored value by value."""
        return self.nbytes + sum(constant.dense_nbytes - constant.nbytes for constant in self.sparse)


def fingerprint(mask: npt.NDArray[np.bool_], values: bytes) -> str:
    """A short text that tells a sparse weight from others, whatever its name.

    Example:
        >>> fingerprint(np.array([[True, False]]), b"abcd")
        'dabe5a4030c8c8de'
    """
    text = "x".join(map(str, mask.shape)).encode()
    return hashlib.sha256(text + b"\0" + np.packbits(mask, axis=None).tobytes() + values).hexdigest()[:16]


def read_asset(core: CoreAI, path: Path) -> Asset:
    """Read a file.

    Raises:
        ExportError: The program is damaged.
        Exception: Apple's own, where the folder holds no file of theirs, or one of a later version.
    """
    # Apple's reader does not raise at a damaged program, but ends the process.
    if hashlib.sha256((path / "main.mlirb").read_bytes()).digest() != (path / "main.hash").read_bytes():
        raise ExportError(f"{path} cannot be read as a Core AI asset: main.mlirb is not what main.hash says of it.")
    loaded = core.authoring.AIModelAsset.load(path)
    program = loaded.program  # kept while its constants are read
    constants: list[Any] = []

    def collect(operation: Any) -> Any:
        if operation.name == CONSTANT:
            constants.append(operation)
        return core.ir.WalkResult.ADVANCE

    program._module._mlir_module.operation.walk(collect)
    made: dict[Any, dict[int, Any]] = {}
    dense: list[DenseConstant] = []
    for constant in constants:
        uses = [use for use in constant.result.uses if use.owner.name == BUILD_SPARSE]
        for use in uses:
            made.setdefault(use.owner, {})[use.operand_number] = constant
        if not uses:
            dense.append(dense_constant(core, constant))
    sparse = [sparse_constant(core, row[0], row[1]) for row in made.values()]
    return Asset(
        path,
        folder_size(path),
        tuple({constant.fingerprint: constant for constant in sparse}.values()),
        tuple(dense),
        written_names(path),
    )


def folder_size(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def written_names(path: Path) -> dict[str, list[str]]:
    """The names of parameters by fingerprint that :func:`name_parameters` left; none where another tool wrote it."""
    # The classes of several versions of coreai-core call their metadata differently; the file stays the same.
    try:
        metadata = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
        found = metadata["creatorDefinedMetadata"]["lightning_prune"]["parameters"]
        return {str(key): list(map(str, names)) for key, names in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def name_parameters(core: CoreAI, path: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Leave the names of the parameters in a file, whose own constants have none."""
    kept = {"parameters": {key: list(row) for key, row in names.items()}}
    core.authoring.AIModelAsset.load(path).update_metadata(
        lambda metadata: metadata.set_custom("lightning_prune", kept)
    )


def sparse_constant(core: CoreAI, values: Any, mask: Any) -> SparseConstant:
    """The weight that two constants make."""
    shape: Sequence[int] = tuple(mask.result.type.shape)
    bits = np.unpackbits(np.frombuffer(data_of(core, mask), dtype=np.uint8), bitorder="little")
    kept = bits[: math.prod(shape)].astype(bool).reshape(shape)
    kind = values.result.type.element_type
    return SparseConstant(kept, data_of(core, values), str(kind), kind.width // 8)


def dense_constant(core: CoreAI, constant: Any) -> DenseConstant:
    """A constant that is stored value by value."""
    kind, is_zero = constant.result.type, None
    if (dtype := FLOATS.get(str(kind.element_type))) is not None:
        is_zero = np.frombuffer(data_of(core, constant), dtype=dtype).reshape(tuple(kind.shape)) == 0
    return DenseConstant(str(kind.element_type), data_size(kind), is_zero)


def data_size(kind: Any) -> int:
    """Bytes of a constant of a type."""
    bits: int = math.prod(kind.shape) * kind.element_type.width
    return -(-bits // 8)


def data_of(core: CoreAI, constant: Any) -> bytes:
    """The values of a constant as they lie in memory, row by row, bits packed from the lowest on."""
    room = np.zeros(data_size(constant.result.type), dtype=np.uint8)
    if room.size:
        core.compiler.copy_constant_value_to_array(constant_op=constant, destination=room)
    return room.tobytes()
