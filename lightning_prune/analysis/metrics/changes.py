"""What changed from a mask to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_prune.analysis.metrics.base import Total
from lightning_prune.errors import ConfigError

__all__ = ["MaskChurn", "ReturnedWeights", "mask_changes"]


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
        >>> import torch
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


class _MaskChanges(Total):
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
        >>> import torch
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
        >>> import torch
        >>> metric = ReturnedWeights()
        >>> metric.update(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
        >>> metric.compute()
        tensor(1)
    """

    def compute(self) -> Tensor:
        """The number."""
        return self._share(self.returned_entries)
