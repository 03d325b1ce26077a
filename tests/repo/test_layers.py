"""Which file may import which, and that CONTRIBUTING.md says where every file has its place."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_file_imports_only_from_layers_below_its_own():
    pytest.importorskip("importlinter")
    # in a process of its own: it sets up logging for itself, which silences the loggers that are there
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_contributing_names_every_file():
    table = re.findall(r"^\| [^|]+ \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([\w*]+)`", row)}
    files = {path.stem for path in (ROOT / "lightning_prune").glob("*.py")} - {"__init__", "__main__"}
    assert [one for one in sorted(files) if not any(fnmatch(one, name) for name in named)] == []
    assert [name for name in sorted(named) if not any(fnmatch(one, name) for one in files)] == []
