"""How many weights of each layer are zero when a number of zeros is spread over all: functions of names and numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import prod

import torch
from torch import Tensor

from lightning_prune.basics import as_fraction
from lightning_prune.errors import ConfigError, did_you_mean
from lightning_prune.masks.selection import (
    keep_largest_of_all,
    keep_largest_of_shards,
    pruned_count,
    pruned_count_of_all,
)
from lightning_prune.masks.zeros import count_zeros
from lightning_prune.sharding import Sharding, find_shardings, local_part

__all__ = ["Bound", "default_maximum", "erdos_renyi_kernel_zeros", "global_zeros", "rank_together", "uniform_zeros"]

Bound = float | Mapping[str, float]
"""One fraction for all layers, or one each for some of them by name."""

_LEAST_SHARE = 0.1


def uniform_zeros(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    *,
    minimum: Bound = 0.0,
    maximum: Bound = 1.0,
    group_sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Make all layers equally sparse, as far as their bounds allow.

    Args:
        shapes: Shapes of the weights by name.
        sparsity: Fraction of zeros among all weights, in [0, 1].
        minimum: Least sparsity of a layer. Rounded down to whole groups, as a rule of that target would.
        maximum: Most sparsity of a layer, rounded likewise.
        group_sizes: Weights that are zeroed as one, by name; 1 where not given.

    Returns:
        Number of zeros by name, ``floor(weights * sparsity)`` in all. Fractions of a weight go to the layers that miss
        the largest one; among equals to the first.

    Raises:
        ConfigError: The bounds do not allow the sparsity.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878

    Example:
        >>> uniform_zeros({"a": (3, 3), "b": (3, 3)}, 0.5)
        {'a': 5, 'b': 4}
        >>> uniform_zeros({"a": (3, 3), "b": (3, 3)}, 0.5, maximum={"a": 0.0})
        {'a': 0, 'b': 9}
    """
    shares = {name: prod(shape) for name, shape in shapes.items()}
    return _spread(shapes, shares, sparsity, minimum, maximum, group_sizes)


