"""Fractions of weights, channels, kernels, blocks and n:m groups that are zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.analysis.metrics.base import WeightMetric
from lightning_prune.analysis.metrics.weights import tensors_of
from lightning_prune.basics import as_whole
from lightning_prune.errors import ConfigError
from lightning_prune.masks import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_kernels

__all__ = ["BlockSparsity", "ChannelSparsity", "KernelSparsity", "NMAdherence", "WeightSparsity"]


class _ZeroFraction(WeightMetric):
    """Zero structures over structures, of all weights of rank ``min_rank`` and more."""

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, name: str, min_rank: int, kwargs: dict[str, Any]) -> None:
        super().__init__(**kwargs)
        self.min_rank = min_rank
        # Names of states differ from metric to metric: a MetricCollection takes metrics with equal states for one.
        self._names = f"zero_{name}", name
        self._add_counts(*self._names)

    def _count(self, tensor: Tensor) -> tuple[int | None, int]:
        """Structures that are zero, or None where there are none, and structures in all."""
        raise NotImplementedError

    def update(self, weights: nn.Module | Tensor, *_: Any, **__: Any) -> None:
        """Count a tensor of weights, or all parameters of rank ``min_rank`` and more of a module."""
        for tensor in tensors_of(weights, self.min_rank):
            zeros, total = self._count(tensor)
            if zeros is not None:
                for state, count in zip(self._names, (zeros, total), strict=True):
                    setattr(self, state, getattr(self, state) + count)

    def compute(self) -> Tensor:
        """Fraction in [0, 1]; NaN where nothing was counted."""
        zeros, total = (getattr(self, state) for state in self._names)
        return torch.as_tensor(zeros / total)


class WeightSparsity(_ZeroFraction):
    """Fraction of zeros among weights.

    Each ``update`` adds the weights that it is given; ``compute`` gives zeros over weights of all of them, and of all
    processes where there are several.

    Args:
        min_rank: Parameters of lower rank (biases, norms) are not counted when a module is given.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = WeightSparsity()
        >>> metric.update(torch.tensor([0.0, 1.0, 0.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, *, min_rank: int = 2, **kwargs: Any) -> None:
        super().__init__("weights", min_rank, kwargs)

    def _count(self, tensor: Tensor) -> tuple[int, int]:
        return count_zeros(tensor), tensor.numel()


class ChannelSparsity(_ZeroFraction):
    """Fraction of output channels (dim 0 of weights of rank 2 and more) that are all zero.

    Args:
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = ChannelSparsity()
        >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("channels", 2, kwargs)

    def _count(self, tensor: Tensor) -> tuple[int, int]:
        return zero_channels(tensor), tensor.shape[0]


class KernelSparsity(_ZeroFraction):
    """Fraction of convolution kernels that are all zero; weights below rank 3 have none and are not counted.

    Args:
        kwargs: What every :class:`torchmetrics.Metric` takes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("kernels", 3, kwargs)

    def _count(self, tensor: Tensor) -> tuple[int | None, int]:
        return zero_kernels(tensor), tensor.shape[0] * tensor.shape[1] if tensor.ndim > 1 else 0


class BlockSparsity(_ZeroFraction):
    """Fraction of blocks that are all zero: weights at one position in ``block_size`` neighbouring output channels.

    With 2 this is the ``block2_weight_sparsity`` of Core ML Tools. Weights whose number of output channels is no
    multiple of ``block_size`` are not counted.

    Args:
        block_size: Output channels of a block.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = BlockSparsity(2)
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, block_size: int = 2, **kwargs: Any) -> None:
        block_size = as_whole("block_size", block_size, least=1)
        super().__init__(f"blocks_of_{block_size}", 2, kwargs)
        self.block_size = block_size

    def _count(self, tensor: Tensor) -> tuple[int | None, int]:
        return zero_blocks(tensor, self.block_size), tensor.numel() // self.block_size


class NMAdherence(_ZeroFraction):
    """Fraction of groups of ``group_size`` weights, along one dimension, with at least ``num_zeros`` zeros.

    It is 1 where hardware for that pattern can run all weights. Weights with less than ``group_size`` channels are not
    counted; a short last group counts as if it were filled up with zeros.

    Args:
        num_zeros: n of n:m, zeros that a group must have.
        group_size: m of n:m.
        dim: 1, input channels, or 0, output channels.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = NMAdherence(2, 4)
        >>> metric.update(torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 3.0, 4.0, 5.0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, num_zeros: int = 2, group_size: int = 4, *, dim: int = 1, **kwargs: Any) -> None:
        num_zeros, group_size = as_whole("num_zeros", num_zeros, least=0), as_whole("group_size", group_size, least=0)
        dim = as_whole("dim", dim, least=0)
        if not 1 <= num_zeros < group_size or dim not in (0, 1):
            raise ConfigError(
                "NMAdherence needs 1 <= num_zeros < group_size and dim 0 or 1, "
                f"got num_zeros={num_zeros}, group_size={group_size}, dim={dim}. Write NMAdherence(2, 4)."
            )
        super().__init__(f"groups_of_{num_zeros}_in_{group_size}_dim{dim}", 2, kwargs)
        self.num_zeros, self.group_size, self.dim = num_zeros, group_size, dim

    def _count(self, tensor: Tensor) -> tuple[int | None, int]:
        if tensor.ndim <= self.dim or tensor.shape[self.dim] < self.group_size:
            return None, 0
        return n_m_groups(tensor, self.num_zeros, self.group_size, dim=self.dim)
