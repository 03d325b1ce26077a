"""Which file may import which, and that CONTRIBUTING.md says where every file has its place."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_file_imports_only_from_layers_below_its_own(monkeypatch, capsys):
    pytest.importorskip("importlinter")
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_contributing_names_every_file():
    table = re.findall(r"^\| [^|]+ \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([\w*]+)`", row)}
    files = {path.stem for path in (ROOT / "lightning_prune").glob("*.py")} - {"__init__", "__main__"}
    assert [one for one in sorted(files) if not any(fnmatch(one, name) for name in named)] == []
    assert [name for name in sorted(named) if not any(fnmatch(one, name) for one in files)] == []
