"""What pruning costs in accuracy: ways to prune at rising sparsity, beside Core ML Tools and baselines, in one run.

python -m benchmarks.bench_accuracy --seeds 5
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.common import RESULTS, import_coremltools, table, write_page
from examples.digits import Digits
from lightning_prune import MagnitudePruner

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
EPOCHS, BATCH = 30, 64
FIRST, LAST, UPDATES = 0.1, 0.6, 40  # share of the steps at which the mask first changes, and at which it is final

Step = Callable[[], object]
Prune = Callable[[nn.Sequential, float, int], Step]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of the training set and of what is held out, whole."""
    data = Digits()
    data.setup("fit")
    return *data.train[:], *data.held_out[:]


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def updates(steps: int) -> list[int]:
    """The steps at which masks are computed anew, evenly over the window."""
    first, last = round(FIRST * steps), round(LAST * steps)
    return sorted({first + (last - first) * k // (UPDATES - 1) for k in range(UPDATES)})


def gradual(model: nn.Sequential, sparsity: float, steps: int, *, power: int = 3, scope: Any = "layer") -> Step:
    rule = {"scheduler": {"update_steps": updates(steps), "power": power}, "target_sparsity": sparsity}
    pruner = MagnitudePruner(model, {"global_config": rule}, scope=scope)
    pruner.prepare(inplace=True)
    return pruner.step


def by_coremltools(model: nn.Sequential, sparsity: float, steps: int) -> Step:
    peer = import_coremltools().optimize.torch.pruning
    rule = {"scheduler": {"update_steps": updates(steps)}, "target_sparsity": sparsity}
    pruner = peer.MagnitudePruner(model, peer.MagnitudePrunerConfig.from_dict({"global_config": rule}))
    pruner.prepare(inplace=True)
    return pruner.step


def at_once(model: nn.Sequential, sparsity: float, steps: int, *, share: float) -> Step:
    rule = {"scheduler": {"begin_step": round(share * steps)}, "target_sparsity": sparsity}
    pruner = MagnitudePruner(model, {"global_config": rule})
    pruner.prepare(inplace=True)
    return pruner.step


def at_random(model: nn.Sequential, sparsity: float, steps: int) -> Step:
    """Weights drawn by lot before training, by PyTorch: the network of this size that knows nothing of magnitudes."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            prune.random_unstructured(layer, "weight", sparsity)
    return lambda: None


WAYS: dict[str, Prune] = {
    "gradual, cubic": gradual,
    "the same by Core ML Tools": by_coremltools,
    "gradual, linear": partial(gradual, power=1),
    "gradual, cubic, ranked globally": partial(gradual, scope="global"),
    f"at once, at {LAST:.0%} of the steps": partial(at_once, share=LAST),
    "at once, after training": partial(at_once, share=1.0),
    "at random, before training": at_random,
}


def accuracy(way: Prune | None, sparsity: float, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Train one network, and give its share of right answers on what is held out."""
    images, labels, held_images, held_labels = data
    torch.manual_seed(seed)
    model = mlp()
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prune_step = way(model, sparsity, steps) if way else lambda: None
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            decay.step()
            prune_step()
    with torch.no_grad():
        return float((model(held_images).argmax(1) == held_labels).float().mean())


def percent(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def draw(dense: list[float], results: dict[str, list[list[float]]]) -> None:
    """Mean accuracy over sparsity; equal distances stand for equal factors of the weights that are left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places = [-log2(1 - sparsity) for sparsity in SPARSITIES]
    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.axhline(100 * statistics.mean(dense), color="0.5", linestyle="--", label="dense")
    for marker, (way, accuracies) in zip("oxsv^DP", results.items(), strict=True):
        axes.plot(places, [100 * statistics.mean(values) for values in accuracies], marker=marker, label=way)
    axes.set_xticks(places, [f"{sparsity:.0%}" for sparsity in SPARSITIES])
    axes.set(title="Digits, MLP of 51 thousand weights", xlabel="sparsity", ylabel="accuracy on held-out digits, %")
    axes.set_ylim(80, 99.5)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "accuracy.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="networks trained for every entry")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, seeds = digits(), range(arguments.seeds)
    dense = [accuracy(None, 0.0, seed, data) for seed in seeds]
    results = {
        name: [[accuracy(way, sparsity, seed, data) for seed in seeds] for sparsity in SPARSITIES]
        for name, way in WAYS.items()
    }
    headings = ["pruned", *(f"{sparsity:.0%}" for sparsity in SPARSITIES)]
    write_page(
        "accuracy.md",
        "Accuracy",
        f"python -m benchmarks.bench_accuracy --seeds {arguments.seeds}",
        table(headings, [[name, *map(percent, accuracies)] for name, accuracies in results.items()]),
        note=f"Accuracy in % on {len(data[3])} held-out digits by sparsity: mean ± standard deviation of "
        f"{arguments.seeds} networks. Dense: {percent(dense)}. MLP 64-256-128-10, {EPOCHS} epochs of SGD, all three "
        f"layers pruned; gradual: {UPDATES} updates from {FIRST:.0%} to {LAST:.0%} of the steps.",
        picture="accuracy.png",
    )
    draw(dense, results)


if __name__ == "__main__":
    main()
