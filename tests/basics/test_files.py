"""What is written through a hidden folder is at its path whole, or not at all, whenever the process is killed."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_prune.basics import files
from lightning_prune.basics.files import exchange, leftovers, put_in_place, recover, writing_to

fork = pytest.mark.skipif(sys.platform == "win32", reason="no processes are forked, and folders are not locked")


@pytest.fixture(params=["exchanged", "renamed"])
def way(request, monkeypatch):
    """Whether the system can exchange two folders in one step."""
    if request.param == "renamed":
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    return request.param


def write(target, text, then=lambda: None):
    with writing_to(target) as place:
        place.mkdir()
        (place / "a").write_text(text)
        (place / "b").write_text(text)
        then()
        put_in_place(place, target)


def held(target):
    """The text of a folder, whose two files must agree; None if it is not there."""
    if not target.exists():
        return None
    one, other = (target / "a").read_text(), (target / "b").read_text()
    assert one == other
    return one


MOVING = {put_in_place.__code__, files.clear_leftovers.__code__, writing_to.__wrapped__.__code__}


def killed_at(line, action):
    """Run something in a process that is killed at one of the lines that move things, and say whether it came so far."""
    if (child := os.fork()) == 0:
        seen = 0

        def trace(frame, event, arg):
            nonlocal seen
            if frame.f_code in MOVING and event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


@fork
def test_a_kill_at_any_line_leaves_the_old_folder_or_the_new_one_and_the_next_write_clears_up(tmp_path, way):
    target = tmp_path / "net.mlpackage"
    write(target, "old")
    line = 1
    while killed_at(line, lambda: write(target, "new")):
        if way == "exchanged":
            assert held(target) in ("old", "new")
        recover(target)
        assert held(target) in ("old", "new")
        line += 1
    assert line > 20
    assert held(target) == "new"
    assert killed_at(line // 2, lambda: write(target, "newer"))
    write(target, "last")
    assert held(target) == "last"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.mlpackage"]


@fork
def test_what_a_process_that_runs_is_writing_is_not_cleared(tmp_path):
    target = tmp_path / "net.mlpackage"
    code = (
        "import sys; from pathlib import Path; from lightning_prune.basics.files import *\n"
        "with writing_to(Path(sys.argv[1])) as place:\n"
        "    place.mkdir(); (place / 'a').write_text('slow'); (place / 'b').write_text('slow')\n"
        "    print('ready', flush=True); sys.stdin.readline(); put_in_place(place, Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout.readline() == "ready\n"
        write(target, "quick", lambda: write(target, "within"))  # one in this process, too
        assert held(target) == "quick"
        assert len(leftovers(target)) == 1
        slow.communicate("\n")
    assert held(target) == "slow"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.mlpackage"]


@fork
def test_only_our_own_leftovers_are_cleared(tmp_path):
    target = tmp_path / "net.mlpackage"
    mine = [".net.mlpackage.partial", ".net.mlpackage.0123456z.partial", ".other.mlpackage.01234567.partial", "net"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".net.mlpackage.01234567.partial").write_text("a file")
    (tmp_path / ".net.mlpackage.76543210.partial").symlink_to(tmp_path / "net")
    before = sorted(tmp_path.iterdir())
    (tmp_path / ".net.mlpackage.89abcdef.partial").mkdir()
    write(target, "new")
    assert sorted(tmp_path.iterdir()) == sorted([*before, target])


def test_what_was_taken_away_comes_back_only_where_nothing_is(tmp_path, way):
    target = tmp_path / "net.mlpackage"
    write(target, "old")
    folder = tmp_path / ".net.mlpackage.01234567.partial"
    folder.mkdir()
    target.rename(folder / "replaced")
    recover(target)
    assert held(target) == "old"
    assert not folder.exists()
    folder.mkdir()
    (folder / "replaced").mkdir()
    recover(target)
    assert folder.exists()
    write(target, "new")
    assert held(target) == "new"
    recover(tmp_path / "no" / "folder")


def test_an_error_leaves_what_was_there_and_no_litter(tmp_path, way):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write(tmp_path / "some" / "where" / "net.mlpackage", "new", fail)
    assert list(tmp_path.iterdir()) == []
    target = tmp_path / "net.mlpackage"
    write(target, "old")
    with pytest.raises(ValueError, match="no"):
        write(target, "new", fail)
    assert held(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_only_a_folder_and_a_file_only_a_file(tmp_path, way):
    target = tmp_path / "net"
    target.write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (target, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="A folder replaces only a folder"):
            write(place, "new")
    with writing_to(target) as place:
        place.write_text("more work")
        put_in_place(place, target)
    assert target.read_text() == "more work"
    write(tmp_path / "folder", "old")
    with writing_to(tmp_path / "folder") as place:
        place.write_text("")
        with pytest.raises(OSError, match=r"[Dd]irectory"):
            put_in_place(place, tmp_path / "folder")
    assert held(tmp_path / "folder") == "old"


def test_where_folders_cannot_be_exchanged_that_is_said_and_other_errors_are_raised(tmp_path, monkeypatch):
    if not exchange_works(tmp_path):
        pytest.skip("the disk cannot")
    with pytest.raises(FileNotFoundError, match="not there"):
        exchange(tmp_path / "a", tmp_path / "not there")
    for number in (errno.ENOSYS, errno.EINVAL):
        monkeypatch.setattr(files, "exchanger", lambda number=number: lambda one, other: refuse(number))
        assert not exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(files, "exchanger", lambda: None)
    assert not exchange(tmp_path / "a", tmp_path / "b")


def exchange_works(folder):
    (folder / "a").mkdir()
    (folder / "b").write_text("b")
    return exchange(folder / "a", folder / "b") and (folder / "a").read_text() == "b"


def refuse(number):
    import ctypes

    ctypes.set_errno(number)
    return -1


@fork
def test_a_lock_that_someone_else_holds_for_ever_is_not_waited_for(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(files, "TRIES", 2)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        write(tmp_path / "net.mlpackage", "new")
    finally:
        os.close(descriptor)
    assert held(tmp_path / "net.mlpackage") == "new"
    assert [entry.name for entry in Path(tmp_path).iterdir()] == ["net.mlpackage"]
