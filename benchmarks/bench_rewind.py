"""Lottery tickets on MNIST-1D: rounds of pruning from which weights go back, are drawn anew, or train on, in one run.

python -m benchmarks.bench_rewind --seeds 5
"""

import argparse
import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, table, write_page
from lightning_prune import GeometricDecayScheduler, MagnitudePruner, Rewind

ROUND, EARLY, BATCH = 1500, 100, 100  # steps of a round from its first value on; the step of the early values
SHARE, ROUNDS = 1 / 3, 11  # of what is left, pruned at the end of a round; updates of the masks
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def mnist1d() -> Data:
    """Inputs and labels of the 4,000 training and the 1,000 test examples, made by the package from its own seed."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise SystemExit("The data is made by the package mnist1d: pip install mnist1d") from error
    made = make_dataset(get_dataset_args())
    inputs, held = (torch.tensor(made[key], dtype=torch.float32) for key in ("x", "x_test"))
    return inputs, torch.tensor(made["y"]), held, torch.tensor(made["y_test"])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def place_in_round(step: int) -> int:
    """Steps since the first value, of a run whose rounds begin at the early step; counted from 0."""
    return step if step < ROUND else EARLY + (step - ROUND) % (ROUND - EARLY)


def rate_at(place: int) -> float:
    """Half a cosine over each round, as in the first."""
    return 0.05 * (1 + math.cos(math.pi * place / ROUND))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, place: int) -> None:
    batch = torch.randint(len(data[0]), (BATCH,))
    optimizer.param_groups[0]["lr"] = rate_at(place)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
    optimizer.step()


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float((model(data[2]).argmax(1) == data[3]).float().mean())


def rounds(seed: int, data: Data, rewind: Rewind | None) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Prune in rounds; gives the accuracy and the masks at the end of each, before it prunes."""
    torch.manual_seed(seed)
    model = network()
    updates = [ROUND + (ROUND - EARLY) * number for number in range(ROUNDS)]
    rules: Any = {
        "global_config": {
            "scheduler": GeometricDecayScheduler(updates),
            "target_sparsity": 1 - (1 - SHARE) ** ROUNDS,
        },
        "module_name_configs": {"4": None},  # the last layer, of which little could go
    }
    pruner = MagnitudePruner(model, rules, masking="resident", rewind=rewind)
    pruner.prepare(inplace=True)
    optimizer = optimizer_of(model)
    pruner.attach_optimizers(optimizer)
    accuracies, masks = [], []
    for step in range(updates[-1] + ROUND - EARLY):
        train_step(model, optimizer, data, place_in_round(step))
        if step + 1 in updates or step + 1 == updates[-1] + ROUND - EARLY:
            accuracies.append(accuracy(model, data))
            masks.append({name: mask.clone() for name, mask in pruner.masks().items()})
        pruner.step()
    return accuracies, masks


def drawn_anew(seed: int, data: Data, masks: dict[str, Tensor]) -> float:
    """Train weights that are drawn anew under masks that were found."""
    torch.manual_seed(1000 + seed)
    model = network()
    weights = {name: model.get_parameter(name) for name in masks}
    optimizer = optimizer_of(model)
    for step in range(ROUND):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
        train_step(model, optimizer, data, step)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    return accuracy(model, data)


def percent(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def draw(results: dict[str, list[list[float]]]) -> None:
    """Mean accuracy over the share of weights that is left; equal distances stand for equal rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use("tableau-colorblind10")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for marker, (way, accuracies) in zip("osx^", results.items(), strict=False):
        means = [100 * statistics.mean(values) for values in accuracies]
        spreads = [100 * statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies]
        axes.errorbar(range(ROUNDS + 1), means, spreads, marker=marker, capsize=3, label=way)
    axes.set_xticks(range(ROUNDS + 1), [f"{100 * (1 - SHARE) ** number:.3g}" for number in range(ROUNDS + 1)])
    axes.set(title="MNIST-1D, MLP 40-100-100-10", xlabel="weights left, %", ylabel="accuracy on test examples, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "rewind.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="networks trained for every entry")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, began = mnist1d(), time.process_time()
    names = (f"back to step {EARLY}", "back to step 0", "train on", "drawn anew")
    results: dict[str, list[list[float]]] = {name: [[] for _ in range(ROUNDS + 1)] for name in names}
    for seed in range(arguments.seeds):
        print(f"seed {seed}, {time.process_time() - began:.0f} s", flush=True)
        for name, rewind in zip(names[:3], (Rewind(EARLY), Rewind(0), None), strict=True):
            accuracies, masks = rounds(seed, data, rewind)
            for column, value in zip(results[name], accuracies, strict=True):
                column.append(value)
            if name == names[0]:
                for column, found in zip(results["drawn anew"], masks, strict=True):
                    column.append(drawn_anew(seed, data, found))
    heads = ["weights left, %", *names]
    rows = [
        [f"{100 * (1 - SHARE) ** number:.3g}", *(percent(results[name][number]) for name in names)]
        for number in range(ROUNDS + 1)
    ]
    draw(results)
    write_page(
        "rewind.md",
        "Rewinding: lottery tickets on MNIST-1D",
        f"python -m benchmarks.bench_rewind --seeds {arguments.seeds}",
        table(heads, rows),
        note=(
            f"{time.process_time() - began:.0f} s of one core. Test accuracy in %, mean and standard deviation of "
            f"{arguments.seeds} networks (40-100-100-10, SGD with momentum, batches of {BATCH}), each at the end of a "
            f"round of {ROUND} steps with half a cosine of learning rate; then a third of what is left of both inner "
            "layers is pruned, each by itself. *Back to step* K: kept weights and biases go back to their values of "
            "that step (`rewind=K`), and are trained again. *Train on*: the same without rewinding. *Drawn anew*: the "
            "masks of the first column, on weights that another seed draws."
        ),
        picture="rewind.png",
    )


if __name__ == "__main__":
    main()
