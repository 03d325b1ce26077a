"""What an update of masks costs on many devices: a model, and the measurements with few processes that check it.

    python -m benchmarks.bench_scale                 predictions, and 1, 2 and 4 processes on this machine beside them
    python -m benchmarks.bench_scale --device cuda   prints the cost per weight on a GPU, and stops

The model is three sums, see docs/scale.md: work on the own shard, collectives of counts, bytes held.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from benchmarks.common import table, write_page
from lightning_prune.masks import structure_of
from lightning_prune.sharding import Box, Sharding, run_together

HISTOGRAM = 4096 * 8  # bytes of one round of counts
ROUNDS = {torch.float32: 3, torch.bfloat16: 2}  # 31 and 15 bits of magnitude, 12 a round


@dataclass(frozen=True)
class Machine:
    """Measured or assumed costs.

    Attributes:
        per_weight: Seconds to select one weight of the own shard.
        per_call: Seconds that an update of one parameter costs beside that, on one device.
        hop: Seconds that a small collective takes for each doubling of the number of devices.
        base: Seconds that it takes at least.
        bandwidth: Bytes a second between two devices.
    """

    per_weight: float
    per_call: float
    base: float
    hop: float
    bandwidth: float

    def collective(self, devices: int, size: int) -> float:
        """Seconds of one all-reduce of ``size`` bytes."""
        return 0.0 if devices == 1 else self.base + self.hop * math.log2(devices) + 2 * size / self.bandwidth


@dataclass(frozen=True)
class Update:
    """What one update costs one device."""

    seconds: float
    collectives: int
    traffic: int
    held: int


def predict(
    machine: Machine, weights: int, parameters: int, devices: int, dtype: torch.dtype, parallel: int | None = None
) -> Update:
    """Cost of one update of all parameters, per_scalar and without ties at the threshold.

    Args:
        machine: Costs.
        weights: Number of weights of the model.
        parameters: Number of pruned parameters.
        devices: Number of devices over which each is sharded.
        dtype: Of the weights.
        parallel: Devices that really work at the same time, where fewer than ``devices`` (processes on few cores).
    """
    rounds = ROUNDS[dtype]
    # one collective for the size and NaN, one a round, one for the report
    sizes = [16, *[HISTOGRAM] * rounds, 24]
    work = weights * machine.per_weight / (parallel or devices) + parameters * machine.per_call * devices / (
        parallel or devices
    )
    wait = sum(machine.collective(devices, parameters * size) for size in sizes)
    held = weights // devices * (1 + dtype.itemsize)  # mask and stash
    return Update(work + wait, len(sizes), parameters * 2 * sum(sizes), held)


MODELS = {"1 B": (10**9, 16 * 7), "70 B": (70 * 10**9, 80 * 7), "1 T": (10**12, 128 * 7)}
ASSUMED = Machine(per_weight=0.5e-9, per_call=2e-3, base=20e-6, hop=10e-6, bandwidth=25e9)


def predictions(machine: Machine = ASSUMED) -> str:
    """Predictions as a table."""
    rows = []
    for name, (weights, parameters) in MODELS.items():
        for devices in (8, 64, 512, 4096):
            update = predict(machine, weights, parameters, devices, torch.bfloat16)
            alone = predict(machine, weights // devices, parameters, 1, torch.bfloat16)
            row = [name, f"{devices:,}", f"{update.seconds:.2f} s", f"{(update.seconds - alone.seconds) * 1e3:.1f} ms"]
            row += [str(update.collectives), f"{update.traffic / 2**20:.0f} MiB", f"{update.held / 2**30:.2f} GiB"]
            rows.append(row)
    headings = ["weights", "devices", "update", "waiting for others", "collectives"]
    return table([*headings, "traffic a device", "held a device"], rows)


def measure_updates(sharding: Sharding, parameters: int, device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """Median seconds of an update of ``parameters`` weights of one shape."""
    torch.manual_seed(sharding.me)
    weights = [torch.randn(sharding.box.shape, device=device).to(dtype) for _ in range(parameters)]
    masks = [torch.empty(weight.shape, dtype=torch.bool, device=device) for weight in weights]
    times = []
    for _ in range(repeats + 1):
        if distributed.is_initialized():
            distributed.barrier()
        _synchronize(device)
        start = time.perf_counter()
        pairs = zip(weights, masks, strict=True)
        run_together([(sharding, structure_of().compute(weight, 0.75, mask, sharding)) for weight, mask in pairs])
        sharding.sum(torch.zeros(3 * parameters, dtype=torch.int64, device=device))  # the counts of the report
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row_sharding(shape: tuple[int, int], devices: int, me: int, groups: tuple[Any, ...]) -> Sharding:
    """Rows dealt out as FSDP2 does."""
    rows = -(-shape[0] // devices)
    boxes = tuple(
        Box((min(place * rows, shape[0]), 0), (min((place + 1) * rows, shape[0]), shape[1])) for place in range(devices)
    )
    return Sharding(shape, boxes, tuple(range(devices)), me, groups)


def measure_machine(device: str, dtype: torch.dtype, sizes: tuple[int, int], parameters: int) -> tuple[float, float]:
    """Seconds a weight and seconds a call, from updates of small and of large parameters in one process."""
    small, large = (
        measure_updates(row_sharding((size, size), 1, 0, ()), parameters, device, dtype) / parameters for size in sizes
    )
    per_weight = (large - small) / (sizes[1] ** 2 - sizes[0] ** 2)
    return per_weight, max(0.0, small - per_weight * sizes[0] ** 2)


def check(size: int, parameters: int = 6) -> str:
    """Predict and measure updates of some parameters by 1, 2 and 4 processes on this machine."""
    torch.set_num_threads(1)
    shape = (size, size)
    per_weight, per_call = measure_machine("cpu", torch.float32, (64, size), parameters)
    rows = []
    cores = len(os.sched_getaffinity(0))
    for devices in (1, 2, 4):
        seconds, latency = (
            (measure_updates(row_sharding(shape, 1, 0, ()), parameters, "cpu", torch.float32), 0.0)
            if devices == 1
            else _run_processes(devices, shape, parameters)
        )
        machine = Machine(per_weight, per_call, latency, 0.0, math.inf)
        weights = parameters * math.prod(shape)
        update = predict(machine, weights, parameters, devices, torch.float32, parallel=min(devices, cores))
        rows.append([str(devices), f"{latency * 1e6:.0f} us", f"{update.seconds:.3f} s", f"{seconds:.3f} s"])
    headings = ["processes", f"one collective of {parameters * HISTOGRAM // 1024} KiB", "predicted", "measured"]
    measured = f"Measured: {per_weight * 1e9:.2f} ns a weight, {per_call * 1e6:.0f} us a parameter."
    return f"{measured}\n\n{table(headings, rows)}"


def _run_processes(devices: int, shape: tuple[int, int], parameters: int) -> tuple[float, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_work, args=(place, devices, port, shape, parameters, results))
        for place in range(devices)
    ]
    for worker in workers:
        worker.start()
    result: tuple[float, float] = results.get(timeout=180)
    for worker in workers:
        worker.join(30)
        worker.kill()
    return result


def _work(me: int, devices: int, port: int, shape: tuple[int, int], parameters: int, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=me,
        world_size=devices,
        timeout=timedelta(seconds=60),
    )
    counts = torch.zeros(parameters * HISTOGRAM // 8, dtype=torch.int64)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        distributed.all_reduce(counts)
        times.append(time.perf_counter() - start)
    seconds = measure_updates(
        row_sharding(shape, devices, me, (distributed.group.WORLD,)), parameters, "cpu", torch.float32
    )
    if me == 0:
        results.put((seconds, statistics.mean(times[20:])))
    distributed.barrier()
    distributed.destroy_process_group()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of a weight that is measured")
    parser.add_argument("--device", default=None, help="print the costs of one device, such as cuda, and stop")
    arguments = parser.parse_args()
    if arguments.device is not None:
        for dtype in (torch.bfloat16, torch.float32):
            per_weight, per_call = measure_machine(arguments.device, dtype, (256, 8192), 4)
            print(f"{dtype}: {per_weight * 1e12:.1f} ps a weight, {per_call * 1e6:.0f} us a parameter")
        return
    write_page(
        "scale.md",
        "Updates on many devices",
        f"python -m benchmarks.bench_scale --size {arguments.size}",
        "## Predicted",
        predictions(),
        f"## Checked on this machine\n\n6 float32 parameters of {arguments.size} x {arguments.size}.",
        check(arguments.size),
        note="The model, what it assumes and how far it holds: docs/scale.md.",
    )


if __name__ == "__main__":
    main()
