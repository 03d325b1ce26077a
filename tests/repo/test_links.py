"""Links of the documents lead somewhere, each page is in the nav of the site, and the reference leaves no name out."""

import json
import re
from pathlib import Path

import pytest
import test_api_page
import yaml

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def documents():
    folders = ("docs", "benchmarks/results", "examples")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    found += (ROOT / "examples").rglob("*.ipynb")
    return sorted(path.relative_to(ROOT).as_posix() for path in found if ".ipynb_checkpoints" not in path.parts)


def text_of(path):
    """The text of a document, of a notebook that of its cells, without code."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n\n".join(
            "".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"
        )
    return FENCED.sub("", text)


def anchors_of(path):
    """The anchors of headings, by the rules of the places where Markdown is read."""
    anchors = []
    for heading in re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        anchors.append(anchor if anchor not in anchors else f"{anchor}-{anchors.count(anchor)}")
    return anchors


def dead_links(path):
    """Links of a document that lead to no file, or to no heading of one."""
    dead = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text_of(path))):
        target, _, anchor = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        if re.match(r"[a-z]+:", link):
            continue
        is_there = place.exists() and (not target or place.is_relative_to(ROOT))
        if not is_there or (anchor and anchor not in anchors_of(place)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", documents())
def test_every_link_leads_to_a_file_and_a_heading(document):
    assert dead_links(ROOT / document) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[up](../gone.md) [here](#one-two) [there](#three) `[code](x)`\n```\n[c](y)\n```\n")
    assert dead_links(page) == ["../gone.md", "#three"]


def nav_pages(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav_pages(value) if isinstance(value, list) else [value]


def test_every_page_of_the_documentation_is_in_the_nav_once():
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())  # the nav needs no Python
    named = list(nav_pages(yaml.safe_load(text)["nav"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - set(named) == set()
    assert len(named) == len(set(named))
    assert set(named) - pages == {"index.md", "examples/", "benchmarks/", "/"}


def test_the_reference_describes_every_name_of_the_api_page_once():
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
    described = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    names = [path.rpartition(".")[2] for path in described]
    assert sorted(names) == sorted(set(names))
    for path in described:
        module, _, name = path.rpartition(".")
        assert name in test_api_page.MODULES[module].__all__, path
    told = {
        name
        for module in test_api_page.MODULES
        for name in set(test_api_page.MODULES[module].__all__) - test_api_page.INNER.get(module, set())
    }
    assert told - set(names) == set()
