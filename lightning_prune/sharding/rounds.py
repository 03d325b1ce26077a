"""Work that several processes do in rounds: in each they add up counts, for all of their tasks at once.

A task is a generator. It yields an int64 tensor of counts, gets back the sums over all processes, and goes on until it
returns. Every process runs the same tasks in the same order, and a task yields equally often in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_prune.errors import PruningError

__all__ = ["Reduce", "Rounds", "add_up", "alone", "together"]

T = TypeVar("T")

# Adds an int64 tensor of counts over all processes and returns the sum.
Reduce: TypeAlias = Callable[[Tensor], Tensor]
Rounds: TypeAlias = Generator[Tensor, Tensor, T]


def together(tasks: Sequence[Rounds[T]], reduce: Reduce | None = None) -> list[T]:
    """Run tasks side by side: a round of all of them costs one call of ``reduce``.

    Args:
        tasks: Where there are several processes, their counts lie on one device. The sums that they get back lie on
            the CPU.
        reduce: Adds up counts over all processes; None where there is one process.

    Returns:
        What each task returned.

    Raises:
        PruningError: The error of the first task that raised one; all others are brought to their end before.

    Example:
        >>> def half(count):
        ...     total = yield torch.tensor([count])
        ...     return int(total) // 2
        >>> together([half(6), half(10)], reduce=lambda counts: counts * 4)  # four processes with equal counts
        [12, 20]
    """
    results: dict[int, T] = {}
    errors: dict[int, PruningError] = {}
    sent: dict[int, Tensor] = {}

    def advance(number: int, sums: Tensor | None) -> None:
        try:
            sent[number] = next(tasks[number]) if sums is None else tasks[number].send(sums)
        except StopIteration as stop:
            results[number] = stop.value
        except PruningError as error:
            errors[number] = error

    try:
        for number in range(len(tasks)):
            advance(number, None)
        while sent:
            asked, sent = sent, {}
            for number, sums in zip(asked, _reduced(list(asked.values()), reduce), strict=True):
                advance(number, sums)
    finally:
        for task in tasks:
            task.close()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(tasks))]


def alone(task: Rounds[T], reduce: Reduce | None = None) -> T:
    """Run a single task."""
    return together([task], reduce)[0]


def add_up(counts: Sequence[int], device: torch.device) -> Rounds[list[int]]:
    """A round of a task: sums of counts over all processes.

    Args:
        counts: Those of this process.
        device: Where the weight lies that they are about, and the processes communicate.
    """
    sums = yield torch.tensor(counts, dtype=torch.int64, device=device)
    return [int(count) for count in sums]


def _reduced(counts: list[Tensor], reduce: Reduce | None) -> list[Tensor]:
    """Sums of the counts of each task over all processes, on the CPU."""
    if reduce is None:
        return [count.cpu() for count in counts]
    sums = reduce(
        torch.cat([count.reshape(-1) for count in counts])
    ).cpu()  # a device is waited for once, not by each task
    parts = torch.split(sums, [count.numel() for count in counts])
    return [part.view_as(count) for part, count in zip(parts, counts, strict=True)]
