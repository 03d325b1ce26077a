"""Which weights stay: a mask from a weight and a sparsity."""

from typing import Literal

import torch
from torch import Tensor

from lightning_prune.errors import ConfigError, PruningError
from lightning_prune.selection import keep_largest, pruned_count

__all__ = ["Granularity", "compute_mask", "magnitude_mask", "mask_shape", "n_m_mask"]

Granularity = Literal["per_scalar", "per_kernel", "per_channel"]


def mask_shape(shape: tuple[int, ...], *, granularity: Granularity = "per_scalar") -> tuple[int, ...]:
    """Smallest shape of a mask that broadcasts over a weight of ``shape``."""
    kept = {"per_scalar": len(shape), "per_kernel": 2, "per_channel": 1}[granularity]
    return tuple(shape[:kept]) + (1,) * (len(shape) - kept)


def magnitude_mask(
    weight: Tensor,
    sparsity: float,
    *,
    granularity: Granularity = "per_scalar",
    block_size: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Keep the groups of weights that are largest in L2 norm."""
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(f"sparsity must be a fraction in [0, 1], got {sparsity}.")
    if block_size < 1:
        raise ConfigError(f"block_size must be at least 1, got {block_size}.")
    weight = weight.detach()
    shape = mask_shape(tuple(weight.shape), granularity=granularity)
    out = torch.empty(shape, dtype=torch.bool, device=weight.device) if out is None else out
    scores = weight.abs().double()
    if granularity != "per_scalar":
        dims = tuple(range(2 if granularity == "per_kernel" else 1, weight.ndim))
        scores = scores.square().sum(dims, keepdim=True).sqrt() if dims else scores
    scores = scores.reshape(shape)
    groups = scores.numel()
    pruned = pruned_count(groups, sparsity)
    if block_size == 1:
        return keep_largest(scores, pruned, out=out)
    block_size = min(block_size, shape[0])
    rows = -(-shape[0] // block_size)
    flat = torch.zeros(rows * block_size, groups // shape[0], dtype=torch.float64, device=weight.device)
    flat[: shape[0]] = scores.reshape(shape[0], -1)
    norms = flat.view(rows, block_size, -1).square().sum(1)
    if norms.isnan().any():
        raise PruningError("a weight holds NaN.")
    sizes = torch.full_like(norms, block_size, dtype=torch.int64)
    sizes[-1] = shape[0] - (rows - 1) * block_size
    order = torch.argsort(norms.flatten(), descending=True, stable=True)
    cum = sizes.flatten()[order].cumsum(0)
    kept = int((cum < groups - pruned).sum()) + 1 if pruned < groups else 0
    block_mask = torch.zeros(norms.numel(), dtype=torch.bool, device=weight.device)
    block_mask[order[:kept]] = True
    full = block_mask.view(rows, 1, -1).expand(rows, block_size, -1).reshape(rows * block_size, -1)[: shape[0]]
    return out.copy_(full.reshape(shape))


def n_m_mask(
    weight: Tensor, num_zeros: int, group_size: int, *, dim: int = 1, out: Tensor | None = None
) -> Tensor:
    """Prune the ``num_zeros`` smallest of every ``group_size`` consecutive channels."""
    if dim not in (0, 1):
        raise ConfigError(f"dim must be 0 or 1, got {dim}.")
    if not 0 <= num_zeros <= group_size:
        raise ConfigError(f"num_zeros must be from 0 to group_size, got {num_zeros}:{group_size}.")
    weight = weight.detach()
    if weight.isnan().any():
        raise PruningError("a weight holds NaN.")
    out = torch.empty_like(weight, dtype=torch.bool) if out is None else out
    scores = weight.movedim(dim, -1).abs().double()
    length = scores.shape[-1]
    pad = -length % group_size
    scores = torch.nn.functional.pad(scores, (0, pad), value=-1.0)
    groups = scores.unflatten(-1, (-1, group_size))
    order = torch.argsort(groups, dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    keep.scatter_(-1, order[..., : group_size - num_zeros], True)
    return out.copy_(keep.flatten(-2)[..., :length].movedim(-1, dim))


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
    """The mask of one weight by one rule."""
    if n_m_ratio is None:
        return magnitude_mask(weight, sparsity, granularity=granularity, block_size=block_size, out=out)
    num_zeros = pruned_count(n_m_ratio[1], sparsity)
    if num_zeros == 0:
        return magnitude_mask(weight, sparsity, out=out)
    return n_m_mask(weight, num_zeros, n_m_ratio[1], dim=dim, out=out)
