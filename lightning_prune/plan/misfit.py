"""Whether a weight has the structure that a rule asks for."""

from __future__ import annotations

from lightning_prune.config import ModuleMagnitudePrunerConfig

__all__ = ["find_misfit"]

_LEAST_RANK = {"per_scalar": 1, "per_channel": 2, "per_kernel": 3}


def find_misfit(shape: tuple[int, ...], config: ModuleMagnitudePrunerConfig, *, is_named: bool) -> str | None:
    """Say why a rule cannot prune a weight of some shape; the text goes on from the path of the rule and a dot.

    Args:
        shape: Shape of the weight, ``(C_out, C_in, *K)``.
        config: What the rule says.
        is_named: Whether the rule names the module. If so, n:m takes what channels there are, as long as it prunes
            some of them; if not, it needs one whole group.

    Returns:
        The reason; None where it fits.

    Example:
        >>> find_misfit((16, 3, 3, 3), ModuleMagnitudePrunerConfig(n_m_ratio=(2, 4)), is_named=False)
        'n_m_ratio: 2:4 zeros need at least 4 channels along dim 1, got 3'
        >>> find_misfit((16, 3, 3, 3), ModuleMagnitudePrunerConfig(n_m_ratio=(2, 4)), is_named=True)
    """
    rank, least = len(shape), _LEAST_RANK[config.granularity]
    if rank < least:
        return f'granularity: "{config.granularity}" needs a weight of rank {least} or more, got rank {rank}'
    if config.block_size > 1 and config.block_size > shape[0] // 2:
        return f"block_size must be at most half the output channels, got {config.block_size} for {shape[0]}"
    if config.n_m_ratio is None:
        return None
    n, m = config.n_m_ratio
    if rank < 2:
        return f"n_m_ratio: {n}:{m} zeros need a weight of rank 2 or more, got rank {rank}"
    needed = m - n + 1 if is_named else m  # of a short group those that it lacks go first
    if shape[config.dim] < needed:
        return (
            f"n_m_ratio: {n}:{m} zeros need at least {needed} channels along dim {config.dim}, got {shape[config.dim]}"
        )
    return None
