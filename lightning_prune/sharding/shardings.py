"""Who holds which part of a parameter, so that masks do not depend on it.

A piece is a box of indices of the whole weight. Each process computes the mask of its own piece. What a ranking needs
from the others are counts, and for groups that a cut goes through (a block of channels, an n:m group) the few rows on
one side of the cut. No process ever brings a whole weight together, and the masks are those that one process would
compute. A weight that lies wholly in one process is a sharding too, of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lightning_prune.errors import ConfigError, PruningError
from lightning_prune.sharding.rounds import Rounds, together

__all__ = [
    "Box",
    "Shard",
    "Sharding",
    "find_shardings",
    "is_sharded",
    "local_part",
    "require_same",
    "reshard_model",
    "run_together",
]

T = TypeVar("T")

_ROWS = 2**24  # elements of a weight that travel at a time when it is gathered


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which each process holds a part."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process: itself, unless it is sharded."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():  # the part itself, not a step of autograd
        return tensor.to_local()  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class Box:
    """A range of indices in each dimension of a tensor.

    Attributes:
        start: First index in each dimension.
        stop: One past the last.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of indices in each dimension."""
        return tuple(max(0, stop - start) for start, stop in zip(self.start, self.stop, strict=True))

    def __and__(self, other: Box) -> Box:
        """What two boxes share; empty where they share nothing."""
        return Box(tuple(map(max, self.start, other.start)), tuple(map(min, self.stop, other.stop)))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Slices that cut this box out of a tensor that holds ``outer``."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))

    def narrowed(self, shape: tuple[int, ...]) -> Box:
        """The same box in a tensor of ``shape`` that broadcasts over this box's: length 1 where ``shape`` has it."""
        return Box(
            tuple(0 if size == 1 else start for start, size in zip(self.start, shape, strict=True)),
            tuple(
                min(stop - start, 1) if size == 1 else stop
                for start, stop, size in zip(self.start, self.stop, shape, strict=True)
            ),
        )


