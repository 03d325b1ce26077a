"""All benchmarks, one after the other: `make bench`, or python -m benchmarks."""

import subprocess
import sys

for name, arguments in (
    ("bench_masks", ["--threads", "1", "2", "--rounds", "5"]),
    ("bench_training", ["--threads", "1", "2", "--rounds", "15"]),
    ("bench_export", []),
    ("bench_slim", []),
    ("bench_accuracy", ["--seeds", "5"]),
    ("bench_scale", []),
    ("bench_rewind", ["--seeds", "5"]),
):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)
