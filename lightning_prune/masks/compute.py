"""Which weights stay: a mask from a weight and a sparsity.

Every function here is pure. A group is what is zeroed as one: a scalar, a kernel, a channel, or a block of
``block_size`` of them that follow each other along the output channels. Groups are ranked by their L2 norm, and the
smallest are pruned. In n:m sparsity the ranking is within every ``group_size`` channels instead, and ``num_zeros`` of
them are pruned.
"""

from typing import Literal, TypeAlias

from torch import Tensor

from lightning_prune.basics import as_fraction, as_whole
from lightning_prune.errors import ConfigError
from lightning_prune.masks.blocks import keep_blocks
from lightning_prune.masks.selection import keep_largest, mask_to_write, pruned_count

__all__ = [
    "Granularity",
    "group_dims",
    "magnitude_mask",
    "mask_shape",
]

Granularity: TypeAlias = Literal["per_scalar", "per_kernel", "per_channel"]


def mask_shape(shape: tuple[int, ...], *, granularity: Granularity = "per_scalar") -> tuple[int, ...]:
    """The smallest shape of a mask that broadcasts over a weight.

    Args:
        shape: Shape of the weight, ``(C_out, C_in, *K)``.
        granularity: What is zeroed as one.

    Returns:
        ``shape``, ``(C_out, C_in, 1, ...)`` or ``(C_out, 1, 1, ...)``.

    Raises:
        ConfigError: The weight has no such groups: kernels and channels take at least two dimensions.

    Example:
        >>> mask_shape((64, 32, 3, 3), granularity="per_kernel")
        (64, 32, 1, 1)
    """
    dims = group_dims(len(shape), granularity)
    return tuple(shape[:dims]) + (1,) * (len(shape) - dims)


def magnitude_mask(
    weight: Tensor,
    sparsity: float,
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Keep the groups of weights that are largest in L2 norm.

    Single weights are compared exactly. Norms are summed in float32, in float64 where the squares would overflow or
    vanish in it, and for a float64 weight: groups whose norms differ by no more than rounding may rank either way.

    Args:
        weight: Shape ``(C_out, C_in, *K)``, any floating dtype and memory format. Not modified.
        sparsity: Fraction of groups to prune, in ``[0, 1]``.
        granularity: The group: one scalar, one ``K`` kernel, or one output channel.
        block_size: Groups, consecutive along the output channels, that are pruned together. A short last block is
            scored as it is.
        out: Bool mask of shape :func:`mask_shape` to write in place. If not given, a new one.

    Returns:
        Bool mask, ``True`` = keep, on the device of ``weight`` and broadcastable to its shape.
        Exactly ``floor(groups * sparsity)`` groups are pruned; among equal norms the first in row-major order is kept.
        With ``block_size`` above 1, the fewest whole blocks are kept that leave at least the other groups.

    Raises:
        ConfigError: ``sparsity`` is outside ``[0, 1]``, or ``block_size`` below 1.
        PruningError: ``weight`` holds NaN, and some but not all groups are to be pruned; ``out`` is then unchanged.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878

    Example:
        >>> import torch
        >>> magnitude_mask(torch.tensor([[0.3, -0.2], [-0.01, 0.05]]), 0.75).int().tolist()
        [[1, 0], [0, 0]]
    """
    weight = weight.detach()
    block_size = as_whole("block_size", block_size, least=1)
    out = mask_to_write(weight, mask_shape(tuple(weight.shape), granularity=granularity), out)
    groups = out.numel()
    pruned = pruned_count(groups, as_fraction("sparsity", sparsity))
    if pruned in (0, groups) or not weight.numel():
        return out.fill_(pruned < groups)
    if block_size == 1 and groups == weight.numel():
        return keep_largest(weight, pruned, out=out)
    lengths = weight.shape[: group_dims(weight.ndim, granularity)]
    keep_blocks(weight, min(block_size, lengths[0]), pruned, out.view(lengths))
    return out


def group_dims(rank: int, granularity: Granularity) -> int:
    """How many leading dimensions tell the groups apart; the others lie within a group."""
    dims = {"per_scalar": rank, "per_kernel": 2, "per_channel": 1}.get(granularity)
    if dims is None:
        raise ConfigError(f"granularity must be per_scalar, per_kernel or per_channel, got {granularity!r}.")
    if granularity != "per_scalar" and rank < 2:
        raise ConfigError(f"granularity {granularity} needs a weight of shape (C_out, C_in, *K), got rank {rank}.")
    return dims
