"""Networks of timm and transformers, pruned, through every export, beside what Core ML Tools converts by itself.

Each network runs in a process of its own with a time limit: a runtime may end its process. What was measured is kept,
a JSON line for each network and export, and is not measured again; delete lines of the file to do so.

python -m benchmarks.bench_networks
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import table, write_page
from benchmarks.network_zoo import NETWORKS

EXPORTS = ("bare", "sparse", "coreml", "onnx", "coreai")
TITLES = {
    "coreml": "Core ML package",
    "coreai": "Core AI asset",
    "onnx": "ONNX model",
    "sparse": "sparse safetensors file",
}
PACKAGES = ("timm", "transformers", "coreai-torch", "coreai-core", "onnx", "onnxscript", "onnxruntime", "safetensors")
# Whose limit it is where a step of an export fails, by what the step is called.
LIMITS = {
    "capture": "torch.export's limit",
    "convert": "the converter's limit",
    "write": "the converter's limit",
    "store_sparse": "our limit",
}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/networks.jsonl"), help="file of what was measured")
    parser.add_argument("--limit", type=float, default=600, help="seconds that an export of a network may take")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="networks to measure")
    args = parser.parse_args()
    args.work.parent.mkdir(parents=True, exist_ok=True)
    for network in args.only:
        while left := [export for export in EXPORTS if (network, export) not in measured(args.work)]:
            run(network, left, args.work, args.limit)
    page(measured(args.work))


def measured(work: Path) -> dict[tuple[str, str], Row]:
    """What was measured, by network and export; of several lines the last."""
    lines = work.read_text(encoding="utf-8").splitlines(keepends=True) if work.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be in the making
    return {(row["network"], row["export"]): row for row in rows}


def run(network: str, exports: list[str], work: Path, limit: float) -> None:
    """Measure exports of a network, up to the first that ends its process or takes too long, which is noted."""
    command = [sys.executable, "-m", "benchmarks.network_run", network, str(work), *exports]
    began = time.monotonic()
    with work.with_suffix(".log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        done, seen = 0, began
        while process.poll() is None:
            time.sleep(0.2)
            now = sum((network, export) in measured(work) for export in exports)
            if now > done:
                done, seen = now, time.monotonic()
            if time.monotonic() - seen > limit:
                process.kill()
                process.wait()
    left = [export for export in exports if (network, export) not in measured(work)]
    print(f"{network}: {time.monotonic() - began:.0f} s, {len(exports) - len(left)} of {len(exports)}", flush=True)
    if left:
        code = process.returncode
        why = (
            f"it took more than {limit:.0f} seconds"
            if time.monotonic() - seen > limit
            else f"its process ended ({code})"
        )
        row = {"network": network, "export": left[0], "outcome": "ended", "reason": why}
        with work.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def page(found: dict[tuple[str, str], Row]) -> None:
    """Write what was measured."""
    networks = [name for name in NETWORKS if all((name, kind) in found for kind in EXPORTS)]
    left = [name for name in NETWORKS if name not in networks]
    rows = {kind: [found[name, kind] for name in networks] for kind in EXPORTS}
    by_itself = [bool(row.get("ways")) for row in rows["bare"]]
    ours = [row["outcome"] == "proven" for row in rows["coreml"]]
    more = sum(mine and not bare for mine, bare in zip(ours, by_itself, strict=True))
    less = sum(bare and not mine for mine, bare in zip(ours, by_itself, strict=True))
    but = f"all that it converts but {less}" if less else "each that it converts"
    beside = (
        f"Core ML Tools by itself, given what `torch.export` or `torch.jit.trace` captures, converts {sum(by_itself)} "
        f"of the {len(networks)} networks, without any proof. The Core ML export proves {sum(ours)}: {more} that it "
        f"does not convert, and {but}."
    )
    parts = [table(SUMMARY, [summary(kind, rows[kind]) for kind in TITLES]), beside]
    parts += [f"Not measured in this run: {', '.join(left)}."] if left else []
    for kind, title in TITLES.items():
        bare = rows["bare"] if kind == "coreml" else [None] * len(networks)
        headings = [*HEADINGS, *(["Core ML Tools by itself"] if kind == "coreml" else [])]
        parts += [f"## {title}", table(headings, [line(*pair) for pair in zip(rows[kind], bare, strict=True)])]
        parts += [f"- {row['network']}: {reason(row)}" for row in rows[kind] if row["outcome"] != "proven"]
    write_page(
        "networks.md",
        "Networks of timm and transformers through every export",
        "python -m benchmarks.bench_networks",
        *parts,
        note=", ".join(f"{package} {version(package)}" for package in PACKAGES) + f". {NOTE}",
    )


NOTE = (
    "Random weights, three quarters of those of convolutions and Linear layers pruned; small variants, small inputs. "
    "Proven: the saved file was read back, the zeros of the pruned weights were found in it, and its program, run on "
    "five fresh inputs (two, if a run in Core AI's reference runtime takes seconds), gave the model's outputs; of a "
    "sparse file, every bit came back. Smaller: than the same file "
    "with dense weights (tables of embeddings are not pruned, and stay dense). Errors: the largest of an output as a "
    "fraction of its largest value, on inputs like the example, and on inputs far from it, for which the network is "
    "not made. Conversion: seconds of the processor, on one thread, to capture, convert and save, in the attempt that "
    "was proven; proof: all that follows. By export_needed, by trace: how the Core ML export captured the network "
    "where torch.export alone does not do."
)
HEADINGS = ["network", "outcome", "smaller", "error", "far from the example", "conversion", "proof"]
SUMMARY = [
    *("export", "proven", "refused", "process ended", "smaller, median", "largest error"),
    *("proof / conversion, median", "largest"),
]


def summary(kind: str, rows: Sequence[Row]) -> list[str]:
    """A line about all networks of an export."""
    proven = [row for row in rows if row["outcome"] == "proven"]
    shares = [row["proof"] / row["conversion"] for row in proven]
    counts = [str(sum(row["outcome"] == outcome for row in rows)) for outcome in ("proven", "refused", "ended")]
    size = f"{statistics.median(row['ratio'] for row in proven):.2f}x"
    timed = kind != "sparse"  # which is written in a moment
    return [
        f"{TITLES[kind]} ({len(rows)} networks)",
        *counts,
        size,
        error_text(max((row["near_error"] or 0.0 for row in proven), default=0.0) if timed else None),
        f"{statistics.median(shares):.2f}" if timed else "",
        f"{max(shares):.2f}" if timed else "",
    ]


def line(row: Row, bare: Row | None) -> list[str]:
    """The line of a network."""
    if row["outcome"] != "proven":
        cells = [row["network"], f"{row['outcome']}, {limit_of(row)}" if row["outcome"] == "refused" else "ended"]
        cells += [""] * (len(HEADINGS) - len(cells))
    else:
        way = f" by {row['frontend']}" if row["frontend"] not in ("", "export", "torch.onnx") else ""
        unchecked = f", {len(row['not_checked'])} things not checked" if row["not_checked"] else ""
        cells = [
            row["network"],
            f"proven{way}{unchecked}",
            f"{row['ratio']:.2f}x",
            error_text(row["near_error"]),
            error_text(row["far_error"]),
            *(f"{row[part]:.1f} s" for part in ("conversion", "proof")),
        ]
    return cells if bare is None else [*cells, " and ".join(bare.get("ways", ())) or "no"]


def error_text(error: float | None) -> str:
    """An error, shortly; nothing where none was measured."""
    return "" if error is None else f"{error:.0e}"


def limit_of(row: Row) -> str:
    """Whose limit a refusal shows."""
    step = row["failed_in"].rpartition(".")[2]
    return LIMITS.get(step, "by the proof") if step else "our limit"


def reason(row: Row) -> str:
    """Why there is no file, in one line."""
    lines: Iterable[str] = (text.strip() for text in row["reason"].splitlines())
    return " ".join(text for text in lines if not text.endswith("was not touched."))[:800]


if __name__ == "__main__":
    main()
