"""What a mask update costs, beside Core ML Tools and torch.nn.utils.prune: one run, interleaved, medians, ratios.

python -m benchmarks.bench_masks --threads 1 2
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.common import RESULTS, import_coremltools, table, write_page
from lightning_prune import MagnitudePruner
from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig
from lightning_prune.masks import compute_mask, structure_of
from lightning_prune.schedules import PruningScheduler

Shapes = Sequence[tuple[int, ...]]
RULES: dict[str, dict[str, Any]] = {
    "per_scalar": {},
    "block_size 4": {"block_size": 4},
    "per_kernel": {"granularity": "per_kernel"},
    "per_channel": {"granularity": "per_channel"},
    "2:4 dim 1": {"n_m_ratio": (2, 4), "dim": 1},
    "2:4 dim 0": {"n_m_ratio": (2, 4), "dim": 0},
}
# Blocks of two have the most norms for their weights.
MEMORY_RULES = {**RULES, "block_size 2": {"block_size": 2}}


def resnet50() -> Shapes:
    """The convolutions and the classifier: 25.5 M weights in 54 layers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    c_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(width, c_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(4 * width, c_in, 1, 1)] if block == 0 else []
            c_in = 4 * width
    return [*shapes, (1000, 2048)]


def vit_b_16() -> Shapes:
    """The patch embedding, 12 blocks and the head: 86 M weights in 50 layers."""
    return [(768, 3, 16, 16), *[(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12, (1000, 768)]


def network(shapes: Shapes) -> nn.Sequential:
    """Layers with weights of these shapes, drawn as their modules draw them."""
    layers = [
        nn.Linear(s[1], s[0], bias=False) if len(s) == 2 else nn.Conv2d(s[1], s[0], s[2:], bias=False) for s in shapes
    ]
    return nn.Sequential(*layers)


class Creeping(PruningScheduler):
    """A new sparsity at every step, so that every step is an update."""

    def __init__(self, base: float) -> None:
        self.base = base

    def compute_sparsity(self, step_count: int, prev_sparsity: float, config: Any) -> float:
        """Give ``base`` and a millionth more each time."""
        return self.base + step_count * 1e-6


def our_pruner(shapes: Shapes, rule: dict[str, Any], sparsity: float) -> MagnitudePruner:
    # Kernels of a Linear layer are an error here.
    linear = {key: value for key, value in rule.items() if key != "granularity"}
    configs = [ModuleMagnitudePrunerConfig(scheduler=Creeping(sparsity), **part) for part in (rule, linear)]
    types = {"Conv2d": configs[0], "Linear": configs[1]}
    pruner = MagnitudePruner(network(shapes), MagnitudePrunerConfig(module_type_configs=types))
    pruner.prepare(inplace=True)
    return pruner


def their_pruner(shapes: Shapes, rule: dict[str, Any], sparsity: float) -> Any:
    peer = import_coremltools().optimize.torch.pruning
    from coremltools.optimize.torch.pruning.pruning_scheduler import PruningScheduler as TheirScheduler

    class TheirCreeping(TheirScheduler):
        def compute_sparsity(self, step_count: int, prev_sparsity: float, config: Any) -> float:
            return sparsity + step_count * 1e-6

    config = peer.ModuleMagnitudePrunerConfig(scheduler=TheirCreeping(), **rule)
    pruner = peer.MagnitudePruner(network(shapes), peer.MagnitudePrunerConfig(global_config=config))
    pruner.prepare(inplace=True)
    return pruner


def our_masks(shapes: Shapes, rule: dict[str, Any], sparsity: float) -> Callable[[], object]:
    """The masks alone, into memory that is there already, as ``step()`` does."""
    calls = []
    for layer in network(shapes):
        weight = layer.weight.detach()
        # Kernels and channels of a Linear layer are scalars to Core ML Tools.
        options = {key: value for key, value in rule.items() if weight.ndim > 2 or key != "granularity"}
        shape = structure_of(**options).mask_shape(tuple(weight.shape))
        mask = torch.ones(shape, dtype=torch.bool)
        calls.append(partial(compute_mask, weight, sparsity, out=mask, **options))
    return lambda: [call() for call in calls]


def their_mask(weight: Tensor, rule: dict[str, Any], sparsity: float) -> Tensor:
    """What their pruning method computes for one weight."""
    import_coremltools()
    from coremltools.optimize.torch.pruning._utils import magnitude_ranked_mask, n_m_mask

    if "n_m_ratio" in rule:
        return n_m_mask(weight, rule["n_m_ratio"], rule["dim"]).float()
    return magnitude_ranked_mask(
        weight, sparsity, rule.get("block_size", 1), rule.get("granularity", "per_scalar")
    ).float()


def their_masks(shapes: Shapes, rule: dict[str, Any], sparsity: float) -> Callable[[], object]:
    weights = [layer.weight.detach() for layer in network(shapes)]
    return lambda: [their_mask(weight, rule, sparsity) for weight in weights]


def torch_prune(shapes: Shapes, sparsity: float) -> Callable[[], object]:
    """The masks of ``l1_unstructured`` alone, which Lightning's ModelPruning computes too, per layer."""
    method = prune.L1Unstructured(sparsity)
    pairs = [(layer.weight.detach(), torch.ones_like(layer.weight)) for layer in network(shapes)]
    return lambda: [method.compute_mask(weight, mask) for weight, mask in pairs]


def floors(shapes: Shapes) -> dict[str, Callable[[], object]]:
    """One pass over the weights that writes a mask by comparing with a known threshold: by PyTorch, and by NumPy."""
    weights = [layer.weight.detach() for layer in network(shapes)]
    masks = [torch.empty(weight.shape, dtype=torch.bool) for weight in weights]
    pairs = list(zip(weights, masks, strict=True))
    return {
        "torch.gt": lambda: [torch.gt(weight, 0.01, out=mask) for weight, mask in pairs],
        "NumPy": lambda: [np.greater(weight.numpy(), np.float32(0.01), out=mask.numpy()) for weight, mask in pairs],
    }


def interleaved(
    contenders: dict[str, Callable[[], object]], rounds: int, quick: Sequence[str] = ()
) -> dict[str, float]:
    """Median seconds of each; those named in ``quick`` run three times a round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, call in contenders.items():
        if name in quick:
            call()
    for _ in range(rounds):
        for name, call in contenders.items():
            for _ in range(3 if name in quick else 1):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def update_rows(threads: int, rounds: int) -> tuple[list[list[str]], dict[str, tuple[float, float]]]:
    """One row a network and rule, and the ratios to draw."""
    networks: list[tuple[str, Shapes, dict[str, dict[str, Any]], float]] = [
        ("ResNet-50", resnet50(), RULES, 0.5),
        ("ViT-B/16", vit_b_16(), {"per_scalar": {}}, 0.5),
        ("Linear 4096", [(4096, 4096)], {"per_scalar": {}, "4:8 dim 1": {"n_m_ratio": (4, 8), "dim": 1}}, 0.5),
        ("Linear 4096", [(4096, 4096)], {"per_scalar": {}}, 0.9),
    ]
    rows, ratios = [], {}
    for name, shapes, rules, sparsity in networks:
        for rule, options in rules.items():
            ours = {"masks": our_masks(shapes, options, sparsity), "step": our_pruner(shapes, options, sparsity).step}
            theirs = {"their masks": their_masks(shapes, options, sparsity)}
            theirs["their step"] = their_pruner(shapes, options, sparsity).step
            if rule == "per_scalar":
                theirs["torch prune"] = torch_prune(shapes, sparsity)
            quick = {**ours, **floors(shapes)}
            t = interleaved({**quick, **theirs}, rounds, quick=list(quick))
            ratios[f"{name}, {rule}, {sparsity:.0%}"] = (t["their step"] / t["masks"], t["their step"] / t["step"])
            row = [name, rule, f"{sparsity:.0%}", str(threads), f"{t['masks'] * 1e3:.1f}", f"{t['step'] * 1e3:.1f}"]
            row += [f"{t['their masks'] * 1e3:.0f}", f"{t['their step'] * 1e3:.0f}"]
            row += [f"**{t['their step'] / t['masks']:.1f}**", f"**{t['their step'] / t['step']:.1f}**"]
            row += [f"{t['their masks'] / t['masks']:.1f}"]
            row += [f"{t['torch prune'] / t['masks']:.1f}" if "torch prune" in t else ""]
            row += [f"{t['masks'] / t['torch.gt']:.1f}", f"{t['masks'] / t['NumPy']:.1f}"]
            rows.append(row)
            print("| " + " | ".join(row) + " |", flush=True)
    return rows, ratios


def scaling(rounds: int) -> dict[int, float]:
    """Seconds of a per_scalar update from 2**16 to 2**26 weights."""
    seconds = {}
    for size in (2**power for power in range(16, 27)):
        weight, mask = torch.randn(size) * 0.02, torch.empty(size, dtype=torch.bool)
        call = partial(compute_mask, weight, 0.5, out=mask)
        seconds[size] = interleaved({"ours": call}, rounds, quick=("ours",))["ours"]
    return seconds


def exponent(seconds: dict[int, float]) -> float:
    """Slope of the logarithm of the time over that of the size, from 2**18 on."""
    sizes = [size for size in seconds if size >= 2**18]
    return float(np.polyfit(np.log(sizes), np.log([seconds[size] for size in sizes]), 1)[0])


def idle_steps() -> list[list[str]]:
    """A step at which nothing is due, for networks of 10 and 1,000 layers."""
    peer = import_coremltools().optimize.torch.pruning
    rows = []
    for layers in (10, 1000):
        rule = {"scheduler": {"update_steps": [1, 10**6]}, "target_sparsity": 0.5}
        ours = MagnitudePruner(nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]), {"global_config": rule})
        config = peer.MagnitudePrunerConfig.from_dict({"global_config": rule})
        theirs = peer.MagnitudePruner(nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]), config)
        for pruner in (ours, theirs):
            pruner.prepare(inplace=True)
            pruner.step()
        times = {}
        for name, pruner, count in (("ours", ours, 10_000), ("theirs", theirs, 200)):
            start = time.perf_counter()
            for _ in range(count):
                pruner.step()
            times[name] = (time.perf_counter() - start) / count * 1e6
        rows.append(
            [f"{layers:,}", f"{times['ours']:.2f}", f"{times['theirs']:.1f}", f"{times['theirs'] / times['ours']:.0f}"]
        )
    return rows


def report_rows(rounds: int) -> list[list[str]]:
    """A report right after an update of all masks, which is not part of the time."""
    rows = []
    for name, shapes in (("ResNet-50", resnet50()), ("Linear 4096", [(4096, 4096)])):
        pruners = {"ours": our_pruner(shapes, {}, 0.5), "theirs": their_pruner(shapes, {}, 0.5)}
        times: dict[str, list[float]] = {who: [] for who in pruners}
        for _ in range(rounds):
            for who, pruner in pruners.items():
                pruner.step()
                start = time.perf_counter()
                pruner.report()
                times[who].append(time.perf_counter() - start)
        ours, theirs = (statistics.median(times[who]) * 1e3 for who in ("ours", "theirs"))
        rows.append([name, f"{ours:.2f}", f"{theirs:.0f}", f"{theirs / ours:.0f}"])
    return rows


def peak_memory(contender: str, rule: str) -> float:
    """Bytes per weight that an update of one 4096 x 4096 weight takes beside weight and mask, at its peak."""
    options = MEMORY_RULES[rule]
    weight = torch.randn(4096, 4096) if "granularity" not in options else torch.randn(1024, 1024, 4, 4)
    if contender == "ours":
        shape = structure_of(**options).mask_shape(tuple(weight.shape))
        held = torch.ones(shape, dtype=torch.bool)
        update = partial(compute_mask, sparsity=0.5, **options)
        update(weight[:256, :256].clone(), out=held[:256, :256].clone())
        call: Callable[[], object] = partial(update, weight, out=held)
    else:
        their_mask(weight[:256, :256].clone(), options, 0.5)
        call = partial(their_mask, weight, options, 0.5)
    # Memory that was freed but not returned would hide what the update takes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = call()
    extra = resident("VmHWM") - before
    del kept
    return extra / weight.numel()


def resident(name: str) -> int:
    """Resident memory in bytes, now (``VmRSS``) or at its highest (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def memory_rows() -> list[list[str]]:
    """Medians of three, each measured in a process of its own."""
    rows = []
    for rule in MEMORY_RULES:
        values = []
        for contender in ("ours", "theirs"):
            command = [sys.executable, "-m", "benchmarks.bench_masks", "--memory", contender, rule]
            runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
            values.append(f"{statistics.median(float(printed.split()[-1]) for printed in runs):.2f}")
        rows.append([rule, *values])
    return rows


def draw(ratios: dict[str, tuple[float, float]], seconds: dict[int, float], path: Path) -> None:
    """Ratios as bars, and the time of an update over its size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    names = list(ratios)[::-1]
    places = np.arange(len(names))
    for which, label in ((0, "our masks"), (1, "our whole step()")):
        values = [ratios[name][which] for name in names]
        bars = left.barh(places + 0.2 - 0.4 * which, values, height=0.4, label=label)
        left.bar_label(bars, fmt="%.0fx", padding=3, fontsize=8)
    left.set_yticks(places, names)
    left.legend(loc="center right")
    left.set(title="Mask update: times faster than Core ML Tools' step()", xlabel="ratio of medians, one run, 1 thread")
    left.margins(x=0.1)
    sizes = list(seconds)
    right.loglog(sizes, [seconds[size] * 1e3 for size in sizes], "o-", base=2)
    right.set(
        title=f"per_scalar update: time grows as weights ** {exponent(seconds):.2f}", xlabel="weights", ylabel="ms"
    )
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of PyTorch, one table each")
    parser.add_argument("--rounds", type=int, default=5, help="times that every contender runs, interleaved")
    parser.add_argument("--memory", nargs=2, metavar=("CONTENDER", "RULE"), help="print one peak, and stop")
    arguments = parser.parse_args()
    if arguments.memory:
        torch.set_num_threads(1)
        print(peak_memory(*arguments.memory))
        return
    torch.manual_seed(0)
    rows, ratios = [], {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        more, drawn = update_rows(threads, arguments.rounds)
        rows += more
        ratios = ratios or drawn
    torch.set_num_threads(arguments.threads[0])
    seconds = scaling(arguments.rounds)
    given = " ".join(map(str, arguments.threads))
    headings = ["network", "rule", "sparsity", "threads", "our masks, ms", "our step, ms", "their masks, ms"]
    headings += ["their step, ms", "their step / our masks", "step / step", "masks / masks"]
    headings += ["torch prune / our masks", "torch.gt passes", "NumPy passes"]
    sizes = [[f"2^{size.bit_length() - 1}", f"{t * 1e3:.2f}", f"{t / size * 1e9:.2f}"] for size, t in seconds.items()]
    RESULTS.mkdir(exist_ok=True)
    draw(ratios, seconds, RESULTS / "masks.png")
    write_page(
        "masks.md",
        "Mask updates",
        f"python -m benchmarks.bench_masks --threads {given} --rounds {arguments.rounds}",
        table(headings, rows),
        f"## Size\n\nTime grows as weights to the power {exponent(seconds):.2f}, from 2^18 to 2^26.",
        table(["weights", "ms", "ns per weight"], sizes),
        "## Memory\n\nPeak beside weight and mask during one update of 16.8 M float32 weights, bytes per weight.",
        table(["rule", "ours", "Core ML Tools"], memory_rows()),
        "## A step with nothing due\n\nMicroseconds.",
        table(["layers", "ours", "Core ML Tools", "ratio"], idle_steps()),
        "## Report\n\nMilliseconds, right after an update of all masks, per_scalar.",
        table(["network", "ours", "Core ML Tools", "ratio"], report_rows(arguments.rounds)),
        note=f"NumPy {np.__version__}. Contenders run in turn; medians, and ratios of medians.\n\n"
        "Masks: those of all layers, into memory that is there (ours), or new (theirs, Core ML Tools). Step: a whole "
        "`MagnitudePruner.step()` that updates all masks; ours also masks the weights, theirs leaves that to the next "
        "forward pass. `torch prune` is the mask of `l1_unstructured`, which Lightning's ModelPruning computes per "
        "layer. The last two columns count passes over the weights with one known threshold: "
        "`torch.gt(w, t, out=mask)`, and one NumPy compare.",
        picture="masks.png",
    )


if __name__ == "__main__":
    main()
