"""Benchmarks by name, python -m benchmarks bench_slim --rounds 5, or all, one after the other: make bench."""

import subprocess
import sys

ALL = {
    "bench_masks": ["--threads", "1", "2", "--rounds", "5"],
    "bench_training": ["--threads", "1", "2", "--rounds", "15"],
    "bench_export": [],
    "bench_slim": [],
    "bench_accuracy": ["--seeds", "5"],
    "bench_scale": [],
    "bench_mnist1d": ["--seeds", "5"],
    "bench_mnist": ["--seeds", "5"],
    "bench_pitch": ["--seeds", "1"],
    "bench_text": ["--seeds", "1"],
}

if sys.argv[1:]:
    name, *given = sys.argv[1:]
    if name not in ALL:
        raise SystemExit(f"{name} is no benchmark. There are: {', '.join(ALL)}.")
    raise SystemExit(subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *given]).returncode)
failed = [
    name
    for name, arguments in ALL.items()
    if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode
]
if failed:
    raise SystemExit(f"Stopped with an error, which stands above: {', '.join(failed)}.")
