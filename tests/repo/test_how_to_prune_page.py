"""docs/how-to-prune.md: each figure stands in a table that the same paragraph links to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to-prune.md"
LINK = re.compile(r"\]\((\.\./benchmarks/results/\w+\.md)\)")
FIGURE = re.compile(r"\d+\.\d+")


def prose():
    """The page without its code, by paragraphs and items."""
    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    return [part for part in re.split(r"\n\n|\n(?=- |\| )", text) if part.strip()]


def with_figures():
    return [part for part in prose() if FIGURE.search(re.sub(r"\]\([^)]*\)", "", part))]


def test_it_has_figures():
    assert len(with_figures()) > 5


@pytest.mark.parametrize("part", with_figures(), ids=lambda part: part.strip()[:40])
def test_each_figure_is_that_of_a_table_that_is_linked(part):
    pages = [(PAGE.parent / link).resolve() for link in LINK.findall(part)]
    assert pages, "a figure without a link"
    found = "\n".join(page.read_text() for page in pages)
    figures = FIGURE.findall(re.sub(r"\]\([^)]*\)|`[^`]*`", "", part))
    missing = [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", found)]
    assert missing == []


def test_it_is_short():
    assert len(PAGE.read_text().splitlines()) < 120
