"""Every example runs as its first lines say, only shorter; the tutorial whole, beside what its text shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "callback.py": (["--epochs", "2", "--out", "{out}"], "The best network at the target"),
    "plain_loop.py": (["--steps", "60"], "accuracy on held-out digits"),
    "export_alone.py": ([], "verified"),
    "page.py": (["--epochs", "2", "--out", "{out}"], "Open this page in a browser: file://"),
    "slim.py": (["--epochs", "2", "--out", "{out}"], "after, loaded from"),
    "cli/train.py": (
        ["fit", "--config", "examples/cli/prune.yaml", "--trainer.max_epochs=2", "--trainer.default_root_dir={out}"],
        "global",
    ),
    "demo.py": (["--epochs", "3", "--out", "{out}"], "Where everything is"),
}


def test_every_example_is_run():
    names = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.py")}
    assert names - {"digits.py", "text.py"} == {*EXAMPLES, "tutorial.py"}


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    arguments, ending = EXAMPLES[name]
    command = [sys.executable, f"examples/{name}", *(argument.format(out=tmp_path) for argument in arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert ending in output
    assert "Traceback" not in output


SCORE = "The score without pruning is"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\d.]*x\d)")


def matches(shown: str, printed: str, *, is_same_network: bool = True) -> bool:
    """Whether two lines are the same but for spaces, the width of a table and small differences of numbers.

    A shape is no number.

    Another processor or version of torch rounds otherwise, and training makes another network of it, of which another
    sparsity is tolerated: then the words alone are compared.
    """
    texts = [" ".join(re.sub("─+", "─", NUMBER.sub("#", line)).split()) for line in (shown, printed)]
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(line)] for line in (shown, printed)]
    return texts[0] == texts[1] and (not is_same_network or numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=0.05))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (" head.0    122,880   +0", " head.0    122,880         +0 ", True),
        (" body.0.0  32x1x3x3   50.0%    144", " body.0.0  32x1x3x3   51.0%    147", True),
        (" body.0.0  32x1x3x3   50.0%    144", " body.0.0  32x1x3x3   60.0%    172", False),
        (" body.0.0  32x1x3x3   50.0%    144", " body.0.0  64x1x3x3   50.0%    144", False),
        (" ────────── ", " ────────────", True),
        (" layer  sparsity    zeros", " layer  sparsity    zeros / weights", False),
    ],
)
def test_lines_of_the_tutorial_are_compared_as_they_should_be(shown, printed, same):
    assert matches(shown, printed) == same


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
def test_the_tutorial_shows_what_its_script_prints(tmp_path):
    command = [sys.executable, "examples/tutorial.py", "--out", tmp_path]
    wide = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=wide)
    assert result.returncode == 0, result.stdout + result.stderr
    printed = result.stdout.splitlines()
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    scores = [next(line for line in lines if SCORE in line) for lines in (blocks[0].splitlines(), printed)]
    is_same_network = scores[0].strip() == scores[1].strip()
    for block in blocks:
        rest = iter(printed)
        for line in filter(str.strip, block.splitlines()):
            assert any(matches(line, text, is_same_network=is_same_network) for text in rest), (
                f"The script does not print, or not there: {line}"
            )


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
def test_the_demo_makes_what_it_names(tmp_path):
    subprocess.run(
        [sys.executable, "examples/demo.py", "--epochs", "4", "--out", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "sparsity.png").stat().st_size > 10_000
    assert (tmp_path / "digits-seed-0.mlpackage" / "Manifest.json").exists()
    assert "sparsity/global" in (tmp_path / "pruned" / "seed-0" / "metrics.csv").read_text()
