"""A mask that somebody else has chosen: it is written as it is, whatever the weights are."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from torch import Tensor

from lightning_prune.masks.structure import Structure
from lightning_prune.masks.zeros import count_zeros
from lightning_prune.sharding import Rounds, Sharding

__all__ = ["Given"]


@dataclass(frozen=True, eq=False)
class Given(Structure):
    """The mask of one weight, as it was given.

    Attributes:
        values: Bool, True = keep, of the shape of the weight.
        is_found: Whether it is what was zero in the weight, and not what a user has handed over.

    Example:
        >>> import torch
        >>> given = Given(torch.tensor([[True, False], [True, True]]))
        >>> str(given), given.fixed_sparsity
        ('given mask', 0.25)
        >>> given.mask(torch.zeros(2, 2), 0.9).tolist()
        [[True, False], [True, True]]
    """

    values: Tensor
    is_found: bool = False

    def __str__(self) -> str:
        return "zeros found" if self.is_found else "given mask"

    @property
    def key(self) -> str:
        """What tells it from other masks in a checkpoint; zeros that were found are those of the checkpoint."""
        return "from_zeros" if self.is_found else f"{zlib.crc32(self.values.contiguous().numpy().tobytes()):08x}"

    @property
    def fixed_sparsity(self) -> float:
        """The fraction of zeros of the mask."""
        return count_zeros(self.values) / max(self.values.numel(), 1)

    def misfit(self, shape: tuple[int, ...], *, is_named: bool) -> str | None:
        """None: shapes are compared when the mask is read."""
        return None

    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Those of the mask."""
        return count_zeros(self.values)

    def reached(self, sparsity: float) -> float:
        """The fraction of zeros of the mask."""
        return self.fixed_sparsity

    def compute(self, values: Tensor, sparsity: float, out: Tensor, sharding: Sharding) -> Rounds[None]:
        """Write the mask, or this process's part of it; weights and sparsity are not looked at."""
        out.copy_(self.values[sharding.box.within(sharding.whole)])
        yield from ()

    def present_zeros(self, values: Tensor, sharding: Sharding) -> Rounds[tuple[int, int]]:
        """Those of the mask: other zeros of the weight are trained."""
        yield from ()
        return count_zeros(self.values), self.values.numel()
