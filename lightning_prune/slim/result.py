"""What slimming left of a network, and why the rest stayed: numbers, a table, the network itself."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from lightning_prune.basics import DottedText, literal, new_table, uncompiled_name
from lightning_prune.slim.choosing import Choice
from lightning_prune.slim.graph import Call, plain_copy
from lightning_prune.slim.proof import Proof
from lightning_prune.slim.recipe import Recipe, save_recipe
from lightning_prune.slim.walk import Walk

__all__ = ["SlimLayer", "SlimResult", "result_of"]

TIMED_SECONDS = 0.5  # how long both networks are timed


@dataclass(frozen=True)
class SlimLayer:
    """One weight before and after.

    Attributes:
        name: The weight's name.
        shape: Its shape before.
        slim_shape: Its shape after.
        channels: Its output channels before.
        slim_channels: Its output channels after.
        macs: Multiplications with one of its values in a call with the example, before.
        slim_macs: The same after.
        nbytes: Its bytes before.
        slim_nbytes: Its bytes after.
        pinned: Why output channels stay whatever their values are, and how many for each reason.
    """

    name: str
    shape: tuple[int, ...]
    slim_shape: tuple[int, ...]
    channels: int
    slim_channels: int
    macs: int
    slim_macs: int
    nbytes: int
    slim_nbytes: int
    pinned: dict[str, int]


@dataclass(frozen=True)
class SlimResult:
    """A network without its dead channels, and the proof that it computes the same.

    Attributes:
        model: The slim network: a copy of the model, of the same class, with narrower layers, in its mode, dtype and on
            its device.
        layers: Every weight with output channels, before and after.
        parameters: Number of parameters before.
        slim_parameters: Number of parameters after.
        nbytes: Bytes of all parameters and buffers before.
        slim_nbytes: The same after.
        latency: Median seconds of a call with the example before, on the CPU and the threads of this process.
        slim_latency: The same after.
        difference: The largest difference of outputs in double precision, as a fraction of the largest output.
        checks: What was compared, in words.
        pinned: The same of all layers together.
    """

    model: nn.Module
    layers: tuple[SlimLayer, ...]
    parameters: int
    slim_parameters: int
    nbytes: int
    slim_nbytes: int
    latency: float
    slim_latency: float
    difference: float
    checks: tuple[str, ...]
    pinned: dict[str, int]
    recipe: Recipe

    @property
    def macs(self) -> int:
        """Multiplications with weights in a call with the example, before."""
        return sum(layer.macs for layer in self.layers)

    @property
    def slim_macs(self) -> int:
        """Multiplications with weights in a call with the example, after."""
        return sum(layer.slim_macs for layer in self.layers)

    @property
    def speedup(self) -> float:
        """How many times faster a call with the example is."""
        return self.latency / self.slim_latency

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe: the slim network's tensors, and which channels they are.

        Args:
            path: Ends in ``.safetensors``, or in anything else for a file of ``torch.save`` that loads with
                ``weights_only=True``. A recipe that is there is replaced; another kind of file is not.

        Returns:
            Where it lies.

        Raises:
            SlimError: Something else lies there, or it cannot be written.
        """
        return save_recipe(self.recipe, self.model, path)

    def as_dict(self, prefix: str = "slim/") -> dict[str, float]:
        """Flat numbers for a logger."""
        numbers = {
            "parameters": self.slim_parameters,
            "dense_parameters": self.parameters,
            "macs": self.slim_macs,
            "dense_macs": self.macs,
            "bytes": self.slim_nbytes,
            "dense_bytes": self.nbytes,
            "latency": self.slim_latency,
            "dense_latency": self.latency,
            "difference": self.difference,
        }
        return {prefix + name: float(value) for name, value in numbers.items()}

    def table(self) -> Table:
        """One row a weight, and one for the whole network."""
        table = new_table(f"Slim {type(self.model).__name__}")
        table.add_column("weight")
        for column in ("channels", "pinned", "weights", "left", "MACs left"):
            table.add_column(column, justify="right", no_wrap=True)
        for layer in self.layers:
            weights, slim_weights = _numel(layer.shape), _numel(layer.slim_shape)
            channels = f"{layer.channels:,}"
            table.add_row(
                DottedText(layer.name),
                channels if layer.channels == layer.slim_channels else f"{channels} -> {layer.slim_channels:,}",
                f"{sum(layer.pinned.values()):,}" if layer.pinned else "",
                f"{weights:,}",
                _share(slim_weights, weights),
                _share(layer.slim_macs, layer.macs),
            )
        table.add_section()
        shares = _share(self.slim_parameters, self.parameters), _share(self.slim_macs, self.macs)
        table.add_row("whole network", "", "", f"{self.parameters:,}", *shares)
        return table

    def lines(self) -> Iterable[str]:
        """What was proven and measured, and why channels stay, a sentence a line."""
        yield f"verified: {', '.join(self.checks)}; largest difference {self.difference:.1e}"
        yield (
            f"measured: {self.latency * 1e3:.2f} ms before, {self.slim_latency * 1e3:.2f} ms after, "
            f"{self.speedup:.2f}x faster on {torch.get_num_threads()} CPU threads"
        )
        for reason, count in sorted(self.pinned.items(), key=lambda item: -item[1]):
            yield f"pinned: {count:,} channels ({reason})"

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters before, {self.slim_parameters:,} after "
            f"({_share(self.slim_parameters, self.parameters)}); {self.speedup:.2f}x faster; largest difference "
            f"{self.difference:.1e}"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield from map(literal, self.lines())


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else ""


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def result_of(
    model: nn.Module,
    whole: nn.Module,
    slimmed: nn.Module,
    call: Call,
    found: Walk,
    proof: Proof,
) -> SlimResult:
    """Count and time both networks, and give the slim one the mode and the device of the model.

    Args:
        model: The user's model.
        whole: A copy of it in eval mode on the CPU.
        slimmed: The same, cut.
        call: The example.
        found: What was found in the network.
        proof: What was cut, and that it computes the same.
    """
    before, after = _timed((whole, plain_copy(slimmed)), call)  # a forward may write into its module
    layers = tuple(_layers(whole, slimmed, found, proof.choice))
    pinned: Counter[str] = Counter()
    for layer in layers:
        pinned.update(layer.pinned)
    _as_before(slimmed, model)
    return SlimResult(
        model=slimmed,
        layers=layers,
        parameters=_count(whole),
        slim_parameters=_count(slimmed),
        nbytes=_nbytes(whole),
        slim_nbytes=_nbytes(slimmed),
        latency=before,
        slim_latency=after,
        difference=proof.difference,
        checks=proof.checks,
        pinned=dict(pinned),
        recipe=Recipe.of(whole, proof.cut),
    )


