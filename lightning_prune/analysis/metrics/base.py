"""What the metrics have in common: counts that add up over updates and processes, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Total", "WeightMetric"]


class WeightMetric(Metric):
    """What the metrics here have in common: integer states that are summed, and a plot."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def _add_counts(self, *names: str) -> None:
        for name in names:
            self.add_state(name, default=torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value, or a sequence of them, with matplotlib.

        Args:
            val: What ``compute`` or ``forward`` gave, once or several times. Default: the current value.
            ax: Axes to draw into.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


class Total(WeightMetric):
    """A number of things, not a ratio: summed over shards, but not over processes that all hold the same."""

    full_state_update = True  # the number of processes must not be added up from batch to batch

    processes: Tensor

    def __init__(self, names: Sequence[str], sharded: bool, kwargs: dict[str, Any]) -> None:
        super().__init__(**kwargs)
        self.sharded = sharded
        self._add_counts(*names)
        self.add_state("processes", default=torch.tensor(1, dtype=torch.int64), dist_reduce_fx="sum")

    def _share(self, count: Tensor) -> Tensor:
        return count if self.sharded else count // self.processes
