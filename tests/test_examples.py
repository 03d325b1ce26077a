"""Every example runs as its first lines say, only shorter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "callback.py": (["--epochs", "2", "--out", "{out}"], "The best network at the target"),
    "plain_loop.py": (["--steps", "60"], "accuracy on held-out digits"),
    "export_alone.py": ([], "verified"),
    "tutorial.py": (["--epochs", "1", "--out", "{out}"], "Everything is in"),
    "cli/train.py": (
        ["fit", "--config", "examples/cli/prune.yaml", "--trainer.max_epochs=2", "--trainer.default_root_dir={out}"],
        "global",
    ),
    "demo.py": (["--epochs", "3", "--out", "{out}"], "Where everything is"),
}


def test_every_example_is_run():
    names = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.py")}
    assert names - {"digits.py", "text.py"} == set(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    arguments, ending = EXAMPLES[name]
    command = [sys.executable, f"examples/{name}", *(one.format(out=tmp_path) for one in arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert ending in output
    assert "Traceback" not in output


@pytest.mark.slow
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
