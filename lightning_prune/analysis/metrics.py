"""Sparsity as torchmetrics: counts, which add up over updates and processes, never averaged ratios.

What is measured is what the network computes with: of a module whose masks are held apart (``weight_orig`` and
``weight_mask``) the pruned weights, and so in the middle of training too.

====================================  ==================================================================
:class:`WeightSparsity`               fraction of weights that are zero
:class:`ChannelSparsity`              fraction of output channels that are all zero
:class:`KernelSparsity`               fraction of convolution kernels that are all zero
:class:`BlockSparsity`                fraction of blocks of neighbouring output channels that are all zero
:class:`NMAdherence`                  fraction of groups of m weights with at least n zeros
:class:`EffectiveParameters`          number of parameters that are not zero
:class:`CompressedBytes`              bytes of all parameters, stored sparse
:class:`DenseMACs`                    multiply-accumulates of one example
:class:`EffectiveMACs`                the same without those by zero
:class:`MaskChurn`                    fraction of mask entries that changed at an update
:class:`ReturnedWeights`              number of mask entries that came back at an update
====================================  ==================================================================

All but the last two take ``update(model)``, the MACs with an example input after it, or one tensor of weights; they
fit in one :class:`torchmetrics.MetricCollection`, whose other metrics' arguments are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchmetrics import Metric

from lightning_prune.analysis.macs import count_macs
from lightning_prune.basics import as_whole
from lightning_prune.errors import ConfigError
from lightning_prune.masks import count_zeros, n_m_groups, zero_blocks, zero_channels, zero_kernels
from lightning_prune.plan import normed_names, normed_weight
from lightning_prune.pruner import stored_bytes

__all__ = [
    "BlockSparsity",
    "ChannelSparsity",
    "CompressedBytes",
    "DenseMACs",
    "EffectiveMACs",
    "EffectiveParameters",
    "KernelSparsity",
    "MaskChurn",
    "NMAdherence",
    "ReturnedWeights",
    "WeightSparsity",
    "mask_changes",
    "weights_of",
]


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters that a network computes with, each once.

    A parameter that is held apart from its mask is given with the mask applied and under its plain name, a parametrized
    one, or one behind a weight norm, as it is computed. Of a sharded parameter, the shard of this process.

    Example:
        >>> layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(2, 2, bias=False), "weight", 0.5)
        >>> [(name, int((weight == 0).sum())) for name, weight in weights_of(layer)]
        [('weight', 2)]
    """
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        if "parametrizations" in prefix.split("."):
            continue
        if parametrize.is_parametrized(child):
            for key, steps in child.parametrizations.items():
                # computing a spectral norm in train mode would change its state; its original has the same zeros
                is_spectral = type(steps[0]).__name__ == "_SpectralNorm"
                value = steps.original if is_spectral else getattr(child, key)
                yield f"{prefix}.{key}".lstrip("."), value.detach()
        for key, (gain, direction) in normed_names(child).items():
            g, v = child._parameters.get(gain), child._parameters.get(direction)
            if g is not None and v is not None:  # and not masked by another library
                if id(v) not in seen:
                    yield f"{prefix}.{key}".lstrip("."), normed_weight(v, g)
                seen |= {id(g), id(v)}
        for key, parameter in child._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain, value = key.removesuffix("_orig"), parameter.detach()
            mask = child._buffers.get(f"{plain}_mask") if key.endswith("_orig") else None
            value = value if mask is None else value * mask
            local = value.to_local() if hasattr(value, "to_local") else value  # of a DTensor
            yield f"{prefix}.{key if mask is None else plain}".lstrip("."), local


