"""Counts of zeros in a tensor, and of the structures that are all zero."""

from torch import Tensor

__all__ = ["count_zeros", "n_m_groups", "zero_blocks", "zero_channels", "zero_kernels"]


def count_zeros(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int:
    """Number of zero elements."""
    tensor = tensor if shape is None else tensor.expand(shape)
    return tensor.numel() - int(tensor.count_nonzero())


def zero_channels(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int:
    """Number of output channels (dim 0) that are all zero."""
    return zero_blocks(tensor, 1, shape=shape) or 0


def zero_blocks(tensor: Tensor, block_size: int, *, shape: tuple[int, ...] | None = None) -> int | None:
    """Number of all-zero blocks of ``block_size`` consecutive output channels."""
    tensor = tensor if shape is None else tensor.expand(shape)
    if tensor.shape[0] % block_size:
        return None
    rows = tensor.reshape(tensor.shape[0] // block_size, -1)
    return int((rows.count_nonzero(1) == 0).sum())


def zero_kernels(tensor: Tensor, *, shape: tuple[int, ...] | None = None) -> int | None:
    """Number of all-zero kernels; ``None`` below rank 3."""
    tensor = tensor if shape is None else tensor.expand(shape)
    if tensor.ndim < 3:
        return None
    return int((tensor.flatten(2).count_nonzero(2) == 0).sum())


def n_m_groups(
    tensor: Tensor, num_zeros: int, group_size: int, *, dim: int = 1, shape: tuple[int, ...] | None = None
) -> tuple[int, int]:
    """Groups with at least ``num_zeros`` zeros, and groups in all."""
    tensor = tensor if shape is None else tensor.expand(shape)
    zeros = (tensor == 0).movedim(dim, -1)
    pad = -zeros.shape[-1] % group_size
    padded = zeros.new_ones((*zeros.shape[:-1], zeros.shape[-1] + pad))
    padded[..., : zeros.shape[-1]] = zeros
    adherent = padded.unflatten(-1, (-1, group_size)).sum(-1) >= num_zeros
    return int(adherent.sum()), adherent.numel()
