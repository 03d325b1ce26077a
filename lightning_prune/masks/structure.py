"""Structures: which weights are zeroed together, as one value that answers every question about them.

A structure is :class:`Groups` (single weights, kernels or channels, and blocks of these along the output channels),
:class:`NofM` (so many of every so many neighbours), :class:`Channels` (those that can only go together with others), or
:class:`~lightning_prune.masks.given.Given` (a mask from elsewhere).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lightning_prune.basics import as_fraction, as_whole
from lightning_prune.masks.compute import Granularity, keep_groups, mask_shape, zero_groups
from lightning_prune.masks.coupled import along_axis, keep_coupled
from lightning_prune.masks.n_m import keep_n_m
from lightning_prune.masks.selection import mask_to_write, pruned_count
from lightning_prune.sharding import Rounds, Sharding, alone

__all__ = ["Channels", "Groups", "NofM", "Structure", "compute_mask", "structure_of"]

_LEAST_RANK = {"per_scalar": 1, "per_channel": 2, "per_kernel": 3}


class Structure(ABC):
    """Which weights of one tensor are zeroed together."""

    @property
    def ranks_single_weights(self) -> bool:
        """Whether single weights are ranked by their magnitudes alone, so that those of several tensors may be."""
        return False

    @property
    def empties_channels(self) -> bool:
        """Whether whole output channels are zeroed."""
        return False

    @property
    @abstractmethod
    def fixed_sparsity(self) -> float | None:
        """The fraction of zeros at the target, where the structure itself says it."""

    @abstractmethod
    def misfit(self, shape: tuple[int, ...], *, is_named: bool) -> str | None:
        """Say why a weight of some shape does not have this structure; the text goes on from the path of a rule.

        Args:
            shape: Shape of the weight, ``(C_out, C_in, *K)``.
            is_named: Whether the rule names the module. If so, n:m takes what channels there are, as long as it prunes
                some of them; if not, it needs one whole group.

        Returns:
            The reason, with the name of the setting in front; None where it fits.
        """

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The smallest shape of a mask that broadcasts over a weight of some shape."""
        return shape

    def weights_per_choice(self, shape: tuple[int, ...]) -> int:
        """Number of weights that are kept or pruned by one choice."""
        return 1

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Weights that are zero at a sparsity; the most there can be where blocks do not divide the channels."""

    @abstractmethod
    def reached(self, sparsity: float) -> float:
        """The sparsity of a large weight when so much is asked for."""

    @abstractmethod
    def compute(self, values: Tensor, sparsity: float, out: Tensor, sharding: Sharding) -> Rounds[None]:
        """Compute the mask of a weight, or this process's part of it.

        Args:
            values: The weight, ``(C_out, C_in, *K)``, or this process's piece of it. Not modified.
            sparsity: Fraction of zeros, in [0, 1].
            out: Bool mask (True = keep) of the shape that :meth:`mask_shape` gives, written in place.
            sharding: Who holds what; every process that holds a part must run this.

        Raises:
            PruningError: The weight holds NaN; in every process, and ``out`` is unchanged.
        """

    def mask(self, weight: Tensor, sparsity: float, out: Tensor | None = None) -> Tensor:
        """Give the mask of a whole weight; arguments as for :meth:`compute`, where ``out`` may be left out."""
        weight = weight.detach()
        out = mask_to_write(weight, self.mask_shape(tuple(weight.shape)), out)
        alone(self.compute(weight, sparsity, out, Sharding.of_one(weight.shape)))
        return out

    @abstractmethod
    def present_zeros(self, values: Tensor, sharding: Sharding) -> Rounds[tuple[int, int]]:
        """Count the groups of a weight that are zero already, and all of them; arguments as for :meth:`compute`."""


@dataclass(frozen=True)
class Groups(Structure):
    """Groups of weights, ranked by their L2 norm; ``block_size`` of them along the output channels go together.

    Example:
        >>> str(Groups()), str(Groups("per_kernel", 4))
        ('per_scalar', 'per_kernel, block 4')
        >>> Groups("per_channel").zeros((8, 3, 3, 3), 0.5)
        108
        >>> Groups("per_kernel").misfit((8, 3), is_named=True)
        'granularity: "per_kernel" needs a weight of rank 3 or more, got rank 2'
    """

    granularity: Granularity = "per_scalar"
    block_size: int = 1

    def __str__(self) -> str:
        return self.granularity + (f", block {self.block_size}" if self.block_size > 1 else "")

    @property
    def ranks_single_weights(self) -> bool:
        """True without kernels, channels and blocks."""
        return self.granularity == "per_scalar" and self.block_size == 1

    @property
    def empties_channels(self) -> bool:
        """Of channels, and blocks of them."""
        return self.granularity == "per_channel"

    @property
    def fixed_sparsity(self) -> float | None:
        """None: the rule says it."""
        return None

    def misfit(self, shape: tuple[int, ...], *, is_named: bool) -> str | None:
        """Kernels need a rank of 3, channels of 2; at least two blocks must fit."""
        rank, least = len(shape), _LEAST_RANK[self.granularity]
        if rank < least:
            return f'granularity: "{self.granularity}" needs a weight of rank {least} or more, got rank {rank}'
        if self.block_size > 1 and self.block_size > shape[0] // 2:
            return f"block_size must be at most half the output channels, got {self.block_size} for {shape[0]}"
        return None

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``shape``, ``(C_out, C_in, 1, ...)`` or ``(C_out, 1, 1, ...)``."""
        return mask_shape(shape, granularity=self.granularity)

    def weights_per_choice(self, shape: tuple[int, ...]) -> int:
        """Those of a group, times the groups of a block."""
        return prod(shape) // prod(self.mask_shape(shape)) * self.block_size

    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Those of whole groups, rounded down."""
        groups = prod(self.mask_shape(shape))
        pruned = pruned_count(groups, sparsity)
        if self.block_size > 1 and shape[0] % self.block_size == 0:
            pruned = pruned // self.block_size * self.block_size
        return pruned * (prod(shape) // groups)

    def reached(self, sparsity: float) -> float:
        """What is asked for."""
        return sparsity

    def compute(self, values: Tensor, sparsity: float, out: Tensor, sharding: Sharding) -> Rounds[None]:
        """Keep the groups that are largest."""
        yield from keep_groups(values, sparsity, sharding, self.granularity, self.block_size, out)

    def present_zeros(self, values: Tensor, sharding: Sharding) -> Rounds[tuple[int, int]]:
        """Those of a block count only where all of the block is zero."""
        return (yield from zero_groups(values, sharding, self.granularity, self.block_size))


@dataclass(frozen=True)
class NofM(Structure):
    """Of every ``group_size`` neighbours along a dimension, ``num_zeros`` are zero.

    As long as a sparsity asks for less than one whole zero in a group, the smallest weights of the tensor are pruned.

    Example:
        >>> str(NofM(2, 4)), NofM(2, 4).fixed_sparsity, NofM(2, 4).reached(0.3)
        ('2:4 zeros, dim 1', 0.5, 0.25)
        >>> NofM(2, 4).misfit((16, 3, 3, 3), is_named=False)
        'n_m_ratio: 2:4 zeros need at least 4 channels along dim 1, got 3'
    """

    num_zeros: int
    group_size: int
    dim: int = 1

    def __str__(self) -> str:
        return f"{self.num_zeros}:{self.group_size} zeros, dim {self.dim}"

    @property
    def fixed_sparsity(self) -> float | None:
        """``n / m``."""
        return self.num_zeros / self.group_size

    def misfit(self, shape: tuple[int, ...], *, is_named: bool) -> str | None:
        """There must be channels enough along the dimension."""
        rank, ratio = len(shape), f"{self.num_zeros}:{self.group_size}"
        if rank < 2:
            return f"n_m_ratio: {ratio} zeros need a weight of rank 2 or more, got rank {rank}"
        # of a short group those that it lacks go first
        needed = self.group_size - self.num_zeros + 1 if is_named else self.group_size
        if shape[self.dim] < needed:
            return (
                f"n_m_ratio: {ratio} zeros need at least {needed} channels along dim {self.dim}, got {shape[self.dim]}"
            )
        return None

    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """So many in each whole group; in a short group what it lacks goes first."""
        length, num_zeros = shape[self.dim], pruned_count(self.group_size, sparsity)
        if num_zeros == 0:
            return pruned_count(prod(shape), sparsity)
        padding = -length % self.group_size
        in_a_row = length // self.group_size * num_zeros + (max(0, num_zeros - padding) if padding else 0)
        return in_a_row * (prod(shape) // length)

    def reached(self, sparsity: float) -> float:
        """Whole zeros of a group; what is asked for, as long as that is none."""
        return pruned_count(self.group_size, sparsity) / self.group_size or sparsity

    def compute(self, values: Tensor, sparsity: float, out: Tensor, sharding: Sharding) -> Rounds[None]:
        """Keep the largest of each group."""
        num_zeros = pruned_count(self.group_size, sparsity)
        if num_zeros == 0:
            yield from Groups().compute(values, sparsity, out, sharding)
        else:
            yield from keep_n_m(values, num_zeros, self.group_size, self.dim, sharding, out)

    def present_zeros(self, values: Tensor, sharding: Sharding) -> Rounds[tuple[int, int]]:
        """Single weights are counted."""
        return (yield from Groups().present_zeros(values, sharding))


@dataclass(frozen=True)
class Channels(Structure):
    """Channels along any axis, of a weight, a bias or the scale of a norm, which are chosen together with others.

    Example:
        >>> Channels(0).mask_shape((8, 3, 3, 3)), Channels(0).mask_shape((8,)), Channels(1).mask_shape((3, 8))
        ((8, 1, 1, 1), (8,), (3, 8))
    """

    axis: int = 0

    def __str__(self) -> str:
        return "coupled channels" + (f", dim {self.axis}" if self.axis else "")

    @property
    def empties_channels(self) -> bool:
        """True."""
        return True

    @property
    def fixed_sparsity(self) -> float | None:
        """None: the rule says it."""
        return None

    def misfit(self, shape: tuple[int, ...], *, is_named: bool) -> str | None:
        """None: what is coupled was found in the network itself."""
        return None

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(C_out, 1, 1, ...)``; along another axis the shape of the weight."""
        return shape if self.axis else (shape[0], *[1] * (len(shape) - 1))

    def weights_per_choice(self, shape: tuple[int, ...]) -> int:
        """Those of a channel."""
        return prod(shape) // shape[self.axis]

    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Those of whole channels, rounded down."""
        return pruned_count(shape[self.axis], sparsity) * self.weights_per_choice(shape)

    def reached(self, sparsity: float) -> float:
        """What is asked for."""
        return sparsity

    def compute(self, values: Tensor, sparsity: float, out: Tensor, sharding: Sharding) -> Rounds[None]:
        """Keep the channels that are largest, by themselves."""
        keep = keep_coupled([(values, self.axis, torch.arange(values.shape[self.axis]))], sparsity)
        out.copy_(along_axis(keep, self.axis, out.shape))
        yield from ()

    def present_zeros(self, values: Tensor, sharding: Sharding) -> Rounds[tuple[int, int]]:
        """Channels that are all zero."""
        flags = (values == 0).movedim(self.axis, 0).flatten(1).all(1) if values.dim() > 1 else values == 0
        yield from ()
        return int(flags.sum()), len(flags)


def structure_of(
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    n_m_ratio: tuple[int, int] | None = None,
    dim: int = 1,
) -> Structure:
    """Give the structure that the four settings of a rule describe.

    Example:
        >>> structure_of(n_m_ratio=(2, 4)), structure_of(granularity="per_kernel")
        (NofM(num_zeros=2, group_size=4, dim=1), Groups(granularity='per_kernel', block_size=1))
    """
    return Groups(granularity, block_size) if n_m_ratio is None else NofM(*n_m_ratio, dim)


def compute_mask(
    weight: Tensor,
    sparsity: float,
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    n_m_ratio: tuple[int, int] | None = None,
    dim: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """The mask of one weight at one sparsity, by any of the structures.

    Args:
        weight: Shape ``(C_out, C_in, *K)``. Not modified.
        sparsity: Fraction of zeros, in ``[0, 1]``.
        granularity: As in :func:`~lightning_prune.masks.magnitude_mask`.
        block_size: As in :func:`~lightning_prune.masks.magnitude_mask`.
        n_m_ratio: ``(n, m)`` for n:m sparsity; only ``m`` is read. ``floor(m * sparsity)`` of every ``m`` weights are
            zero, and as long as that is none, the smallest weights of the whole tensor are pruned.
        dim: As in :func:`~lightning_prune.masks.n_m_mask`.
        out: As in :func:`~lightning_prune.masks.magnitude_mask`.

    Returns:
        Bool mask, ``True`` = keep.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[3.0, 1.0, 2.0, 4.0]])
        >>> [compute_mask(weight, sparsity, n_m_ratio=(2, 4)).int().tolist() for sparsity in (0.2, 0.25, 0.5)]
        [[[1, 1, 1, 1]], [[1, 0, 1, 1]], [[1, 0, 0, 1]]]
    """
    sparsity = as_fraction("sparsity", sparsity)
    if n_m_ratio is not None:
        n_m_ratio = (n_m_ratio[0], as_whole("n_m_ratio[1]", n_m_ratio[1], least=1))
    structure = structure_of(granularity=granularity, block_size=block_size, n_m_ratio=n_m_ratio, dim=dim)
    return structure.mask(weight, sparsity, out)
