"""Which channels of a network can only go together, before any of them is dead: what a pruning must zero as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.masks import pruned_count
from lightning_prune.slim.choosing import all_pins, pinned_classes, reasons_of, uses_of
from lightning_prune.slim.classes import classes_of
from lightning_prune.slim.flow import Flow
from lightning_prune.slim.graph import as_call, capture, plain_copy
from lightning_prune.slim.names import standing_names
from lightning_prune.slim.slimming import kept_pins, prove_cut
from lightning_prune.slim.walk import walk

__all__ = ["CoupledMember", "CoupledSet", "Coupling", "find_coupling"]


@dataclass(frozen=True)
class CoupledMember:
    """One parameter whose channels go with those of others.

    Attributes:
        name: Its name.
        axis: The axis along which its channels lie.
        classes: Which of the coupled channels of the set each of them is a part of, int64 of shape ``(C,)``; -1 for
            those that stay.
    """

    name: str
    axis: int
    classes: Tensor


@dataclass(frozen=True)
class CoupledSet:
    """Channels of several parameters that lie behind each other or are added: one choice for each of them.

    Attributes:
        members: The parameters.
        units: For each coupled channel, which of them are ranked together: those that the same weights make; int64 of
            shape ``(channels,)``.
    """

    members: tuple[CoupledMember, ...]
    units: Tensor

    def first_of(self, fraction: float) -> Tensor:
        """The first channels of each unit, so many as a fraction of them asks for; bool of shape ``(channels,)``."""
        flags = torch.zeros(len(self.units), dtype=torch.bool)
        for unit in range(int(self.units.max()) + 1):
            inside = (self.units == unit).nonzero().flatten()
            flags[inside[: pruned_count(len(inside), fraction)]] = True
        return flags


@dataclass(frozen=True)
class Coupling:
    """All coupled channels of a network.

    Attributes:
        sets: What can be pruned.
        pinned: Why output channels of a weight stay, by its name, with the number of channels for each reason.
        shapes: The shape of every parameter, by name.
        channels: For each axis that channels lie along, by parameter and axis, which channel of which set each index is
            a part of: int64 of shape ``(2, size)``, set and channel; -1 for those that stay.
        positions: How often each value of a weight is multiplied in a call with the example, by its name.
    """

    sets: tuple[CoupledSet, ...]
    pinned: Mapping[str, Mapping[str, int]]
    shapes: Mapping[str, tuple[int, ...]]
    channels: Mapping[tuple[str, int], Tensor]
    positions: Mapping[str, int]

    def left(self, fractions: Mapping[int, float]) -> tuple[int, int]:
        """Count the weights, and the multiplications with them, that are left once channels are cut out.

        Args:
            fractions: The fraction of channels that go, in [0, 1], by the number of the set; others stay whole.

        Returns:
            Weights, and multiplications of a call with the example.
        """
        gone = {number: self.sets[number].first_of(fraction) for number, fraction in fractions.items()}
        weights = macs = 0
        for name, shape in self.shapes.items():
            sizes = [self._left_along(name, axis, size, gone) for axis, size in enumerate(shape)]
            weights += prod(sizes)
            macs += prod(sizes) * self.positions.get(name, 0)
        return weights, macs

    def _left_along(self, name: str, axis: int, size: int, gone: Mapping[int, Tensor]) -> int:
        if (name, axis) not in self.channels:
            return size
        sets, channels = self.channels[name, axis]
        for number, flags in gone.items():
            inside = sets == number
            size -= int(flags[channels[inside]].sum())
        return size


@torch.no_grad()
def find_coupling(model: nn.Module, example_inputs: Any, *, keep: Iterable[str] = ()) -> Coupling:
    """Find the channels that can only go together.

    Every second channel of a copy is made dead and cut out, so that what the forward counts on is found before
    training, and not after it.

    Args:
        model: Any module; not changed.
        example_inputs: As for :func:`~lightning_prune.slim.slim`.
        keep: Names of modules whose output channels all stay.

    Raises:
        SlimError: The model cannot be called so or captured, or no cut of it computes the same.
    """
    with torch.random.fork_rng(devices=[]):
        call = as_call(example_inputs).map(lambda tensor: tensor.detach().cpu())
        whole = plain_copy(model)
        graph = capture(whole, call)
        found = walk(graph, whole)
        flow, pins = found.flow, kept_pins(graph, found, whole, keep)
        classes = found.classes
        stays = pinned_classes(classes, all_pins(flow, pins))
        trial = whole.double()
        _deaden(trial, _made(flow, trial), classes, ~stays & (torch.arange(len(stays)) % 2 == 0))
        proof = prove_cut(
            graph, walk(graph, trial), uses_of(graph.nodes, graph.states, standing_names(trial)), pins, trial, call
        )
    every = all_pins(flow, proof.pins)
    stays = pinned_classes(classes, every)
    made = _made(flow, trial)
    weights = {key: ids for key, ids in made.items() if flow.tensors[key[0]].dim() > 1}
    pinned = {
        name: reasons_of(ids, classes, every) for (name, _), ids in weights.items() if bool(stays[classes[ids]].any())
    }
    places = torch.full((2, len(stays)), -1)
    sets = tuple(_sets(made, weights, classes, stays, places))
    shapes = {name: tuple(parameter.shape) for name, parameter in trial.named_parameters()}
    channels = {key: places[:, classes[ids]] for key, ids in flow.slots.items() if key[0] in shapes}
    return Coupling(sets, pinned, shapes, channels, dict(flow.positions))


def _made(flow: Flow, model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """The slots that make a channel what it is, by parameter and axis: all but those that only read it."""
    parameters = {name for name, _ in model.named_parameters()}
    read = {(reader.weight, reader.axis) for reader in flow.readers} - flow.tables
    return {key: ids for key, ids in sorted(flow.slots.items()) if key[0] in parameters and key not in read}


def _deaden(model: nn.Module, made: Mapping[tuple[str, int], Tensor], classes: Tensor, dead: Tensor) -> None:
    parameters = dict(model.named_parameters())
    for (name, axis), ids in made.items():
        parameters[name].index_fill_(axis, dead[classes[ids]].nonzero().flatten(), 0)


def _sets(
    made: Mapping[tuple[str, int], Tensor],
    weights: Mapping[tuple[str, int], Tensor],
    classes: Tensor,
    stays: Tensor,
    places: Tensor,
) -> Iterable[CoupledSet]:
    """Classes that go, joined where a parameter has channels of both; their set and number are noted in ``places``."""
    keys = list(made)
    count = len(stays)
    free = {key: classes[ids][~stays[classes[ids]]] for key, ids in made.items()}
    joined = classes_of(count, [(slot, slot[:1].expand(len(slot))) for slot in free.values() if len(slot)])
    makers: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key in weights:
        for label in sorted(set(free[key].tolist())):
            makers[label].append(key)
    grouped: dict[int, list[int]] = defaultdict(list)
    for label in sorted(makers):
        grouped[int(joined[label])].append(label)
    for number, labels in enumerate(grouped.values()):
        place = torch.full((count,), -1)
        place[torch.tensor(labels)] = torch.arange(len(labels))
        places[0, labels], places[1, labels] = number, torch.arange(len(labels))
        numbers: dict[tuple[tuple[str, int], ...], int] = {}
        units = torch.tensor([numbers.setdefault(tuple(makers[label]), len(numbers)) for label in labels])
        members = [
            CoupledMember(*key, torch.where(stays[classes[made[key]]], -1, place[classes[made[key]]])) for key in keys
        ]
        yield CoupledSet(tuple(member for member in members if bool((member.classes >= 0).any())), units)
