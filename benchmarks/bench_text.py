"""English text by a transformer that predicts characters: bits per character over sparsity.

The text is the language reference that Python ships for its help function, pydoc_data.topics: nothing is installed. It
differs from version to version of Python.

python -m benchmarks bench_text --seeds 5
"""

import math
import platform
from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import methods
from benchmarks.curves import DENSE, Curves, write_curves
from benchmarks.ledger import Job, Ledger, arguments
from benchmarks.methods import Way
from benchmarks.recipes import Pair, Recipe

NETWORK = "transformer"
SPARSITIES = (0.5, 0.75, 0.9)
CONTEXT, HEADS, LAYERS = 64, 4, 2
RARE = 20  # a character that comes less often is replaced by a question mark
HELD_OUT = 0.1  # share of the topics, the last by name
MOST_WINDOWS = 400  # to judge a network by

WAYS: dict[str, Way] = {  # a further way to prune is one more entry
    "gradual, per layer": methods.gradual,
    "gradual, straight-through": methods.straight_through,
    "gradual, ranked globally": methods.globally,
    "gradual, ERK": methods.erk,
    "at once, and trained on": methods.at_once,
    "at once, after training": methods.after_training,
    "Core ML Tools, per layer": methods.by_coremltools,
    "small dense network": methods.small_dense,
}
AT_HALF = (
    *("gradual, per layer", "gradual, straight-through", "gradual, ranked globally", "gradual, ERK"),
    "at once, after training",
)
TWO_OF_FOUR: dict[str, Way] = {
    "gradual, 2:4": partial(methods.gradual, n_m_ratio=(2, 4)),
    "2:4, straight-through at every step": methods.sr_ste,
}


def data() -> tuple[Pair, Pair, int]:
    """Windows of characters with those that follow, for training and held out; the number of different characters."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    first = len(names) - round(HELD_OUT * len(names))
    parts = ["\n".join(topics[name] for name in chosen) for chosen in (names[:first], names[first:])]
    known = ["?", *sorted(c for c, count in Counter(parts[0]).items() if count >= RARE and c != "?")]
    numbers = {character: number for number, character in enumerate(known)}
    train, held_out = (windows([numbers.get(c, 0) for c in part]) for part in parts)
    return train, (held_out[0][:MOST_WINDOWS], held_out[1][:MOST_WINDOWS]), len(known)


def windows(numbers: list[int]) -> Pair:
    """Inputs and what follows each, in windows that do not overlap."""
    count = (len(numbers) - 1) // CONTEXT
    shape = (count, CONTEXT)
    return (
        torch.tensor(numbers[: count * CONTEXT]).view(shape),
        torch.tensor(numbers[1 : count * CONTEXT + 1]).view(shape),
    )


class Block(nn.Module):
    """Attention to what came before, and two layers for every character, each around a residual."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.queries_keys_values, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, features: Tensor) -> Tensor:
        batch, length, size = features.shape
        parts = self.queries_keys_values(self.before(features)).view(batch, length, 3, HEADS, size // HEADS)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, size of a head)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        features = features + self.out(attended.transpose(1, 2).reshape(batch, length, size))
        return features + self.down(nn.functional.gelu(self.up(self.between(features))))


class Transformer(nn.Module):
    """Predicts the next character at every place of a window."""

    def __init__(self, characters: int, width: float = 1.0) -> None:
        super().__init__()
        size = HEADS * max(1, round(16 * width))
        self.characters, self.places = nn.Embedding(characters, size), nn.Embedding(CONTEXT, size)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, characters)

    def forward(self, numbers: Tensor) -> Tensor:
        features = self.characters(numbers) + self.places.weight[: numbers.shape[1]]
        return self.head(self.norm(self.blocks(features)))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@torch.no_grad()
def bits(model: nn.Module, held_out: Pair) -> float:
    """Bits per character."""
    total = 0.0
    for inputs, targets in zip(held_out[0].split(100), held_out[1].split(100), strict=True):
        total += float(loss(model(inputs), targets)) * len(inputs)
    return total / len(held_out[0]) / math.log(2)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], (NETWORK,), seeds=5)
    train, held_out, characters = data()
    recipe = Recipe(
        NETWORK,
        partial(Transformer, characters),
        train,
        loss,
        partial(bits, held_out=held_out),
        epochs=2,
        batch=20,
        rate=3e-3,
    )
    todo = [(DENSE, methods.dense, 0.0)]
    todo += [
        (way, run, sparsity)
        for sparsity in SPARSITIES[::-1]
        for way, run in WAYS.items()
        if sparsity > 0.5 or way in AT_HALF
    ]
    todo += [(way, run, 0.5) for way, run in TWO_OF_FOUR.items()]
    jobs = [Job(recipe, *what, seed) for seed in range(args.seeds) for what in todo]
    ledger = Ledger("text", args.work)

    def page() -> None:
        write_curves(
            Curves(
                ledger.of([recipe]),
                SPARSITIES,
                "bits per character on held-out text (fewer are better)",
                digits=3,
                limits=(2.5, 3.8),
            ),
            [recipe],
            [*WAYS, *TWO_OF_FOUR],
            name="text",
            title="English text by characters",
            note=f"Bits per character, fewer are better, on {held_out[0].numel():,} held-out characters of the "
            f"language reference of Python {platform.python_version()}, by sparsity of all linear layers; the "
            f"embeddings stay dense. {train[0].numel():,} characters to train, {characters} different. A transformer "
            f"of {LAYERS} layers, {HEADS} heads and {CONTEXT} characters of context. Gradual: {methods.WINDOW}; Core "
            f"ML Tools by the same steps; at once, and trained on: a single mask at {methods.LAST:.0%} of the steps. A "
            "small dense network has as many parameters as pruning leaves, embeddings counted, and is trained by the "
            "same recipe.",
        )

    ledger.run(jobs, page)
    page()


if __name__ == "__main__":
    main()
