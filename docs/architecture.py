"""Draw the rooms of the package and what they import, as their files say it: ``make architecture``."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import tomllib
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_prune"
BLUE, GREY = "#0072B2", "0.72"
EVERYWHERE = ("basics", "errors")  # every room imports them: no arrow


def rooms() -> list[str]:
    """The rooms from the top down, as the first contract of the import linter has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [room for room in settings["tool"]["importlinter"]["contracts"][0]["layers"] if "__main__" not in room]


def files_of(room: str) -> list[Path]:
    """The Python files of a room."""
    folder = ROOT / PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def count_imports(names: list[str]) -> dict[tuple[str, str], int]:
    """How many import lines lead from one room to another."""
    found: dict[tuple[str, str], int] = {}
    for room in names:
        for path in files_of(room):
            for node in ast.walk(ast.parse(path.read_text())):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                package, _, rest = module.partition(".")
                other = rest.split(".")[0]
                if package == PACKAGE and other in names and other != room:
                    found[room, other] = found.get((room, other), 0) + 1
    return found


def draw() -> Figure:
    """One box a room, from the top down; an arrow is as strong as there are imports."""
    names = rooms()
    figure = Figure(figsize=(6.4, 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = {room: len(names) - 1 - floor for floor, room in enumerate(names)}
    for room, place in places.items():
        files = files_of(room)
        lines = sum(len(path.read_text().splitlines()) for path in files)
        axes.text(0, place, room, ha="center", va="center", weight="bold", bbox={"boxstyle": "round", "fc": "white"})
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        axes.text(-0.42, place, f"{count}, {lines:,} lines", ha="right", va="center", color="0.35", size=8)
    for (room, other), count in sorted(count_imports(names).items(), key=lambda item: item[1]):
        if other in EVERYWHERE:
            continue
        distance = places[room] - places[other]
        arrow = {
            "arrowstyle": "-|>",
            "connectionstyle": f"arc3,rad={-0.12 - 0.035 * distance}",
            "color": BLUE if distance == 1 else GREY,
            "linewidth": min(0.6 + 0.12 * count, 3.0),
        }
        start, end = (0.3, places[room] - 0.05), (0.3, places[other] + 0.12)
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=0)
    axes.text(0.3, places["basics"] - 0.5, "every room uses these two", va="center", color="0.35", size=8)
    axes.set_xlim(-1.0, 1.5)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.axis("off")
    return figure


if __name__ == "__main__":
    draw().savefig(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "architecture.png", dpi=130)