def _layers(whole: nn.Module, slimmed: nn.Module, found: Walk, choice: Choice) -> Iterable[SlimLayer]:
    flow = found.flow
    before = dict(whole.named_parameters())
    after = dict(slimmed.named_parameters())
    for name, tensor in before.items():
        if (
            tensor.dim() < 2
            or not tensor.numel()
            or not (name in flow.fixed or any(owner == name for owner, _ in flow.slots))
        ):
            continue
        out_axis = flow.out_axes.get(name, 0)
        ids = flow.slots.get((name, out_axis))
        shape, slim_shape = tuple(tensor.shape), tuple(after[name].shape)
        yield SlimLayer(
            name,
            shape,
            slim_shape,
            shape[out_axis],
            slim_shape[out_axis],
            tensor.numel() * flow.positions[name],
            after[name].numel() * flow.positions[name],
            tensor.numel() * tensor.element_size(),
            after[name].numel() * after[name].element_size(),
            {flow.fixed[name]: shape[out_axis]} if name in flow.fixed else {} if ids is None else choice.reasons(ids),
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _nbytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _as_before(slimmed: nn.Module, model: nn.Module) -> None:
    """Give a copy in eval mode on the CPU the modes and the device of the model."""
    modes = {uncompiled_name(name): module.training for name, module in model.named_modules()}
    for name, module in slimmed.named_modules():
        module.training = modes[name]
    tensor = next(iter((*model.parameters(), *model.buffers())), None)
    if tensor is not None and tensor.device.type != "cpu":
        slimmed.to(tensor.device)


def _timed(models: tuple[nn.Module, nn.Module], call: Call) -> tuple[float, float]:
    """Median seconds of a call of each of two networks, which take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for model in models:
            call.of(model)
        begin = time.perf_counter()
        while len(seconds[0]) < 3 or (time.perf_counter() - begin < TIMED_SECONDS and len(seconds[0]) < 100):
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                call.of(model)
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
