"""docs/slimming.md: its code runs, it shows what the code prints, and its figures are those of the benchmark."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "slimming.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def words(line):
    return " ".join(line.split())


def test_its_code_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["again"].state_dict().keys() == names["small"].state_dict().keys()
    out = Console(file=io.StringIO(), width=130)
    out.print(names["result"])
    printed = {words(line) for line in out.file.getvalue().splitlines()}
    (shown,) = blocks("text")
    lines = [words(line) for line in shown.splitlines() if line.strip()]
    assert len(lines) > 8
    assert [line for line in lines if line not in printed and not line.startswith(("measured", "verified"))] == []


def test_its_figures_are_those_of_the_benchmark():
    rows = [
        line.split(" | ") for line in PAGE.split("## What it gains")[1].split("\n## ")[0].splitlines() if "|" in line
    ]
    figures = [figure for row in rows[2:] for figure in re.findall(r"\d+\.\d+x?", " ".join(row))]
    results = (ROOT / "benchmarks" / "results" / "slim.md").read_text()
    assert len(figures) > 8
    assert [figure for figure in figures if figure not in results] == []