def erdos_renyi_kernel_zeros(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    *,
    minimum: Bound = 0.0,
    maximum: Bound = 1.0,
    group_sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Let layers keep weights in proportion to the sum of their dimensions, as far as their bounds allow.

    A layer of shape ``(C_out, C_in, *K)`` keeps ``scale * (C_out + C_in + sum(K))`` weights, at most all of them, with
    one ``scale`` for the model. Its density is then ``scale * (C_out + C_in + sum(K)) / (C_out * C_in * prod(K))``.

    Args and errors are those of :func:`uniform_zeros`.

    References:
        Evci et al., "Rigging the Lottery", 2020, section 3, https://arxiv.org/abs/1911.11134; for layers without
        kernels Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
        inspired by network science", 2018, https://arxiv.org/abs/1707.04780

    Example:
        >>> erdos_renyi_kernel_zeros({"large": (64, 64, 3, 3), "small": (8, 8, 1, 1)}, 0.9)
        {'large': 33235, 'small': 0}
    """
    shares = {name: sum(shape) for name, shape in shapes.items()}
    return _spread(shapes, shares, sparsity, minimum, maximum, group_sizes)


def global_zeros(
    weights: Mapping[str, Tensor], sparsity: float, *, minimum: Bound = 0.0, maximum: Bound | None = None
) -> dict[str, int]:
    """Rank the weights of all layers together and zero the smallest, as far as the bounds of the layers allow.

    Args:
        weights: Dense weights by name, of any floating dtype and device. Not modified.
        sparsity: Fraction of zeros among all weights, in [0, 1].
        minimum: Least sparsity of a layer.
        maximum: Most sparsity of a layer. By default it keeps at least a tenth of the density of the model:
            ``1 - 0.1 * (1 - sparsity)``. Without a bound, ranking alone may leave a layer without any weight.

    Returns:
        Number of zeros by name, ``floor(weights * sparsity)`` in all. A layer that would pass a bound stops there, and
        the others are ranked for the rest.

    Raises:
        ConfigError: The bounds do not allow the sparsity.
        PruningError: A weight holds NaN.

    References:
        Blalock et al., "What is the state of neural network pruning?", 2020, section 7 ("Global Magnitude Pruning"),
        https://arxiv.org/abs/2003.03033; on layers that collapse, Tanaka et al., "Pruning neural networks without any
        data by iteratively conserving synaptic flow", 2020, https://arxiv.org/abs/2006.05467

    Example:
        >>> import torch
        >>> weights = {"large": torch.tensor([5.0, 6.0, 7.0, 8.0]), "small": torch.tensor([1.0, 2.0, 3.0, 4.0])}
        >>> global_zeros(weights, 0.5, maximum=1.0), global_zeros(weights, 0.5, maximum=0.75)
        ({'large': 0, 'small': 4}, {'large': 1, 'small': 3})
    """
    sparsity = as_fraction("sparsity", sparsity)
    shardings = find_shardings(list(weights.values()))
    pieces = {
        name: (local_part(weight), sharding)
        for (name, weight), sharding in zip(weights.items(), shardings, strict=True)
    }
    return _global_zeros(pieces, sparsity, minimum, default_maximum(sparsity, "global") if maximum is None else maximum)


def _global_zeros(
    pieces: Mapping[str, tuple[Tensor, Sharding]], sparsity: float, minimum: Bound, maximum: Bound
) -> dict[str, int]:
    """:func:`global_zeros` of this process's pieces of weights."""
    sizes = {name: prod(sharding.shape) for name, (_, sharding) in pieces.items()}
    low, high, total = _count_bounds(sizes, sparsity, minimum, maximum)
    settled: dict[str, int] = {}
    while len(settled) < len(sizes):
        free = [name for name in sizes if name not in settled]
        counts = _ranked_zeros([pieces[name] for name in free], total - sum(settled.values()))
        bounded = {name: min(max(zeros, low[name]), high[name]) for name, zeros in zip(free, counts, strict=True)}
        surplus = sum(bounded.values()) - sum(counts)
        # Too many zeros so far: the cut moves down, and who is below its minimum stays there. Too few: the reverse.
        reached = {
            name: bounded[name]
            for name, zeros in zip(free, counts, strict=True)
            if surplus == 0 or (bounded[name] > zeros if surplus > 0 else bounded[name] < zeros)
        }
        settled |= reached
    return {name: settled[name] for name in sizes}


def rank_together(
    weights: Sequence[Tensor], sparsities: Sequence[float], shardings: Sequence[Sharding] | None = None
) -> list[float]:
    """Move the zeros that are asked of single layers to where one ranking of all of them finds the smallest weights.

    For use at every update of a schedule: the number of zeros in all stays that of the schedule, rounded down once.

    Args:
        weights: Dense weights; of sharded ones this process's pieces.
        sparsities: What the schedule asks of each, fractions in [0, 1].
        shardings: How each is sharded. If not given, this process holds all of them whole.

    Returns:
        Sparsity of each layer, by :func:`global_zeros` with its default bound.

    Example:
        >>> import torch
        >>> rank_together([torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])], [0.25, 0.5])
        [0.0, 0.75]
    """
    shardings = [Sharding.of_one(weight.shape) for weight in weights] if shardings is None else shardings
    sizes = [prod(sharding.shape) for sharding in shardings]
    total = pruned_count_of_all(sizes, sparsities)
    pieces = {str(index): piece for index, piece in enumerate(zip(weights, shardings, strict=True))}
    maximum = default_maximum(total / sum(sizes), "global")
    if sum(pruned_count(size, maximum) for size in sizes) < total:  # layers of a few weights, of which none can be kept
        maximum = 1.0
    zeros = _global_zeros(pieces, total / sum(sizes), 0.0, maximum)
    return [count / size for count, size in zip(zeros.values(), sizes, strict=True)]


def _ranked_zeros(pieces: Sequence[tuple[Tensor, Sharding]], total: int) -> list[int]:
    """How many of the ``total`` smallest magnitudes of several tensors are in each of them."""
    shardings = [sharding for _, sharding in pieces]
    if all(sharding.is_whole for sharding in shardings):
        return [count_zeros(mask) for mask in keep_largest_of_all([piece for piece, _ in pieces], total)]
    if len({sharding.groups for sharding in shardings}) > 1:
        raise ConfigError("Weights that are ranked together must all be sharded, over the same dimensions of the mesh.")
    shards = [sharding.shard(piece, sharding.boxes, sharding.shape) for piece, sharding in pieces]
    masks = keep_largest_of_shards(shards, total, reduce=shardings[0].sum)
    return [int(zeros) for zeros in shardings[0].sum(torch.stack([(~mask).sum() for mask in masks]))]


def default_maximum(sparsity: float, method: str) -> float:
    """The most sparsity of a layer that is not bounded otherwise."""
    return 1.0 - _LEAST_SHARE * (1.0 - sparsity) if method == "global" else 1.0


def _spread(
    shapes: Mapping[str, Sequence[int]],
    shares: Mapping[str, int],
    sparsity: float,
    minimum: Bound,
    maximum: Bound,
    group_sizes: Mapping[str, int] | None,
) -> dict[str, int]:
    """Keep weights in proportion to ``shares`` within bounds; returns zeros, in whole groups."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    groups = {name: (group_sizes or {}).get(name, 1) for name in sizes}
    low, high, total = _count_bounds(sizes, sparsity, minimum, maximum, groups)
    least = {name: sizes[name] - high[name] for name in sizes}
    most = {name: sizes[name] - low[name] for name in sizes}
    kept = _fill(sum(sizes.values()) - total, shares, least, most)
    exact = {name: sizes[name] - kept[name] for name in sizes}
    return _round_to_groups(exact, groups, high, total)


def _fill(
    total: int, shares: Mapping[str, int], low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, Fraction]:
    """Find the one scale at which ``clip(scale * share, low, high)`` sums to the total, and give these values."""

    def at(scale: Fraction) -> dict[str, Fraction]:
        return {
            name: min(max(scale * share, Fraction(low[name])), Fraction(high[name])) for name, share in shares.items()
        }

    def total_at(scale: Fraction) -> Fraction:
        return sum(at(scale).values(), Fraction(0))

    # the sum is linear in scale between neighbouring corners, where some layer meets or leaves a bound
    corners = sorted({Fraction(bound[name], share) for name, share in shares.items() for bound in (low, high)})
    below = corners[max(bisect_right(corners, Fraction(total), key=total_at) - 1, 0)]
    free = [name for name, share in shares.items() if low[name] <= below * share < high[name]]
    missing = total - total_at(below)
    return at(below + missing / sum(shares[name] for name in free) if free else below)


def _round_to_groups(
    exact: Mapping[str, Fraction], groups: Mapping[str, int], high: Mapping[str, int], total: int
) -> dict[str, int]:
    """Whole groups near the exact counts, as many as fit into the total."""
    zeros = {name: int(value // groups[name]) * groups[name] for name, value in exact.items()}
    left = total - sum(zeros.values())
    while fitting := [name for name in zeros if groups[name] <= min(left, high[name] - zeros[name])]:
        neediest = max(fitting, key=lambda name: (exact[name] - zeros[name]) / groups[name])
        zeros[neediest] += groups[neediest]
        left -= groups[neediest]
    return zeros


def _count_bounds(
    sizes: Mapping[str, int],
    sparsity: float,
    minimum: Bound,
    maximum: Bound,
    groups: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], dict[str, int], int]:
    """Least and most zeros of each layer in whole groups, and the zeros of all; checked to go together."""
    sparsity = as_fraction("sparsity", sparsity)
    least, most = _named(minimum, sizes, "minimum", 0.0), _named(maximum, sizes, "maximum", 1.0)
    for name in sizes:
        if least[name] > most[name]:
            raise ConfigError(
                f"{name}: minimum and maximum must be fractions in [0, 1] in this order, "
                f"got {least[name]} and {most[name]}."
            )

    group = {name: (groups or {}).get(name, 1) for name in sizes}

    def count(fractions: Mapping[str, float]) -> dict[str, int]:
        return {name: pruned_count(size // group[name], fractions[name]) * group[name] for name, size in sizes.items()}

    low, high, weights = count(least), count(most), sum(sizes.values())
    total, limit = pruned_count(weights, sparsity), sum(pruned_count(size, most[name]) for name, size in sizes.items())
    if not sum(low.values()) <= total <= limit:
        raise ConfigError(
            f"sparsity asks for {total:,} zeros of {weights:,} weights, but the bounds of the layers allow "
            f"{sum(low.values()):,} to {limit:,} ({sum(low.values()) / weights:.1%} to {limit / weights:.1%}). "
            "Exclude fewer layers, or widen minimum and maximum."
        )
    return low, high, min(total, sum(high.values()))


def _named(bound: Bound, names: Iterable[str], what: str, default: float) -> dict[str, float]:
    """One fraction a layer, from one for all or some by name."""
    names = list(names)
    if not isinstance(bound, Mapping):
        return dict.fromkeys(names, as_fraction(what, bound))
    for name in bound:
        if name not in names:
            raise ConfigError(f'{what}["{name}"] names no layer.{did_you_mean(name, names)}')
    given = {name: as_fraction(f'{what}["{name}"]', value) for name, value in bound.items()}
    return {name: given.get(name, default) for name in names}
