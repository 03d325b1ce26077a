"""What a release says of itself agrees, and the check of its files finds what is missing."""

import importlib.util
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import lightning_prune

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture
def check_dist(monkeypatch):
    spec = importlib.util.spec_from_file_location("check_dist", ROOT / "tools" / "check_dist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    package = {"lightning_prune/__init__.py", "lightning_prune/py.typed"}
    files = package | {"README.md", "tests/test_it.py", ".github/workflows/check.yml"}
    monkeypatch.setattr(module, "tracked_files", lambda *folders: package if folders else files)
    return module


def write_files(folder, *, source=(), wheel=(), version="1.2.3"):
    """A source distribution and a wheel with empty files."""
    with tarfile.open(folder / f"lightning_prune-{version}.tar.gz", "w:gz") as archive:
        for name in ("PKG-INFO", *source):
            archive.addfile(tarfile.TarInfo(f"lightning_prune-{version}/{name}"), io.BytesIO())
    with zipfile.ZipFile(folder / f"lightning_prune-{version}-py3-none-any.whl", "w") as archive:
        for name in (f"lightning_prune-{version}.dist-info/METADATA", *wheel):
            archive.writestr(name, "")


def test_the_version_follows_semantic_versioning():
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", lightning_prune.__version__)


def test_the_citation_is_of_this_version_and_license():
    assert CITATION["version"] == lightning_prune.__version__
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert {"message", "title", "authors"} <= CITATION.keys()


def test_complete_files_of_a_release_pass(check_dist, tmp_path, capsys):
    write_files(tmp_path, source=check_dist.tracked_files(), wheel=check_dist.tracked_files("lightning_prune"))
    assert check_dist.main(tmp_path) == 0
    assert "are complete" in capsys.readouterr().out


def test_what_a_release_lacks_or_should_not_hold_is_named(check_dist, tmp_path, capsys):
    write_files(
        tmp_path,
        source=check_dist.tracked_files() - {"tests/test_it.py"} | {"notes.txt"},
        wheel={"lightning_prune/__init__.py", "tests/test_it.py"},
    )
    assert check_dist.main(tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == [
        "lightning_prune-1.2.3.tar.gz lacks tests/test_it.py",
        "lightning_prune-1.2.3.tar.gz holds notes.txt, which git has not",
        "lightning_prune-1.2.3-py3-none-any.whl lacks lightning_prune/py.typed",
        "lightning_prune-1.2.3-py3-none-any.whl holds tests/test_it.py, which git has not",
    ]


def test_a_tag_must_be_that_of_the_version_and_the_changelog_dated(check_dist):
    dated = "# Changelog\n\n## [1.2.3] - 2026-01-31\n"
    assert check_dist.check_tag("v1.2.3", "1.2.3", dated) == []
    assert check_dist.check_tag("v1.2.4", "1.2.3", dated) == ["the tag must be v1.2.3, got v1.2.4"]
    for undated in ("## [Unreleased]\n", "## [1.2.3]\n", "## [1.2.30] - 2026-01-31\n"):
        (problem,) = check_dist.check_tag("v1.2.3", "1.2.3", undated)
        assert problem == "CHANGELOG.md must have the heading '## [1.2.3] - YYYY-MM-DD'"
