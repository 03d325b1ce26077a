"""What cutting dead channels saves and costs, beside torch-pruning at the same channels: one run, interleaved, medians.

Weights are random; so are the dead channels, and the networks are of the sizes that people use. torch-pruning and
onnxruntime are taken where they are installed (pip install torch-pruning onnx onnxscript onnxruntime).

python -m benchmarks.bench_slim
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import table, write_page
from benchmarks.slim_nets import SUBJECTS, Subject, enliven, kill
from lightning_prune.analysis import count_macs
from lightning_prune.slim import slim
from lightning_prune.slim.choosing import choose, uses_of
from lightning_prune.slim.graph import as_call, capture
from lightning_prune.slim.names import standing_names
from lightning_prune.slim.walk import walk

SHARES = (0.5, 0.75)
INPUTS = 2  # on which outputs are compared
MOST_SECONDS = 5.0  # for the calls of a case in one way
WAYS = ("1 thread", "2 threads")
PEER, RUNTIME = "torch-pruning", "onnxruntime"


def installed(package: str) -> str | None:
    """Its version, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Cut:
    """A network after cutting.

    Attributes:
        by: Who cut it; nobody if it is whole.
        model: In double precision.
        seconds: That cutting took.
        difference: Of outputs, as a fraction of the largest.
        milliseconds: Of a call, by what ran it.
    """

    by: str
    model: nn.Module
    seconds: float = 0.0
    difference: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=dict)


def cut_by_us(model: nn.Module, example: Tensor, dead: list[tuple[str, list[int]]]) -> nn.Module:
    """Whatever is dead, which is not said."""
    return slim(model, example).model


def cut_by_peer(model: nn.Module, example: Tensor, dead: list[tuple[str, list[int]]]) -> nn.Module:
    """The channels that are named, and what depends on them."""
    import torch_pruning

    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
        for name, channels in dead:
            layer = model.get_submodule(name)
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels).prune()
    return model


def seconds_of_analysis(model: nn.Module, example: Tensor) -> float:
    """How long slim needs to find what can go: no proof, no timing."""
    start = time.perf_counter()
    graph = capture(model, as_call(example))
    choose(walk(graph, model), uses_of(graph.nodes, graph.states, standing_names(model)))
    return time.perf_counter() - start


@torch.no_grad()
def difference(ours: nn.Module, whole: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest difference of outputs in double precision, as a fraction of the largest output."""
    largest = 0.0
    for _ in range(INPUTS):
        x = torch.randn(shape, dtype=torch.float64)
        expected = whole(x)
        largest = max(largest, float((ours(x) - expected).abs().max() / expected.abs().max()))
    return largest


def medians(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each call; they take turns, for some seconds at most."""
    seconds: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    for index in range(rounds + 1):
        if index > 3 and time.perf_counter() - begin > MOST_SECONDS:
            break
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if index:  # the first is to warm up
                times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times) for times in seconds]


