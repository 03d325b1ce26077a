"""Sparsity as torchmetrics: counts, which add up across processes, never averaged ratios."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.sparsity import count_zeros

__all__ = ["WeightSparsity"]


class WeightSparsity(Metric):
    """Fraction of zeros among weights.

    Each ``update`` adds the weights that it is given; ``compute`` gives zeros over weights of all of them, and of all
    processes where there are several. Count a replicated model on one process, or the ratio is the same anyway; count
    the shards of a sharded model on each.

    Args:
        min_rank: Parameters of lower rank (biases, norms) are not counted when a module is given.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = WeightSparsity()
        >>> metric.update(torch.tensor([0.0, 1.0, 0.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    zeros: Tensor
    weights: Tensor

    def __init__(self, *, min_rank: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_rank = min_rank
        self.add_state("zeros", default=torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("weights", default=torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, weights: nn.Module | Tensor, *_: Any, **__: Any) -> None:
        """Count a tensor of weights, or all parameters of rank ``min_rank`` and more of a module.

        Further arguments belong to other metrics of a :class:`torchmetrics.MetricCollection`, and are left alone.
        """
        tensors = [weights] if isinstance(weights, Tensor) else _parameters(weights, self.min_rank)
        self.zeros += sum(count_zeros(one.detach()) for one in tensors)
        self.weights += sum(one.numel() for one in tensors)

    def compute(self) -> Tensor:
        """Fraction in [0, 1]; NaN where nothing was counted."""
        return self.zeros / self.weights


def _parameters(module: nn.Module, min_rank: int) -> list[Tensor]:
    return [one for one in module.parameters() if one.ndim >= min_rank]
