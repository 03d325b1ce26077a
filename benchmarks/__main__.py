"""Benchmarks by name, python -m benchmarks bench_slim --rounds 5, or all, one after the other: make bench.

The networks of timm and transformers (bench_networks) need `pip install -e ".[networks]"`; `make bench` leaves them out
without.
"""

import subprocess
import sys
from importlib.util import find_spec

ALL = {
    "bench_masks": ["--threads", "1", "2", "--rounds", "5"],
    "bench_training": ["--threads", "1", "2", "--rounds", "15"],
    "bench_export": [],
    "bench_slim": [],
    "bench_accuracy": ["--seeds", "5"],
    "bench_scale": [],
    "bench_mnist1d": ["--seeds", "5"],
    "bench_mnist": ["--seeds", "5"],
    "bench_pitch": ["--seeds", "5"],
    "bench_text": ["--seeds", "5"],
    "bench_rewind": ["--seeds", "5"],
    "bench_networks": [],
}
NEEDED = {"bench_networks": ("timm", "transformers", "coreai_torch")}  # large, and installed by who asks for them


def run(name: str, arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode


if sys.argv[1:]:
    asked, *given = sys.argv[1:]
    if asked not in ALL:
        raise SystemExit(f"{asked} is no benchmark. There are: {', '.join(ALL)}.")
    raise SystemExit(run(asked, given))
failed = []
for name, arguments in ALL.items():
    if missing := [package for package in NEEDED.get(name, ()) if find_spec(package) is None]:
        print(f"{name} is left out without {', '.join(missing)}")
    elif run(name, arguments):
        failed.append(name)
if failed:
    raise SystemExit(f"Stopped with an error, which stands above: {', '.join(failed)}.")
