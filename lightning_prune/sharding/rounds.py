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

__all__ = ["Reduce", "Rounds", "alone", "together"]

T = TypeVar("T")

# Adds an int64 tensor of counts over all processes and returns the sum.
Reduce: TypeAlias = Callable[[Tensor], Tensor]
Rounds: TypeAlias = Generator[Tensor, Tensor, T]


def together(tasks: Sequence[Rounds[T]], reduce: Reduce | None = None) -> list[T]:
    """Run tasks side by side: a round of all of them costs one call of ``reduce``.

    Args:
        tasks: Their counts lie on one device; the sums that they get back lie on the CPU.
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
            counts = torch.cat([one.reshape(-1) for one in asked.values()])
            sums = (counts if reduce is None else reduce(counts)).cpu()  # a device is waited for once, not by each task
            parts = torch.split(sums, [one.numel() for one in asked.values()])
            for (number, one), part in zip(asked.items(), parts, strict=True):
                advance(number, part.view_as(one))
    finally:
        for task in tasks:
            task.close()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(tasks))]


def alone(task: Rounds[T], reduce: Reduce | None = None) -> T:
    """Run one task."""
    return together([task], reduce)[0]
