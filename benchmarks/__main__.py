"""All benchmarks, one after the other: `make bench`, or python -m benchmarks.

The networks of timm and transformers (bench_networks) need `pip install -e ".[networks]"`, and are left out without.
"""

import subprocess
import sys
from importlib.util import find_spec

NEEDED = ("timm", "transformers", "coreai_torch")  # of bench_networks

for name, arguments in (
    ("bench_masks", ["--threads", "1", "2", "--rounds", "5"]),
    ("bench_training", ["--threads", "1", "2", "--rounds", "15"]),
    ("bench_export", []),
    ("bench_slim", []),
    ("bench_accuracy", ["--seeds", "5"]),
    ("bench_scale", []),
    ("bench_networks", []),
):
    if name == "bench_networks" and (missing := [package for package in NEEDED if find_spec(package) is None]):
        print(f"{name} is left out without {', '.join(missing)}")
        continue
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)
