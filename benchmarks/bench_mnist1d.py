"""MNIST-1D by an MLP, a CNN and a GRU: what pruning costs by the way it is done, beside peers and small networks.

The data is made by the package mnist1d (Greydanus and Kobak, "Scaling down deep learning with MNIST-1D", 2020,
https://arxiv.org/abs/2011.14439) from its seed, so nothing is downloaded.

python -m benchmarks bench_mnist1d --seeds 5
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import methods
from benchmarks.curves import DENSE, Curves, write_curves
from benchmarks.ledger import Job, Ledger, arguments, need
from benchmarks.methods import Way
from benchmarks.recipes import Pair, Recipe, accuracy

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
PUBLISHED = {"MLP": 68, "CNN": 94, "GRU": 91}  # dense, % of the test set, in the paper

WAYS: dict[str, Way] = {
    "gradual, per layer": methods.gradual,
    "gradual, ranked globally": methods.globally,
    "gradual, ERK": methods.erk,
    "at once, and trained on": methods.at_once,
    "at once, after training": methods.after_training,
    "Core ML Tools, per layer": methods.by_coremltools,
    "Lightning's ModelPruning": methods.by_model_pruning,
    "small dense network": methods.small_dense,
}
RECURRENT = "gradual, per layer, recurrent weights too"


def data() -> tuple[Pair, Pair]:
    """4,000 signals of 40 samples and their digits; 1,000 that are held out."""
    package = need("mnist1d.data", "pip install mnist1d")
    made = package.make_dataset(package.get_dataset_args())
    return tuple(  # type: ignore[return-value]
        (torch.tensor(made[x], dtype=torch.float32), torch.tensor(made[y]))
        for x, y in (("x", "y"), ("x_test", "y_test"))
    )


class MLP(nn.Module):
    """Three layers, with a residual around the second, as published."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        hidden = max(1, round(100 * width))
        self.first, self.second = nn.Linear(40, hidden), nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, signals: Tensor) -> Tensor:
        features = self.first(signals).relu()
        return self.head(features + self.second(features).relu())


class CNN(nn.Module):
    """Three convolutions of stride 2 and a linear layer, as published."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = max(1, round(25 * width))
        self.first = nn.Conv1d(1, channels, 5, stride=2, padding=1)
        self.second = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.third = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.head = nn.Linear(5 * channels, 10)

    def forward(self, signals: Tensor) -> Tensor:
        features = self.second(self.first(signals[:, None]).relu()).relu()
        return self.head(self.third(features).relu().flatten(1))


class GRU(nn.Module):
    """A recurrent layer that reads in both directions, and a linear layer over all that it said, as published."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        hidden = max(1, round(6 * width))
        self.recurrent = nn.GRU(1, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * 40 * hidden, 10)

    def forward(self, signals: Tensor) -> Tensor:
        return self.head(self.recurrent(signals[..., None])[0].flatten(1))


def recipes() -> dict[str, Recipe]:
    train, held_out = data()
    common = {"train": train, "loss": nn.functional.cross_entropy, "score": accuracy(held_out), "batch": 100}
    return {
        "MLP": Recipe("MLP", MLP, epochs=60, rate=1e-2, **common),
        "CNN": Recipe("CNN", CNN, epochs=40, rate=2e-2, **common),
        "GRU": Recipe("GRU", GRU, epochs=15, rate=3e-2, **common),
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0], ("MLP", "CNN", "GRU"), seeds=5)
    known = recipes()
    jobs = [
        Job(known[network], way, run, sparsity, seed)
        for seed in range(args.seeds)
        for network in args.networks
        for way, run, sparsity in [
            (DENSE, methods.dense, 0.0),
            *((way, run, sparsity) for way, run in WAYS.items() for sparsity in SPARSITIES),
            *(
                (RECURRENT, partial(methods.gradual, types={"GRU": {"param_name": "weight_.*"}}), sparsity)
                for sparsity in SPARSITIES
                if network == "GRU"
            ),
        ]
    ]
    ledger = Ledger("mnist1d", args.work)

    def page() -> None:
        curves = Curves(ledger.of(list(known.values())), SPARSITIES, "accuracy on held-out signals, %")
        published = ", ".join(f"{network} {accuracy} %" for network, accuracy in PUBLISHED.items())
        write_curves(
            curves,
            list(known.values()),
            [*WAYS, RECURRENT],
            name="mnist1d",
            title="MNIST-1D",
            note="Accuracy in % on 1,000 held-out signals by sparsity of linear and convolution layers: "
            f"mean ± standard deviation over seeds. Published dense figures: {published} (6,000 steps). Gradual: "
            f"{methods.WINDOW}; Core ML Tools by the same steps; ModelPruning by the same curve at the ends of epochs, "
            "ranked globally, its taking back of weights to their first values switched off; at once, and trained on: "
            f"a single mask at {methods.LAST:.0%} of the steps. A small dense network has as many parameters as "
            "pruning leaves, biases counted, and is trained by the same recipe. Core ML Tools has no rule for "
            "recurrent layers, so that of the GRU stays dense, except where the table says otherwise: a single layer "
            "is left to prune there, and nothing to spread.",
        )

    ledger.run(jobs, page)
    page()


if __name__ == "__main__":
    main()
