"""What is left of a network: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_prune.analysis.macs import count_macs
from lightning_prune.analysis.metrics.base import Total, WeightMetric
from lightning_prune.analysis.metrics.weights import tensors_of
from lightning_prune.masks import count_zeros
from lightning_prune.pruner import stored_bytes

__all__ = ["CompressedBytes", "DenseMACs", "EffectiveMACs", "EffectiveParameters"]


class EffectiveParameters(Total):
    """Number of parameters that are not zero; biases and norms count too.

    Args:
        sharded: Whether each process holds other parameters. If not, all hold the same, and they count once.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> import torch
        >>> metric = EffectiveParameters()
        >>> metric.update(torch.tensor([0.0, 1.0, 0.0, 2.0]))
        >>> metric.compute()
        tensor(2)
    """

    effective_parameters: Tensor

    def __init__(self, *, sharded: bool = False, **kwargs: Any) -> None:
        super().__init__(["effective_parameters"], sharded, kwargs)

    def update(self, weights: nn.Module | Tensor, *_: Any, **__: Any) -> None:
        """Count a tensor, or all parameters of a module."""
        self.effective_parameters += sum(tensor.numel() - count_zeros(tensor) for tensor in tensors_of(weights))

    def compute(self) -> Tensor:
        """The number."""
        return self._share(self.effective_parameters)


class CompressedBytes(Total):
    """Bytes of all parameters in half precision, each tensor of rank 2 and more stored sparse where that is smaller.

    A tensor stored sparse takes one bit for each weight and 16 for each that is not zero; see
    :func:`~lightning_prune.pruner.stored_bytes`.

    Args:
        sharded: Whether each process holds other parameters. If not, all hold the same, and they count once.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> import torch
        >>> metric = CompressedBytes()
        >>> metric.update(torch.eye(16))
        >>> metric.compute()  # 256 bits and 16 values, where 512 bytes are dense
        tensor(64)
    """

    compressed_bytes: Tensor

    def __init__(self, *, sharded: bool = False, **kwargs: Any) -> None:
        super().__init__(["compressed_bytes"], sharded, kwargs)

    def update(self, weights: nn.Module | Tensor, *_: Any, **__: Any) -> None:
        """Count a tensor, or all parameters of a module."""
        self.compressed_bytes += sum(
            stored_bytes(tensor.numel(), count_zeros(tensor) if tensor.ndim > 1 else 0)
            for tensor in tensors_of(weights)
        )

    def compute(self) -> Tensor:
        """Bytes."""
        return self._share(self.compressed_bytes)


class _MACs(WeightMetric):
    """Multiply-accumulates with weights; both metrics have the same states, so a collection calls the network once."""

    dense_macs: Tensor
    effective_macs: Tensor
    examples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_counts("dense_macs", "effective_macs", "examples")

    def update(self, weights: nn.Module, example_inputs: Any = None, *_: Any, **__: Any) -> None:
        """Call a module and count; see :func:`~lightning_prune.analysis.macs.count_macs`.

        Args:
            weights: The module.
            example_inputs: One batch. Default: the module's ``example_input_array``.
        """
        count = count_macs(weights, example_inputs)
        self.dense_macs += count.dense
        self.effective_macs += count.effective
        self.examples += count.examples


class DenseMACs(_MACs):
    """Multiply-accumulates of one example, on average, as if no weight were zero.

    Args:
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> import torch
        >>> metric = DenseMACs()
        >>> metric.update(nn.Linear(4, 3), torch.zeros(2, 4))
        >>> metric.compute()
        tensor(12.)
    """

    def compute(self) -> Tensor:
        """The number; NaN before the first update."""
        return self.dense_macs / self.examples


class EffectiveMACs(_MACs):
    """Multiply-accumulates of one example, on average, with weights that are not zero.

    Args:
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 3)
        >>> _ = nn.init.eye_(layer.weight)
        >>> metric = EffectiveMACs()
        >>> metric.update(layer, torch.zeros(2, 4))
        >>> metric.compute()
        tensor(3.)
    """

    def compute(self) -> Tensor:
        """The number; NaN before the first update."""
        return self.effective_macs / self.examples
