"""What a saved ``.aimodel`` holds, read back from disk."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_prune.errors import ExportError, one_line
from lightning_prune.export.coreai import constants as reader
from lightning_prune.export.coreai.constants import (
    Constants,
    DenseConstant,
    SparseConstant,
    folder_size,
    load_constants,
    read_constants,
)
from lightning_prune.export.coreai.installed import CoreAI

__all__ = ["Asset", "name_parameters", "read_asset", "read_foreign_asset"]

# Seconds that a file from elsewhere may take to be read, and so many more for each megabyte.
PATIENCE, PATIENCE_PER_MEGABYTE = 60.0, 0.5


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


def read_asset(core: CoreAI, path: Path) -> Asset:
    """Read a file that this process has written.

    Raises:
        ExportError: The program is damaged.
        Exception: Apple's own, where the folder holds no file of theirs, or one of a later version.
    """
    try:
        return asset_of(path, read_constants(core.authoring, core.ir, core.compiler, path))
    except ValueError as error:
        raise unreadable(path, str(error)) from error


def read_foreign_asset(path: Path) -> Asset:
    """Read a file from elsewhere, in a process of its own: Apple's reader ends it where the program is damaged.

    Raises:
        ExportError: The folder holds no such file, or a damaged one.
    """
    seconds = PATIENCE + PATIENCE_PER_MEGABYTE * folder_size(path) / 2**20
    with TemporaryDirectory(prefix="lightning_prune_") as folder:
        found = Path(folder) / "found.npz"
        command = [sys.executable, "-P", reader.__file__, str(path.absolute()), str(found)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise unreadable(path, f"reading it took more than {seconds:.0f} seconds") from error
        if done.returncode < 0:
            raise unreadable(path, f"Apple's reader ended its process at it (signal {-done.returncode})")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise unreadable(path, said[-1])
        try:
            return asset_of(path, load_constants(found))
        except Exception as error:
            raise unreadable(path, one_line(error)) from error


def asset_of(path: Path, constants: Constants) -> Asset:
    """The asset at a path, with what its program holds."""
    return Asset(path, folder_size(path), constants.sparse, constants.dense, written_names(path))


def unreadable(path: Path, why: str) -> ExportError:
    """The error for a file that cannot be read."""
    return ExportError(f"{path} cannot be read as a Core AI asset: {why}.")


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
