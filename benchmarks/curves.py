"""Tables and pictures of recorded runs: what a network is worth over its sparsity, by the way it was pruned."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import RESULTS, table, write_page
from benchmarks.ledger import Record
from benchmarks.recipes import Recipe

DENSE = "dense"
STYLES = {  # colours that differ for the colour-blind; hollow marks show what they cover
    way: {
        "color": color,
        "marker": mark,
        "linestyle": line,
        "markersize": size,
        "markerfacecolor": face,
        "linewidth": 1.4,
    }
    for way, color, mark, line, size, face in (
        ("gradual, per layer", "#0072B2", "o", "-", 5, None),
        ("gradual, straight-through", "#6A3D9A", "d", "--", 6, "none"),
        ("gradual, ranked globally", "#E69F00", "s", "-", 5, None),
        ("gradual, ERK", "#009E73", "^", "-", 6, None),
        ("at once, and trained on", "#56B4E9", "v", "-", 6, None),
        ("at once, after training", "#999999", "x", "-", 6, None),
        ("Core ML Tools, per layer", "#000000", "o", ":", 9, "none"),
        ("Lightning's ModelPruning", "#CC79A7", "D", "--", 5, "none"),
        ("small dense network", "#D55E00", "*", "--", 9, "none"),
        ("gradual, blocks of 4", "#8C564B", "P", "-", 6, "none"),
        ("gradual, 2:4", "#8C564B", ".", "-", 10, None),
        ("2:4, straight-through at every step", "#6A3D9A", ".", "-", 10, None),
        ("coupled channels, cut out", "#8C564B", "P", "-", 7, None),
        ("gradual, per layer, recurrent weights too", "#6A3D9A", "h", "-", 6, "none"),
    )
}


@dataclass(frozen=True)
class Curves:
    """The recorded runs of a benchmark.

    Attributes:
        records: Of all networks.
        sparsities: Columns of the table.
        unit: What is measured, as an axis shows it.
        digits: After the decimal point.
        limits: Of the vertical axis, or None for all that there is.
    """

    records: Sequence[Record]
    sparsities: Sequence[float]
    unit: str
    digits: int = 2
    limits: tuple[float, float] | None = None

    def scores(self, network: str, way: str, sparsity: float) -> list[float]:
        """Of all seeds."""
        return [record["score"] for record in self._of(network, way, sparsity) if record["score"] is not None]

    def _of(self, network: str, way: str, sparsity: float) -> list[Record]:
        return [
            record
            for record in self.records
            if (record["network"], record["way"], record["sparsity"]) == (network, way, sparsity)
        ]

    def entry(self, network: str, way: str, sparsity: float) -> str:
        """Mean, and standard deviation where there are several; a dash where there is none."""
        values = self.scores(network, way, sparsity)
        if not values:
            return "—"
        spread = f" ± {statistics.stdev(values):.{self.digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{self.digits}f}{spread}"

    def seeds(self, network: str, way: str) -> str:
        """How many networks stand behind each entry of a row."""
        counts = {len(self.scores(network, way, sparsity)) for sparsity in (0.0, *self.sparsities)} - {0}
        return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "0"

    def kept(self, network: str, way: str, sparsity: float) -> str:
        """Mean number of parameters that are not zero."""
        counts = [record["kept"] for record in self._of(network, way, sparsity) if "kept" in record]
        return f"{statistics.mean(counts):,.0f}" if counts else "—"

    def table(self, network: str, ways: Sequence[str]) -> str:
        """A row a way, a column a sparsity."""
        rows = [
            [way, *(self.entry(network, way, sparsity) for sparsity in self.sparsities), self.seeds(network, way)]
            for way in ways
            if any(self._of(network, way, sparsity) for sparsity in self.sparsities)
        ]
        return table(["pruned", *(f"{sparsity:.0%}" for sparsity in self.sparsities), "seeds"], rows)

    def missing(self, network: str) -> list[str]:
        """Why an entry is a dash."""
        found = {
            f"{record['way']} at {record['sparsity']:.0%}: {record['why']}"
            for record in self.records
            if record["network"] == network and record["score"] is None
        }
        return sorted(found)

    def minutes(self) -> float:
        """What the runs of a seed took, of one processor core; the median over the seeds."""
        seconds = Counter[int]()
        for record in self.records:
            seconds[record["seed"]] += record["seconds"]
        return statistics.median(seconds.values()) / 60

    def commands(self, bench: str, networks: Sequence[str]) -> str:
        """That make these records from nothing: of one number of seeds if all networks have as many."""
        seeds = {network: len(self.scores(network, DENSE, 0.0)) for network in networks}
        found = []
        for count in sorted(set(seeds.values()), reverse=True):
            names = " ".join(f'"{name}"' if " " in name else name for name in networks if seeds[name] == count)
            chosen = f" --networks {names}" if len(set(seeds.values())) > 1 else ""
            found.append(f"python -m benchmarks {bench}{chosen} --seeds {count}")
        return "`, `".join(found)


def write_curves(
    curves: Curves, recipes: Sequence[Recipe], ways: Sequence[str], *, name: str, title: str, note: str, more: str = ""
) -> None:
    """Write the page of a benchmark, with its picture, and the recorded runs as lines of JSON.

    Args:
        curves: The recorded runs.
        recipes: Its networks; those of which nothing is recorded yet are left out.
        ways: In the order of the rows.
        name: Of the page and the picture.
        title: Heading of the page.
        note: What to know of all tables.
        more: Markdown that follows the tables.
    """
    shown = [recipe for recipe in recipes if curves.scores(recipe.name, DENSE, 0.0)]
    parts = []
    for recipe in shown:
        dense = f"Dense: {curves.entry(recipe.name, DENSE, 0.0)} (seeds: {curves.seeds(recipe.name, DENSE)}, "
        dense += f"{curves.kept(recipe.name, DENSE, 0.0)} parameters). {recipe.described()}."
        parts += [f"## {recipe.name}", dense, curves.table(recipe.name, ways)]
        missing = curves.missing(recipe.name)
        parts += ["Not run: " + "; ".join(missing) + "."] if missing else []
    draw(curves, [recipe.name for recipe in shown], ways, name, title)
    write_records(curves.records, RESULTS / f"{name}.jsonl")
    note += (
        f" One seed of all rows: {curves.minutes():.0f} minutes of one core. Every run: [{name}.jsonl]({name}.jsonl)."
    )
    write_page(
        f"{name}.md",
        title,
        curves.commands(f"bench_{name}", [recipe.name for recipe in shown]),
        *parts,
        *([more] if more else []),
        note=note,
        picture=f"{name}.png",
    )


def write_records(records: Sequence[Record], path: Path) -> None:
    """Write what was recorded, in the order of the tables; a ledger in this folder goes on from it."""
    ordered = sorted(records, key=lambda record: [str(record[key]) for key in ("network", "way", "sparsity", "seed")])
    path.write_text("".join(json.dumps(record) + "\n" for record in ordered), encoding="utf-8")


def draw(curves: Curves, networks: Sequence[str], ways: Sequence[str], name: str, title: str) -> None:
    """Mean over sparsity, a panel a network; equal distances stand for equal factors of the weights that are left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places = [-math.log2(1 - sparsity) for sparsity in curves.sparsities]
    width = 4.2 * len(networks) if len(networks) > 1 else 6.5
    figure, panels = plt.subplots(1, len(networks), figsize=(width, 5.4), squeeze=False)
    handles = {}
    for axes, network in zip(panels[0], networks, strict=True):
        dense = statistics.mean(curves.scores(network, DENSE, 0.0))
        handles[DENSE] = axes.axhline(dense, color="0.5", linestyle="--")
        for way in ways:
            scores = [curves.scores(network, way, sparsity) for sparsity in curves.sparsities]
            found = [(place, values) for place, values in zip(places, scores, strict=True) if values]
            if not found:
                continue
            means = [statistics.mean(values) for _, values in found]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in found]
            handles[way] = axes.errorbar(
                [place for place, _ in found], means, spreads, capsize=2, **STYLES.get(way, {})
            )
        axes.set_xticks(places, [f"{sparsity:.0%}" for sparsity in curves.sparsities])
        axes.set(title=network, xlabel="sparsity")
        axes.set_xlim(places[0] - 0.2, places[-1] + 0.2)
        axes.set_ylim(*(curves.limits or (None, None)))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(curves.unit)
    figure.suptitle(title)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 if len(networks) > 1 else 2, fontsize=8
    )
    figure.set_layout_engine("constrained")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)
