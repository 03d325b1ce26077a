"""Which file may import which, and that CONTRIBUTING.md says where every file has its place."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_file_imports_only_from_layers_below_its_own():
    pytest.importorskip("importlinter")
    # in a process of its own: it sets up logging for itself, which silences the loggers that are there
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_contributing_has_a_line_for_every_room():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^  (\w+)/? {2,}", page, re.MULTILINE))
    package = ROOT / "lightning_prune"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert named == rooms | files


def test_every_room_has_a_contents_page_whose_names_are_there():
    for page in (ROOT / "lightning_prune").rglob("__init__.py"):
        name = ".".join(page.parent.relative_to(ROOT).parts)
        room = importlib.import_module(name)
        assert room.__doc__
        assert [name for name in room.__all__ if not hasattr(room, name)] == []
        assert len(set(room.__all__)) == len(room.__all__)


def test_tests_lie_in_folders_as_the_package_does():
    rooms = {path.name for path in (ROOT / "lightning_prune").iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == rooms | {"repo"}