@dataclass(frozen=True)
class Shard:
    """The piece of a tensor that this process holds.

    Args:
        values: The piece; empty where this process holds nothing.
        shape: Shape of the whole tensor.
        offset: Index, in the whole tensor, of the first element of ``values``.
    """

    values: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Sharding:
    """Who holds which part of one weight. Processes that hold copies of one part (replicas) do not know each other.

    Attributes:
        shape: Shape of the whole weight.
        boxes: The part of each process; together they cover the weight exactly once.
        ranks: Global rank of each of these processes.
        me: Position of this process among them.
        groups: The process groups over which a sum is one over all of them, one after the other.

    Example:
        >>> sharding = Sharding.of_one((8, 4))
        >>> sharding.is_whole, sharding.box.shape
        (True, (8, 4))
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    ranks: tuple[int, ...]
    me: int
    groups: tuple[Any, ...]

    @classmethod
    def of_one(cls, shape: Sequence[int]) -> Sharding:
        """The sharding of a weight that this process holds by itself."""
        shape = tuple(shape)
        return cls(shape, (Box((0,) * len(shape), shape),), (0,), 0, ())

    @property
    def is_whole(self) -> bool:
        """Whether this process holds the whole weight, so that no other is ever asked."""
        return not self.groups

    @property
    def box(self) -> Box:
        """What this process holds."""
        return self.boxes[self.me]

    @property
    def whole(self) -> Box:
        """The box of the whole weight."""
        return Box((0,) * len(self.shape), self.shape)

    @property
    def is_first(self) -> bool:
        """Whether this process is that to which gathered values go."""
        return self.me == 0

    def sum(self, counts: Tensor) -> Tensor:
        """Add up counts over all processes, in place: one small collective for each sharded dimension of the mesh."""
        for group in self.groups:
            distributed.all_reduce(counts, group=group)
        return counts

    def shard(self, values: Tensor, boxes: Sequence[Box], shape: tuple[int, ...]) -> Shard:
        """This process's piece of a tensor that is cut into ``boxes``, as the selection takes it."""
        return Shard(values, shape, boxes[self.me].start)

    def aligned(self, multiples: tuple[int, ...]) -> tuple[Box, ...]:
        """Boxes like these, but cut only at multiples of ``multiples`` in each dimension.

        A cut through a group moves to the group's end, so that only a few rows change hands. Where that is not enough,
        as for columns of which a rule needs the whole row, the rows are dealt out anew.
        """
        if self.is_whole or all(self._fits(box, multiples) for box in self.boxes):
            return self.boxes
        rows, multiple = self.shape[0], multiples[0]
        if all(box.shape[1:] == self.shape[1:] or prod(box.shape) == 0 for box in self.boxes):
            stops = [box.stop[0] if prod(box.shape) else 0 for box in self.boxes]
            cuts = [0]
            for stop in stops:
                cuts.append(max(cuts[-1], min(rows, -(-stop // multiple) * multiple)))
        else:
            share = -(-rows // (multiple * len(self.boxes))) * multiple
            cuts = [min(rows, share * count) for count in range(len(self.boxes) + 1)]
        rest = self.shape[1:]
        return tuple(
            Box((start, *(0 for _ in rest)), (stop, *rest)) for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
        )

    def _fits(self, box: Box, multiples: tuple[int, ...]) -> bool:
        if prod(box.shape) == 0:
            return True
        return all(
            start % multiple == 0 and (stop % multiple == 0 or stop == size)
            for start, stop, multiple, size in zip(box.start, box.stop, multiples, self.shape, strict=True)
        )

    def exchange(self, piece: Tensor, held: Sequence[Box], wanted: Sequence[Box]) -> Tensor:
        """Give the piece that this process wants, from the pieces that all processes hold.

        Only what a process wants and does not hold travels, point to point; masks travel as bits.

        Args:
            piece: What this process holds, of the shape of its box in ``held``.
            held: The box of each process.
            wanted: The box that each process wants.

        Returns:
            A new tensor, or ``piece`` itself where all get what they hold.
        """
        if tuple(held) == tuple(wanted):
            return piece
        mine, target = held[self.me], wanted[self.me]
        result = piece.new_empty(target.shape)
        sent: list[Tensor] = []  # kept alive until all is sent
        received: list[tuple[Box, Tensor]] = []
        operations = []
        for place, rank in enumerate(self.ranks):
            outgoing, incoming = wanted[place] & mine, target & held[place]
            if place == self.me:
                if prod(incoming.shape):
                    result[incoming.within(target)] = piece[incoming.within(mine)]
                continue
            if prod(outgoing.shape):
                sent.append(_to_bytes(piece[outgoing.within(mine)]))
                operations.append(distributed.P2POp(distributed.isend, sent[-1], rank))
            if prod(incoming.shape):
                buffer = torch.empty(
                    _byte_count(prod(incoming.shape), piece.dtype), dtype=torch.uint8, device=piece.device
                )
                received.append((incoming, buffer))
                operations.append(distributed.P2POp(distributed.irecv, buffer, rank))
        for work in distributed.batch_isend_irecv(operations) if operations else ():
            work.wait()
        for box, buffer in received:
            result[box.within(target)] = _from_bytes(buffer, box.shape, piece.dtype)
        return result

    def gather(self, piece: Tensor, shape: tuple[int, ...] | None = None) -> Iterator[Tensor | None]:
        """Bring the whole tensor to the first process, some rows at a time, so that no device holds it.

        Args:
            piece: What this process holds.
            shape: Shape of the whole, if it is one that broadcasts over the weight (a mask).

        Yields:
            Rows of the whole, in order; None in all processes but the first. Every process must take all of them.
        """
        shape = self.shape if shape is None else shape
        held = [box.narrowed(shape) for box in self.boxes]
        step = max(1, _ROWS // max(1, prod(shape[1:])))
        nothing = Box((0,) * len(shape), (0,) * len(shape))
        for start in range(0, shape[0], step):
            rows = Box((start, *(0 for _ in shape[1:])), (min(start + step, shape[0]), *shape[1:]))
            gathered = self.exchange(piece, held, [rows] + [nothing] * (len(self.boxes) - 1))
            yield gathered if self.is_first else None


def find_shardings(parameters: Sequence[Tensor]) -> list[Sharding]:
    """Find for each parameter which process holds what.

    A collective where there are DTensors: all processes must give the same parameters. It costs one all-gather of a
    few numbers a parameter for each way of sharding.

    Raises:
        ConfigError: A parameter is sharded in pieces that are no boxes of indices, or waits for a sum.
    """
    result = [Sharding.of_one(parameter.shape) for parameter in parameters]
    alike: dict[Any, list[int]] = {}
    for number, parameter in enumerate(parameters):
        if is_sharded(parameter):
            mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
            cut = tuple(place for place, placement in enumerate(placements) if not placement.is_replicate())
            alike.setdefault((mesh, cut, parameter.ndim), []).append(number)
    for (mesh, cut, rank), numbers in alike.items():
        groups = tuple(mesh.get_group(place) for place in cut)
        table = torch.tensor(
            [[distributed.get_rank(), *_own_box(parameters[number])] for number in numbers],
            device=local_part(parameters[numbers[0]]).device,
        ).unsqueeze(0)  # (1 process, parameters, 1 + 2 * rank)
        for group in reversed(groups):
            gathered = table.new_empty((distributed.get_world_size(group) * len(table), *table.shape[1:]))
            distributed.all_gather_into_tensor(gathered, table, group=group)
            table = gathered
        rows = table.tolist()
        for column, number in enumerate(numbers):
            of_processes = [row[column] for row in rows]
            ranks = tuple(place[0] for place in of_processes)
            boxes = tuple(Box(tuple(place[1 : 1 + rank]), tuple(place[1 + rank :])) for place in of_processes)
            shape = tuple(parameters[number].shape)
            if sum(prod(box.shape) for box in boxes) != prod(shape):
                raise ConfigError(
                    f"A pruned parameter of shape {shape} must be cut into boxes that cover it once, got "
                    f"{', '.join(str(box.shape) for box in boxes)}. Shard it evenly where two dimensions of the mesh "
                    "shard one of the weight, or leave its module out with None."
                )
            result[number] = Sharding(shape, boxes, ranks, ranks.index(distributed.get_rank()), groups)
    return result


def run_together(tasks: Sequence[tuple[Sharding, Rounds[T]]]) -> list[T]:
    """Run tasks on weights side by side: those of weights that are sharded alike share their collectives.

    Args:
        tasks: Each with the sharding of its weight.

    Returns:
        What each task returned.

    Raises:
        PruningError: The error of the first task that raised one.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, (sharding, _) in enumerate(tasks):
        alike.setdefault(sharding.groups, []).append(number)
    results: dict[int, T] = {}
    for numbers in alike.values():
        sharding = tasks[numbers[0]][0]
        found = together([tasks[number][1] for number in numbers], None if sharding.is_whole else sharding.sum)
        results.update(zip(numbers, found, strict=True))
    return [results[number] for number in range(len(tasks))]


def _own_box(parameter: Any) -> list[int]:
    """Start and stop of the part in this process, by the protocol with which torch's checkpoints ask for it."""
    (chunk,) = parameter.__create_chunk_list__()
    shape = parameter.to_local().shape
    return [*chunk.offsets, *(offset + size for offset, size in zip(chunk.offsets, shape, strict=True))]


def reshard_model(model: nn.Module) -> None:
    """Make modules of FSDP2 forget the whole weights that they may hold since a forward without a backward.

    They would go on with these, whatever is written to the shards.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule  # takes a second to import

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def require_same(values: dict[str, int], what: str, *, device: torch.device | None = None) -> None:
    """Stop in all processes if a number is not the same in all of them. One collective of 16 bytes a number.

    Args:
        values: A number by name, such as the fingerprint of a parameter; the same names in all processes.
        what: What differs, for the error.
        device: Where the process group communicates.

    Raises:
        PruningError: A number differs; says which, and in which ranks.
    """
    numbers = torch.tensor([value & (1 << 62) - 1 for value in values.values()], dtype=torch.int64, device=device)
    extremes = torch.cat([numbers, -numbers])
    distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX)
    differs = (extremes[: len(numbers)] != -extremes[len(numbers) :]).tolist()
    if not any(differs):
        return
    first = differs.index(True)
    of_ranks = numbers.new_empty(distributed.get_world_size())
    distributed.all_gather_into_tensor(of_ranks, numbers[first : first + 1].contiguous())
    found: dict[int, list[int]] = {}
    for rank, value in enumerate(of_ranks.tolist()):
        found.setdefault(value, []).append(rank)
    names = [name for name, is_other in zip(values, differs, strict=True) if is_other]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    ranks = " against ".join(f"rank {', '.join(map(str, sorted(alike)))}" for alike in sorted(found.values(), key=len))
    raise PruningError(
        f"{names[0]}{more}: {what} must be the same in all processes, but differs: {ranks}. Seed all ranks alike, and "
        "look for code that changes weights, learning rates or the number of batches by rank; then resume from the "
        "last checkpoint."
    )


def _byte_count(elements: int, dtype: torch.dtype) -> int:
    return -(-elements // 8) if dtype is torch.bool else elements * dtype.itemsize


def _to_bytes(piece: Tensor) -> Tensor:
    """A piece as bytes that any backend sends; eight flags of a mask in one."""
    flat = piece.detach().contiguous().view(-1)
    if flat.dtype is not torch.bool:
        return flat.view(torch.uint8)
    padded = nn.functional.pad(flat.view(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)  # (bytes, bits)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def _from_bytes(data: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype is not torch.bool:
        return data.view(dtype).view(shape)
    bits = data.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=data.device) & 1  # (bytes, bits)
    return bits.view(-1)[: prod(shape)].view(shape).bool()
