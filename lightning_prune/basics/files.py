"""Put a file or a folder in place whole, or not at all, whatever ends the process meanwhile.

What is to be at a path is made in a hidden folder beside it, ``.name.<8 digits>.partial``, which is locked as long as
its maker runs. Then it is exchanged with what is there in one step of the system, where the system can do that. Folders
that a killed process left behind are cleared by the next one that writes to the same path; where folders cannot be
locked, as on Windows, they stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["put_in_place", "recover", "writing_to"]

# What was at the path of a folder, where the system cannot exchange two names in one step.
REPLACED = "replaced"
# How often, and after how many seconds, a lock is tried again that another holds for a moment.
TRIES, PAUSE = 100, 0.01
# What systems say that cannot do it, of themselves or of one of their disks.
UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[Path]:
    """A place for what is to be at a path, on the same disk; :func:`put_in_place` moves it there.

    Folders on the way are made. Afterwards, nothing but the target is left; of what killed processes left for the same
    target, too. That of a process that still runs is not touched.
    """
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    with lock(target.parent):  # else another process could take the new folder for that of a dead process
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        folder.mkdir()
        held = try_lock(folder)
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: it was written
                parent.rmdir()


def put_in_place(source: Path, target: Path) -> None:
    """Move a file or a folder that was made by :func:`writing_to` to its target.

    A file replaces a file, a folder a folder; what was there goes when the new file is in its place. At every moment
    one of the two is there; of folders, on a disk or a system that cannot exchange them in one step, there is a moment
    with neither, after which the old file is put back by :func:`recover`.
    """
    if not source.is_dir() or not os.path.lexists(target):
        source.replace(target)
    elif target.is_symlink() or not target.is_dir():
        raise FileExistsError(errno.EEXIST, "A folder replaces only a folder", str(target))
    elif not exchange(source, target):
        old = source.with_name(REPLACED)
        target.replace(old)
        try:
            source.replace(target)
        except BaseException:
            old.replace(target)
            raise


def recover(target: Path) -> None:
    """Put back what a process that was killed while it replaced a folder had taken away."""
    if not os.path.lexists(target) and target.parent.is_dir():
        clear_leftovers(target)


def clear_leftovers(target: Path) -> None:
    """Remove what killed processes left beside a target, after what they took away is back in its place."""
    with contextlib.suppress(OSError), lock(target.parent) as is_locked:
        dead = [folder for folder in leftovers(target) if is_locked and not is_running(folder)]
        for folder in dead:
            if not os.path.lexists(target) and (folder / REPLACED).is_dir():
                (folder / REPLACED).replace(target)
        for folder in dead:
            shutil.rmtree(folder, ignore_errors=True)


def leftovers(target: Path) -> list[Path]:
    """The hidden folders beside a target that were made to write to it, the newest first."""
    name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{8}" + re.escape(".partial"))
    found = [
        folder
        for folder in target.parent.iterdir()
        if name.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()
    ]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Let one process at a time do something in a folder; yields whether that could be had."""
    held = try_lock(folder)
    for _ in range(TRIES):
        if held is None:
            time.sleep(PAUSE)
            held = try_lock(folder)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def is_running(folder: Path) -> bool:
    """Whether the process that made a folder is still there, and holds its lock."""
    held = try_lock(folder)
    if held is not None:
        os.close(held)
    return held is None


def try_lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed, or the process ends; None if it is locked, or cannot be."""
    try:
        import fcntl

        held = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # not on Windows
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def exchange(path: Path, other: Path) -> bool:
    """Let two paths change what they name, in one step; False where that cannot be done."""
    call = exchanger()
    if call is None:
        return False
    if call(os.fsencode(path), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def exchanger() -> Callable[[bytes, bytes], int] | None:
    """The call of the C library that exchanges two paths."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        rename = library.renamex_np if sys.platform == "darwin" else library.renameat2
    except (OSError, AttributeError, TypeError):
        return None
    if sys.platform == "darwin":
        return lambda path, other: int(rename(path, other, 2))  # RENAME_SWAP
    here = -100  # AT_FDCWD: paths are taken as ever
    return lambda path, other: int(rename(here, path, here, other, 2))  # RENAME_EXCHANGE
