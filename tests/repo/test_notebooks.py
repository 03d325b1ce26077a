"""The notebooks run, cell by cell and without Jupyter, and print what is kept in their files."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from test_examples import matches

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NAMES = ["slimming", "tutorial"]


def cells_of(name):
    return [cell for cell in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]


def code_of(cell):
    """A cell's code without what only Jupyter reads."""
    return "".join(line if not line.startswith("%") else "\n" for line in cell["source"])


def printed_lines(text):
    return [line for line in text.splitlines() if line.strip()]


def kept_lines(cell):
    return printed_lines("".join("".join(output.get("text", [])) for output in cell["outputs"]))


def test_every_notebook_is_run():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_prints_what_it_shows(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", sys.path[:])
    threads = torch.get_num_threads()
    names, is_same_network = {}, True
    try:
        with torch.random.fork_rng():
            for index, cell in enumerate(cells_of(name)):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code_of(cell), f"{name}, cell {index}", "exec"), names)
                printed, kept = printed_lines(out.getvalue()), kept_lines(cell)
                assert len(printed) == len(kept), out.getvalue()
                # another processor rounds otherwise and trains another network; then the words alone are compared
                is_same_network &= not printed or "accuracy" not in printed[0] or printed[0] == kept[0]
                for line, text in zip(kept, printed, strict=True):
                    assert matches(line, text, is_same_network=is_same_network), f"{text!r} where {line!r} is shown"
    finally:
        torch.set_num_threads(threads)
    assert "model" in names


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_keeps_its_outputs_and_no_error(name):
    outputs = [output for cell in cells_of(name) for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == {"slimming": 1, "tutorial": 4}[name]
    assert sum(output["output_type"] == "stream" for output in outputs) >= 3
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
