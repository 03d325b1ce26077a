"""Which classes of slots go: those that nothing pins, and that every reader can do without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from lightning_prune.slim.flow import Flow, Pin, Reader
from lightning_prune.slim.ops import values_in
from lightning_prune.slim.values import narrowed
from lightning_prune.slim.walk import Walk

__all__ = ["Choice", "all_pins", "choose", "pinned_classes", "reasons_of", "uses_of"]


@dataclass(frozen=True)
class Choice:
    """What goes.

    Attributes:
        classes: The class of each slot.
        gone: Which classes go, bool of shape ``(classes,)``.
        pins: Why others stay: slots and a reason, the first reason of a class first.
    """

    classes: Tensor
    gone: Tensor
    pins: tuple[Pin, ...]

    def stays(self, ids: Tensor) -> Tensor:
        """Which of some slots stay."""
        return ~self.gone[self.classes[ids]]

    def reasons(self, ids: Tensor) -> dict[str, int]:
        """Why those slots stay that could not go, and how many for each reason."""
        return reasons_of(ids, self.classes, self.pins)


def reasons_of(ids: Tensor, classes: Tensor, pins: Iterable[Pin]) -> dict[str, int]:
    """Why slots stay, by the first pin that holds each of them, and how many for each reason."""
    counts: dict[str, int] = defaultdict(int)
    left = classes[ids]
    for pin in pins:
        held = torch.isin(left, classes[pin.ids])
        if bool(held.any()):
            counts[pin.reason] += int(held.sum())
            left = left[~held]
    return dict(counts)


def pinned_classes(classes: Tensor, pins: Iterable[Pin]) -> Tensor:
    """Which classes must stay whatever their weights are, bool of shape ``(classes,)``."""
    stay = torch.zeros(int(classes.max()) + 1 if len(classes) else 0, dtype=torch.bool)
    for pin in pins:
        stay[classes[pin.ids]] = True
    return stay


def all_pins(flow: Flow, further: Sequence[Pin]) -> list[Pin]:
    """What is pinned: by operations, because a parameter is used as a whole, and what the caller adds."""
    fixed = [Pin(ids, flow.fixed[name]) for (name, _), ids in flow.slots.items() if name in flow.fixed]
    return [*further, *flow.pins, *fixed]


def choose(found: Walk, uses: Mapping[str, int], further: Sequence[Pin] = ()) -> Choice:
    """Choose the classes that go.

    Args:
        found: What was found in the network.
        uses: How many operations use each parameter and buffer.
        further: More that must stay.
    """
    flow = found.flow
    classes = found.classes
    pins = all_pins(flow, further)
    gone = ~pinned_classes(classes, pins)
    foldable = _foldable(flow.readers, uses)
    tables = _tables(found)
    refused: dict[str, list[Tensor]] = defaultdict(list)
    while True:
        before = gone.clone()
        # From the outputs on: what is read by nothing that stays can go, and so on back to the inputs.
        for reader, folds in zip(reversed(flow.readers), reversed(foldable), strict=True):
            held = _held(flow, reader, folds, classes, gone)
            gone[classes[reader.ids[held]]] = False
            if bool((constant := reader.ids[held & ~reader.constants.isnan()]).numel()):
                refused[_reason(reader)].append(constant)
        if not torch.equal(before, gone):
            continue
        _keep_one(flow, classes, gone)
        for ids in flow.even:
            _level(narrowed(ids), classes, gone, empty_rows=False)
        for ids in tables:
            _level(ids, classes, gone, empty_rows=True)
        if torch.equal(before, gone):
            break
    live = [Pin(torch.cat(ids), reason) for reason, ids in refused.items()]
    return Choice(classes, gone, (*pins, *live))


def _foldable(readers: Sequence[Reader], uses: Mapping[str, int]) -> list[Tensor]:
    """Which constants of each reader may become a part of its bias, bool of shape ``(C_in,)`` each.

    A bias that is used several times can take only what is the same at each use.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, reader in enumerate(readers):
        sharing[reader.bias or f"{reader.module}.bias"].append(index)
    result = [torch.full_like(reader.constants, reader.foldable, dtype=torch.bool) for reader in readers]
    for bias, members in sharing.items():
        first = readers[members[0]]
        alone = first.bias is None or uses.get(bias, 0) <= len(members)
        same = {(readers[index].weight, readers[index].axis, readers[index].out_axis) for index in members}
        for index in members:
            if not alone or len(same) > 1:
                result[index][:] = False
                continue
            for other in members:
                result[index] &= readers[index].constants == readers[other].constants
                result[index] &= readers[other].foldable
    return result


def _held(flow: Flow, reader: Reader, foldable: Tensor, classes: Tensor, gone: Tensor) -> Tensor:
    """Which channels were to go, but are still needed by a reader, bool of shape ``(C_in,)``."""
    free = (reader.constants == 0) | (foldable & ~reader.constants.isnan())
    asked = gone[classes[reader.ids]] & ~free
    if not bool(asked.any()):
        return asked
    outputs = flow.slots_of(reader.weight, reader.out_axis)
    rows = ~gone[classes[outputs]]
    return asked & flow.live(reader.weight, reader.out_axis, reader.axis)[rows].any(0)


def _reason(reader: Reader) -> str:
    """Why a channel stays that is constant where it is read."""
    layer = reader.weight.rpartition(".")[0] or reader.weight
    if not reader.foldable:
        return f"constant, but not zero, and {layer} pads with zeros or has no bias for it"
    return f"constant, but not the same at each use of the bias of {layer}"


def _keep_one(flow: Flow, classes: Tensor, gone: Tensor) -> None:
    """Keep one channel of a layer of which all would go: layers without channels do not exist."""
    for ids in flow.slots.values():
        if len(ids) and bool(gone[classes[ids]].all()):
            gone[classes[ids[0]]] = False


def _tables(found: Walk) -> list[Tensor]:
    """The slots of every tensor that has several dimensions of channels."""
    every = [narrowed(value.ids) for value in values_in(list(found.values.values()))]
    return [ids for ids in every if sum(size > 1 for size in ids.shape) > 1]


def _level(ids: Tensor, classes: Tensor, gone: Tensor, *, empty_rows: bool) -> None:
    """Let classes stay until as many elements stay in each row of a tensor, and rows in each matrix of it.

    Args:
        ids: The slots of the tensor.
        classes: The class of each slot.
        gone: Which classes go; changed in place.
        empty_rows: Whether all of a row may go, for the tensor has a row less then.
    """
    for dim in range(ids.dim() - 1, 0, -1):
        if ids.shape[dim] == 1:
            continue
        while True:
            # A part stays if anything in it does.
            stays = ~gone[classes[ids]]
            parts = stays.flatten(dim + 1).any(dim + 1) if ids.dim() > dim + 1 else stays
            counts = parts.sum(dim)
            short = (counts < counts.max()) & ((counts > 0) | (not empty_rows))
            if not bool(short.any()):
                break
            place = tuple(short.nonzero()[0].tolist())
            first = int((~parts[place]).nonzero()[0])
            gone[classes[ids[(*place, first)].reshape(-1)]] = False


def uses_of(nodes: Sequence[fx.Node], states: Mapping[str, str], standing: Mapping[str, str]) -> dict[str, int]:
    """How many operations use each parameter and buffer."""
    counts: dict[str, int] = defaultdict(int)
    for node in nodes:
        if node.name in states:
            counts[standing[states[node.name]]] += len(node.users)
    return dict(counts)
