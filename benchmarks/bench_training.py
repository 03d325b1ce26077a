"""What pruning costs a training step, beside Core ML Tools and a dense model: one run, interleaved, medians, ratios.

python -m benchmarks.bench_training --threads 1 2
"""

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.common import import_coremltools, table, write_page
from lightning_prune import MagnitudePruner

RULE = {"scheduler": {"update_steps": [1, 10**9]}, "target_sparsity": 0.75, "initial_sparsity": 0.5}
DONE = {"scheduler": {"update_steps": [1]}, "target_sparsity": 0.75}


def conv_net() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]

    layers = [
        *block(3, 64),
        *block(64, 128),
        nn.MaxPool2d(2),
        *block(128, 256),
        *block(256, 256),
        nn.AdaptiveAvgPool2d(1),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10)), lambda: torch.randn(8, 3, 32, 32)


def mlp() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    layers = [nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    return nn.Sequential(*layers), lambda: torch.randn(64, 1024)


def transformer() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    class Block(nn.Module):
        """Plain Linear layers, since hooks cannot prune nn.MultiheadAttention."""

        def __init__(self, width: int = 384, heads: int = 6) -> None:
            super().__init__()
            self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
            attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.out(attended)
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    return nn.Sequential(*[Block() for _ in range(4)]), lambda: torch.randn(4, 64, 384)


NETS = {"conv net": conv_net, "MLP": mlp, "transformer": transformer}


class Contender:
    """One model in training, one optimizer step a call."""

    def __init__(self, kind: str, net: str, theirs: object, is_compiled: bool) -> None:
        torch.manual_seed(0)
        self.model, make_inputs = NETS[net]()
        self.inputs, self.pruner = make_inputs(), None
        self.run = self.model
        config = {"global_config": DONE if kind.endswith("done") else RULE}
        if kind.startswith("Core ML Tools"):
            self.pruner = theirs.MagnitudePruner(self.model, theirs.MagnitudePrunerConfig.from_dict(config))
            self.pruner.prepare(inplace=True)
        elif kind != "dense":
            self.pruner = MagnitudePruner(self.model, config, masking="hook" if "hook" in kind else "resident")
            self.pruner.prepare(inplace=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        if isinstance(self.pruner, MagnitudePruner):
            self.pruner.attach_optimizers(self.optimizer)
        if is_compiled:
            self.run = torch.compile(self.model)
        for _ in range(3):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.run(self.inputs).square().mean().backward()
        self.optimizer.step()
        if self.pruner is not None:
            self.pruner.step()

    def evaluate(self) -> None:
        with torch.no_grad():
            self.run(self.inputs[:1])


KINDS = ("dense", "Core ML Tools", "hook", "resident", "Core ML Tools, done", "hook, done", "resident, done")


def measure(net: str, theirs: object, rounds: int, is_compiled: bool) -> dict[str, tuple[float, float]]:
    """Median seconds of a training step and of an evaluation at batch 1, by contender."""
    contenders = {kind: Contender(kind, net, theirs, is_compiled) for kind in KINDS}
    train: dict[str, list[float]] = {kind: [] for kind in KINDS}
    evaluate: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gc.disable()
    for _ in range(rounds):
        for kind, contender in contenders.items():
            start = time.perf_counter()
            contender.step()
            train[kind].append(time.perf_counter() - start)
    for contender in contenders.values():
        contender.model.eval()
        contender.evaluate()
    for _ in range(rounds):
        for kind, contender in contenders.items():
            start = time.perf_counter()
            contender.evaluate()
            evaluate[kind].append(time.perf_counter() - start)
    gc.enable()
    return {kind: (statistics.median(train[kind]), statistics.median(evaluate[kind])) for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    theirs = import_coremltools().optimize.torch.pruning
    rows = []
    for threads, is_compiled, net in itertools.product(args.threads, (False, True), NETS):
        torch.set_num_threads(threads)
        medians = measure(net, theirs, args.rounds, is_compiled)
        dense_train, dense_eval = medians["dense"]
        for kind in KINDS:
            train, evaluate = medians[kind]
            row = [str(threads), "compiled" if is_compiled else "eager", net, kind, f"{1e3 * train:.2f}"]
            rows.append([*row, f"{train / dense_train:.2f}", f"{evaluate / dense_eval:.2f}"])
            print(*rows[-1], flush=True)
    headings = ["threads", "mode", "net", "masks", "training step, ms", "step / dense", "evaluation at batch 1 / dense"]
    write_page(
        "training.md",
        "Training step and evaluation",
        f"python -m benchmarks.bench_training --threads {' '.join(map(str, args.threads))} --rounds {args.rounds}",
        table(headings, rows),
        note="Medians; ratios are of one run. SGD with momentum, float32; compiled by `torch.compile(model)`. "
        "`done`: after the last update.",
    )


if __name__ == "__main__":
    main()