def mask_changes(before: Tensor | Mapping[str, Tensor], after: Tensor | Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Compare two masks, or two sets of masks by name.

    Args:
        before: True, or 1, is keep. A copy: the masks of a pruner are views that follow its updates.
        after: The same names and shapes.

    Returns:
        Entries that were pruned, entries that returned, and entries in all. An entry of a mask that broadcasts stands
        for as many weights as it covers.

    Raises:
        ConfigError: Names or shapes differ.

    Example:
        >>> mask_changes(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
        (1, 1, 3)
    """
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        before, after = {"mask": before}, {"mask": after}  # type: ignore[dict-item]
    if before.keys() != after.keys():
        raise ConfigError(f"before and after must be masks of the same names, got {[*before]} and {[*after]}.")
    pruned = returned = entries = 0
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            raise ConfigError(f"{name}: before and after must have one shape, got {[*old.shape]} and {[*new.shape]}.")
        old, new = old.bool(), new.bool()
        changed = int((old ^ new).count_nonzero())
        back = int((new & ~old).count_nonzero())
        pruned, returned, entries = pruned + changed - back, returned + back, entries + old.numel()
    return pruned, returned, entries


class _WeightMetric(Metric):
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


class _ZeroFraction(_WeightMetric):
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
        for one in _tensors(weights, self.min_rank):
            zeros, total = self._count(one)
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


class _Total(_WeightMetric):
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


class EffectiveParameters(_Total):
    """Number of parameters that are not zero; biases and norms count too.

    Args:
        sharded: Whether each process holds other parameters. If not, all hold the same, and they count once.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
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
        self.effective_parameters += sum(one.numel() - count_zeros(one) for one in _tensors(weights))

    def compute(self) -> Tensor:
        """The number."""
        return self._share(self.effective_parameters)


class CompressedBytes(_Total):
    """Bytes of all parameters in half precision, each tensor of rank 2 and more stored sparse where that is smaller.

    A tensor stored sparse takes one bit for each weight and 16 for each that is not zero; see
    :func:`~lightning_prune.pruner.stored_bytes`.

    Args:
        sharded: Whether each process holds other parameters. If not, all hold the same, and they count once.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
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
            stored_bytes(one.numel(), count_zeros(one) if one.ndim > 1 else 0) for one in _tensors(weights)
        )

    def compute(self) -> Tensor:
        """Bytes."""
        return self._share(self.compressed_bytes)


class _MACs(_WeightMetric):
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


class _MaskChanges(_Total):
    """What changed from one mask to the next; both metrics have the same states, so a collection compares once."""

    pruned_entries: Tensor
    returned_entries: Tensor
    mask_entries: Tensor

    def __init__(self, *, sharded: bool = False, **kwargs: Any) -> None:
        super().__init__(["pruned_entries", "returned_entries", "mask_entries"], sharded, kwargs)

    def update(self, before: Tensor | Mapping[str, Tensor], after: Tensor | Mapping[str, Tensor]) -> None:
        """Compare two masks, or two sets of masks by name; see :func:`mask_changes`."""
        pruned, returned, entries = mask_changes(before, after)
        self.pruned_entries += pruned
        self.returned_entries += returned
        self.mask_entries += entries


class MaskChurn(_MaskChanges):
    """Fraction of mask entries that changed from one update to the next, pruned or returned.

    Args:
        sharded: Whether each process holds other masks.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = MaskChurn()
        >>> metric.update(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
        >>> metric.compute()
        tensor(0.5000)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Fraction in [0, 1]; NaN where nothing was compared."""
        return (self.pruned_entries + self.returned_entries) / self.mask_entries


class ReturnedWeights(_MaskChanges):
    """Number of mask entries that were pruned before an update and are kept after it.

    Args:
        sharded: Whether each process holds other masks. If not, all hold the same, and they count once.
        kwargs: What every :class:`torchmetrics.Metric` takes.

    Example:
        >>> metric = ReturnedWeights()
        >>> metric.update(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
        >>> metric.compute()
        tensor(1)
    """

    def compute(self) -> Tensor:
        """The number."""
        return self._share(self.returned_entries)


def _tensors(weights: nn.Module | Tensor, min_rank: int = 0) -> list[Tensor]:
    """The tensor itself, or those of a module that are of some rank."""
    if isinstance(weights, Tensor):
        return [weights.detach()]
    return [one for _, one in weights_of(weights) if one.ndim >= min_rank]
