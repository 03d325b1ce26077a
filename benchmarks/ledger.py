"""Runs that are recorded as they finish, so that a benchmark which was stopped goes on where it was."""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods import NotApplicable, Way
from benchmarks.recipes import Recipe, Training, nonzero_parameters

WORK = Path("runs/benchmarks")  # outside git

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A network to be trained: how, and how sparse."""

    recipe: Recipe
    way: str
    run: Way
    sparsity: float
    seed: int

    @property
    def key(self) -> Record:
        """What makes a recorded run the same as this."""
        return {
            "network": self.recipe.name,
            "way": self.way,
            "sparsity": self.sparsity,
            "seed": self.seed,
            "recipe": self.recipe.settings,
        }


class Ledger:
    """A file of one JSON line a finished run.

    Args:
        name: Of the benchmark.
        work: Folder of the file.
    """

    def __init__(self, name: str, work: Path = WORK) -> None:
        self.name, self.folder = name, work
        self.path = work / f"{name}.jsonl"
        self.records: list[Record] = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut amid writing
            self.records = [json.loads(line) for line in whole]
            if len(whole) < len(lines):
                self.path.write_text("".join(whole), encoding="utf-8")

    def find(self, key: Record) -> Record | None:
        """The record of a run that is finished."""
        return next((record for record in self.records if key.items() <= record.items()), None)

    def of(self, recipes: Sequence[Recipe]) -> list[Record]:
        """All records of these recipes as they are now."""
        now = {recipe.name: recipe.settings for recipe in recipes}
        return [record for record in self.records if now.get(record["network"]) == record["recipe"]]

    def add(self, record: Record) -> None:
        """Write down a run that has finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)

    def run(self, jobs: Sequence[Job], after_seed: Callable[[], None] = lambda: None) -> None:
        """Run what is not recorded yet, seed by seed, with a line of progress each.

        Args:
            jobs: In any order.
            after_seed: Called when all jobs of a seed are done.
        """
        due = [job for job in jobs if self.find(job.key) is None]
        print(f"{self.name}: {len(jobs) - len(due)} of {len(jobs)} runs are recorded in {self.path}", flush=True)
        due.sort(key=lambda job: job.seed)
        begin = time.perf_counter()
        for done, job in enumerate(due, start=1):
            shown = self._run(job)
            left = (time.perf_counter() - begin) / done * (len(due) - done)
            print(f"[{done} of {len(due)}, about {left / 60:.0f} min left] {shown}", flush=True)
            if done == len(due) or due[done].seed != job.seed:
                after_seed()

    def _run(self, job: Job) -> str:
        begin = time.process_time()  # on one thread: what it takes on a machine that does nothing else
        result: Record = {}
        try:
            net = job.run(Training(job.recipe, job.seed, self.folder / self.name), job.sparsity)
            result = {"score": job.recipe.score(net), "kept": nonzero_parameters(net)}
            result |= {"seconds": round(time.process_time() - begin, 2)} | job.recipe.measure(net)
        except NotApplicable as error:
            result = {"score": None, "why": str(error), "seconds": 0.0}
        self.add(job.key | result)
        shown = result.get("why") or f"{result['score']:.2f}, {result['kept']:,} parameters not zero"
        return f"{job.recipe.name}, {job.way}, {job.sparsity:.0%}, seed {job.seed}: {shown} ({result['seconds']:.0f} s)"


def need(package: str, pip: str) -> Any:
    """Import a package that holds data, or stop with the line that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SystemExit(f"This benchmark needs {package} ({error}). Install it: {pip}") from error


def arguments(description: str, networks: Sequence[str], seeds: int) -> argparse.Namespace:
    """Which networks and how many seeds, and where finished runs are kept."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--networks", nargs="+", default=list(networks), choices=networks)
    parser.add_argument("--seeds", type=int, default=seeds, help="networks trained for every entry")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished runs, from which a run goes on")
    torch.set_num_threads(1)
    return parser.parse_args()
