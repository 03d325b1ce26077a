"""The site: links of the repository become links of its pages, and nothing of it is loaded from elsewhere."""

import doctest
import html.parser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FROM_ELSEWHERE = ("//", "http:", "https:")


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    return lambda name: importlib.import_module(name)


@pytest.mark.parametrize("name", ["pages", "notebooks", "docstrings"])
def test_the_examples_of_the_hooks_are_true(hooks, name):
    if name == "docstrings":
        pytest.importorskip("griffe", reason="the packages of `make docs` are not installed")
    failed, tried = doctest.testmod(hooks(name))
    assert tried
    assert failed == 0


def test_every_file_that_the_site_takes_has_a_place_of_its_own(hooks):
    pages = hooks("pages")
    places = [pages.place_of(path.relative_to(ROOT).as_posix()) for path in pages.taken()]
    assert None not in places
    assert len(places) == len(set(places)) > 20
    assert {"index.md", "changelog.md", "benchmarks/slim.md", "examples/slim.md"} <= set(places)
    assert pages.place_of("examples/notebooks/slimming.ipynb") in places


def test_code_on_a_page_is_not_relinked(hooks):
    text = "[a](docs/guide.md)\n\n```python\nx[0](docs/guide.md)\n```\n"
    assert hooks("pages").relinked(text, "README.md") == text.replace("[a](docs/", "[a](")


class Loaded(html.parser.HTMLParser):
    """What a page makes a browser load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video") and values.get("src"):
            self.found.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.found.append(values["href"])


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the packages of `make docs` are not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found
        assert [place for place in loaded.found if place.startswith(FROM_ELSEWHERE)] == [], page
        own = [place for place in loaded.found if not place.startswith("data:")]
        folder = tmp_path if page.name == "404.html" else page.parent  # a server shows it wherever nothing is
        assert [place for place in own if not (folder / place.split("?")[0].lstrip("/")).exists()] == [], page
    for sheet in tmp_path.rglob("*.css"):
        assert not any(f"url({start}" in sheet.read_text() for start in FROM_ELSEWHERE), sheet
