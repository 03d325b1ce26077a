"""The files of a Core ML package, read with care: a package may come from anywhere.

Nothing outside of the package is read, whatever its manifest or its program name; nothing but regular files; and no
more of them than they hold.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lightning_prune.errors import ExportError

__all__ = ["PackageFiles"]

# https://github.com/apple/coremltools/blob/main/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
RECORD = struct.Struct("<IIQQQ")  # sentinel, data type, bytes of data, offset of data, bits of padding
SENTINEL = 0xDEADBEEF
# Bytes of a manifest and of a program; real ones have thousands and millions.
MOST_MANIFEST = 2**20
MOST_PROGRAM = 2**27
# A file is read with at most so many pieces that were never written.
MOST_HOLES = 10_000


class PackageFiles:
    """The files of one package; a context that closes them.

    Args:
        path: A package, or a single file with a model.

    Attributes:
        path: As given.
        sizes: Bytes of each regular file, by its path within the package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.root = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ExportError(f"{path} cannot be read: {error}") from error
        self.sizes = sizes_of(self.root)
        self.folder = self.root
        self.open_files: dict[str, tuple[BinaryIO, int]] = {}
        self.records: dict[tuple[str, int], tuple[int, int]] = {}
        self.contents: dict[tuple[str, int], bytes] = {}
        self.unread: dict[str, int] = {}

    def __enter__(self) -> PackageFiles:
        return self

    def __exit__(self, *failure: object) -> None:
        for file, _ in self.open_files.values():
            file.close()

    def program(self) -> bytes:
        """The protobuf of the model."""
        if self.root.is_file():
            return self.whole(self.root.name, self.root, MOST_PROGRAM)
        manifest = json.loads(self.whole("Manifest.json", self.root / "Manifest.json", MOST_MANIFEST))
        name = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        model = self.inside(f"Data/{name}", self.root / "Data", name)
        self.folder = model.parent
        return self.whole(f"Data/{name}", model, MOST_PROGRAM)

    def record(self, name: str, offset: int) -> int:
        """Bytes of the data that the record at ``offset`` of a weight file tells of.

        The name begins with ``@model_path/``; the records of a file may not have more data than the file, together.
        """
        if (name, offset) not in self.records:
            file, size = self.weights(name)
            file.seek(min(offset, size))
            head = file.read(RECORD.size)
            sentinel, _, length, start, _ = RECORD.unpack(head.ljust(RECORD.size, b"\0"))
            if sentinel != SENTINEL or start + length > size:
                raise ExportError(f"{name} is damaged: no whole record at byte {offset} of {size}.")
            self.unread[name] = self.unread.get(name, size) - length
            if self.unread[name] < 0:
                raise ExportError(f"{name} is damaged: its records overlap.")
            self.records[name, offset] = start, length
        return self.records[name, offset][1]

    def data(self, name: str, offset: int, nbytes: int) -> bytes:
        """The first bytes of a record's data."""
        if nbytes > self.record(name, offset):
            raise ExportError(
                f"{name} is damaged: {self.record(name, offset)} bytes at byte {offset}, where {nbytes} are declared."
            )
        known = self.contents.get((name, offset), b"")
        if len(known) < nbytes:
            file, _ = self.weights(name)
            file.seek(self.records[name, offset][0])
            known = self.contents[name, offset] = file.read(nbytes)
        return known[:nbytes]

    def weights(self, name: str) -> tuple[BinaryIO, int]:
        """An open weight file, and its size."""
        if name not in self.open_files:
            prefix, _, own = name.partition("/")
            if prefix != "@model_path":
                raise ExportError(f"{self.path} names {name!r} as its weights, which is no part of it.")
            self.open_files[name] = opened(name, self.inside(name, self.folder, own))
        return self.open_files[name]

    def inside(self, name: str, folder: Path, own: str) -> Path:
        """Where a file of the package lies, with all links followed."""
        parts = PurePosixPath(own).parts
        try:
            place = folder.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ExportError(f"{self.path} cannot be read as a Core ML package: it has no {name}.") from error
        if ".." in parts or not parts or not place.is_relative_to(self.root):
            raise ExportError(
                f"{self.path} names {name!r} as a part of itself, but that leads out of it to {place}. If it is a link "
                "that you trust, copy the package with its links followed (cp -RL)."
            )
        return place

    def whole(self, name: str, place: Path, most: int) -> bytes:
        """All bytes of a file."""
        file, size = opened(name, self.inside(name, place.parent, place.name) if place != self.root else place)
        with file:
            if size > most:
                raise ExportError(f"{name} has {size:,} bytes; more than {most:,} are not read.")
            return file.read(size)


def opened(name: str, place: Path) -> tuple[BinaryIO, int]:
    """A regular file that is open for reading, and its size."""
    # A pipe that nobody writes to would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(place, flags), "rb")
    except OSError as error:
        raise ExportError(f"{name} cannot be read: {error}") from error
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise ExportError(f"{name} must be a regular file, but it is a folder, a pipe or a device.")
    if never_written(file.fileno(), found.st_size) > found.st_size // 2:
        file.close()
        raise ExportError(f"{name} is damaged: of its {found.st_size:,} bytes, more than half were never written.")
    return file, found.st_size


def never_written(descriptor: int, size: int) -> int:
    """Bytes of a file that take no place on the disk, for they were skipped; 0 where the system cannot tell."""
    at = holes = 0
    if hasattr(os, "SEEK_HOLE"):
        try:
            for _ in range(MOST_HOLES):
                hole = os.lseek(descriptor, at, os.SEEK_HOLE)
                if hole >= size:
                    break
                holes += size - hole  # unless there is more behind it
                at = os.lseek(descriptor, hole, os.SEEK_DATA)
                holes -= size - at
        except OSError:  # nothing but a hole until the end
            pass
        os.lseek(descriptor, 0, os.SEEK_SET)
    return holes


def sizes_of(root: Path) -> dict[str, int]:
    """Bytes of each regular file in a folder, by its path there; of a file, its own."""
    if root.is_file():
        return {root.name: root.stat().st_size}
    found = {}
    for folder, _, names in os.walk(root):
        for place in (Path(folder) / name for name in names):
            info = place.lstat()
            if stat.S_ISREG(info.st_mode):
                found[str(place.relative_to(root))] = info.st_size
    return dict(sorted(found.items()))