def session(model: nn.Module, example: Tensor) -> Callable[[], object]:
    """The network in onnxruntime on one thread, as a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        torch.onnx.export(model, (example,), path, dynamo=True, verbose=False)
        runner = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {runner.get_inputs()[0].name: example.numpy()}
    return lambda: runner.run(None, inputs)


def case(
    subject: Subject, share: float, live_shifts: bool, rounds: int, dense: Callable[[], object] | None
) -> list[Cut]:
    """The whole network and those that were cut out of it, slim's first, measured.

    Args:
        subject: The network.
        share: Of channels that die.
        live_shifts: Whether what lies behind dead filters lives on.
        rounds: Of calls.
        dense: A call of the whole network in onnxruntime, which is as fast with any weights; None without onnxruntime.
    """
    torch.manual_seed(0)
    whole = subject.make().eval()
    enliven(whole)
    names = {module: name for name, module in whole.named_modules()}
    dead = [(names[layer], channels) for layer, channels in kill(subject.groups(whole), share, live_shifts=live_shifts)]
    whole, example = whole.double(), torch.randn(subject.shape, dtype=torch.float64)
    torch.set_num_threads(1)
    cuts = [Cut("", whole)]
    for by, cutter in (("slim", cut_by_us), *([(PEER, cut_by_peer)] if installed(PEER) else [])):
        start = time.perf_counter()
        model = cutter(whole, example, dead).eval()
        seconds = time.perf_counter() - start
        cuts.append(Cut(by, model, seconds, difference(model, whole, subject.shape)))
    example = example.float()
    for cut in cuts:
        cut.model.float()
    with torch.no_grad():
        for threads, way in enumerate(WAYS, start=1):
            torch.set_num_threads(threads)
            calls = [lambda model=cut.model: model(example) for cut in cuts]
            for cut, value in zip(cuts, medians(calls, rounds), strict=True):
                cut.milliseconds[way] = value
    if dense is not None:
        ours = cuts[:2]
        calls = [dense, session(cuts[1].model, example)]
        for cut, value in zip(ours, medians(calls, rounds), strict=True):
            cut.milliseconds[RUNTIME] = value
    return cuts


def row(cut: Cut, whole: Cut, subject: Subject, share: float, live_shifts: bool) -> list[str]:
    """A line of the table."""
    weights, macs = (
        [count(each.model) for each in (cut, whole)]
        for count in (parameters, lambda model: count_macs(model, torch.zeros(subject.shape)).dense)
    )
    return [
        f"{share:.0%}",
        "alive" if live_shifts else "zero",
        cut.by,
        f"{weights[0] / 1e6:.2f} M, {weights[0] / weights[1]:.1%}",
        f"{macs[0] / macs[1]:.1%}",
        *(
            f"{cut.milliseconds[way]:.1f} ms, {whole.milliseconds[way] / cut.milliseconds[way]:.2f}x"
            if way in cut.milliseconds
            else ""
            for way in (*WAYS, RUNTIME)
        ),
        f"{cut.difference:.0e}" if cut.difference < 0.01 else f"**{cut.difference:.2f}**",
        f"{cut.seconds:.1f}",
    ]


def parameters(model: nn.Module) -> int:
    """How many it has."""
    return sum(parameter.numel() for parameter in model.parameters())


HEADINGS = [
    *("dead", "shifts", "cut by", "weights left", "MACs left", *WAYS, "onnxruntime, 1 thread"),
    *("difference", "seconds"),
]


def page(parts: list[str], command: str) -> None:
    """Write what was measured so far."""
    versions = {package: installed(package) for package in (PEER, RUNTIME)}
    beside = ", ".join(f"{package} {number or 'not installed: left out'}" for package, number in versions.items())
    write_page(
        "slim.md",
        "Dead channels cut out",
        command,
        *parts,
        note=f"{beside}. Random weights, random dead channels, the same for both. Shifts: whether biases, and scales "
        "and shifts of norms, behind a dead filter are zero too, or alive. Times are medians of calls that take turns, "
        "each with how many times faster it is than the dense network in the same turns. Difference: the largest of an "
        f"output on {INPUTS} fresh inputs in double precision, as a fraction of the largest output. Seconds: of the "
        "cutting, on one thread; slim's hold its proof and its own timing, to find what can go takes the time above "
        "the table. Two threads wait for each other wherever the machine does other work: read that column only where "
        "the load average is low.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="calls of every network, of which the median counts")
    args = parser.parse_args()
    slim(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2))  # what torch loads on first use
    parts = []
    for subject in SUBJECTS:
        rows, model, example = [], subject.make().eval(), torch.randn(subject.shape)
        torch.set_num_threads(1)
        analysis = seconds_of_analysis(model, example)
        runner = session(model, example) if installed(RUNTIME) and installed("onnxscript") else None
        for share, live_shifts in itertools.product(SHARES, (False, True)):
            whole, *cuts = case(subject, share, live_shifts, args.rounds, runner)
            rows += [row(cut, whole, subject, share, live_shifts) for cut in cuts]
            print(*rows[-len(cuts) :], sep="\n", flush=True)
        size = "x".join(map(str, subject.shape))
        dense = f"Dense: {parameters(model) / 1e6:.2f} M weights; input {size}. "
        dense += f"To find what can go took slim {analysis:.1f} s."
        parts += [f"## {subject.name}, {subject.channels} channels", dense, table(HEADINGS, rows)]
        page(parts, f"python -m benchmarks.bench_slim --rounds {args.rounds}")


if __name__ == "__main__":
    main()
