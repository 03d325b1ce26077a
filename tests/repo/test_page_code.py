"""The code on the pages: Python runs, sessions print what they show, YAML is a configuration, commands parse.

A block of Python whose package is not installed for development has a comment before it, ``<!-- needs: nncf -->``, and
is only read by Python there. ``<!-- read only: why -->`` stands before a block that cannot run here at all.
"""

import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from page_world import world_of

from lightning_prune import MagnitudePrunerConfig, MagnitudePruningCallback
from lightning_prune.cli.commands import build_parser

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<limit>[^>]*) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
ELSEWHERE = {"docs/slimming.md": "tests/repo/test_slimming_page.py"}
WARNS = {  # what the libraries that these pages show warn of in their own code
    "docs/exports.md": pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
    ),
    "docs/coming-from/lightning-modelpruning.md": pytest.mark.filterwarnings(
        "ignore:The dirpath has changed.*"  # Lightning's, for the folder of the run that the checkpoint is from
    ),
}


def blocks_of(page, *languages):
    return [block for block in BLOCK.finditer((ROOT / page).read_text()) if block["language"] in languages]


def pages_with(*languages):
    return [page for page in sorted(PAGES) if blocks_of(page, *languages) and page not in ELSEWHERE]


def runs_here(block):
    kind, _, what = (block["limit"] or "").partition(": ")
    assert kind in ("", "needs", "read only"), f"{block['limit']} says neither what the block needs nor why it is read"
    return not kind or (kind == "needs" and all(map(importlib.util.find_spec, what.split(", "))))


def run_session(code, names, page):
    """A block of >>> lines, which has to print what it shows."""
    test = doctest.DocTestParser().get_doctest(code, names, page, page, 0)
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(
        test, out=said.append, clear_globs=False
    )
    names.update(test.globs)
    assert not said, "".join(said)


@pytest.mark.usefixtures("extras")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=WARNS.get(page, ())) for page in pages_with("python", "pycon")]
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page, "yaml"):
        if name := re.match(r"# (\S+\.yaml)", block["code"]):
            (tmp_path / name[1]).write_text(block["code"])
    names, given = {}, {}
    with torch.random.fork_rng():
        for block in blocks_of(page, "python", "pycon"):
            # what the page has not made itself is as new for each block
            fresh = {name: value for name, value in world_of(page).items() if names.get(name) is given.get(name)}
            names.update(fresh)
            given.update(fresh)
            code = (
                "\n" * block.string[: block.start("code")].count("\n") + block["code"]
            )  # its lines are those of the page
            if block["language"] == "pycon":
                run_session(block["code"], names, page)
            elif runs_here(block):
                exec(compile(code, page, "exec"), names)
            else:
                compile(code, page, "exec")


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_the_yaml_of_a_page_is_a_configuration(page):
    for block in blocks_of(page, "yaml"):
        values = yaml.safe_load(block["code"]) if runs_here(block) else {}
        if "config" in values:  # arguments of the callback, as LightningCLI gives them
            assert MagnitudePruningCallback(**values).config.as_dict()
        elif values:
            assert MagnitudePrunerConfig.from_yaml(block["code"]).as_dict()


@pytest.mark.parametrize("page", pages_with("console"))
def test_the_commands_of_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks_of(page, "console"):
        for line in re.findall(r"^\$ (.*)$", block["code"], re.MULTILINE):
            words = shlex.split(line, comments=True)
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
            elif words[0] == "lightning-prune":
                build_parser().parse_args(words[1:])
            else:
                assert words[0] in ("pip", "python", "cd", ".venv/bin/python"), f"{line}: is that a command?"


def test_accuracies_of_the_questions_are_those_of_the_benchmark():
    answer = (ROOT / "docs" / "faq.md").read_text().split("### Why did accuracy collapse?")[1].split("\n### ")[0]
    figures = re.findall(r"\d+\.\d+", answer)
    results = (ROOT / "benchmarks" / "results" / "accuracy.md").read_text()
    assert len(figures) == 3
    assert [figure for figure in figures if figure not in results] == []


def test_pages_that_are_run_elsewhere_are_run_there():
    for page, test in ELSEWHERE.items():
        assert page.rpartition("/")[2] in (ROOT / test).read_text()


def test_a_session_that_prints_something_else_is_found():
    with pytest.raises(AssertionError, match="Expected"):
        run_session(">>> 1 + 1\n3\n", {}, "a page")
