"""How a sparsity that is asked of a whole model is spread over its layers.

========================  ==========================================================================================
``"uniform"``             Every layer is equally sparse.
``"global"``              All weights of the model are ranked together: layers of small weights become sparser.
``"erdos_renyi_kernel"``  Layers keep weights in proportion to the sum of their dimensions: large layers become sparser.
========================  ==========================================================================================

Whatever the method and the bounds of single layers, exactly ``floor(weights * sparsity)`` weights of the model are
zero. :func:`allocate` does it for a model; the functions below it only see names, shapes and numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Literal, get_args

import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig, did_you_mean, load_config
from lightning_prune.errors import ConfigError, shown
from lightning_prune.masks import mask_shape
from lightning_prune.matching import fullmatch
from lightning_prune.patterns import exact_pattern
from lightning_prune.plan import PrunedParameter, plan_pruning, uncompiled_name
from lightning_prune.selection import keep_largest_of_all, keep_largest_of_shards, pruned_count, pruned_count_of_all
from lightning_prune.sharding import Sharding, find_shardings, local_part
from lightning_prune.sparsity import count_zeros
from lightning_prune.tables import DottedText, as_text, new_table
from lightning_prune.values import as_fraction

__all__ = [
    "Allocation",
    "Bound",
    "Method",
    "allocate",
    "erdos_renyi_kernel_zeros",
    "global_zeros",
    "module_patterns",
    "rank_together",
    "uniform_zeros",
]

Method = Literal["uniform", "global", "erdos_renyi_kernel"]
Bound = float | Mapping[str, float]
"""One fraction for all layers, or one each for some of them by name."""

_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Allocation:
    """How many weights of each layer are zero. Prints as a table.

    Attributes:
        method: How it was found.
        weights: Number of weights of each layer.
        zeros: Number of zeros of each layer.
        config: A configuration with one rule a layer that brings it about.
    """

    method: Method
    weights: Mapping[str, int]
    zeros: Mapping[str, int]
    config: MagnitudePrunerConfig

    @property
    def sparsity(self) -> float:
        """Fraction of zeros of the whole model."""
        return sum(self.zeros.values()) / sum(self.weights.values())

    @property
    def sparsities(self) -> dict[str, float]:
        """Fraction of zeros of each layer."""
        return {name: zeros / self.weights[name] for name, zeros in self.zeros.items()}

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __rich__(self) -> Table:
        """Table for a terminal or a notebook."""
        table = new_table(f"Sparsity spread {self.method}")
        table.add_column("layer")
        for heading in ("weights", "zeros", "kept", "sparsity"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, zeros in self.zeros.items():
            weights = self.weights[name]
            table.add_row(
                DottedText(name or "(root)"),
                f"{weights:,}",
                f"{zeros:,}",
                f"{weights - zeros:,}",
                f"{zeros / weights:.2%}",
            )
        zeros, weights = sum(self.zeros.values()), sum(self.weights.values())
        table.caption = f"{zeros:,} of {weights:,} weights are zero ({zeros / weights:.4%})."
        return table


def allocate(
    model: nn.Module,
    sparsity: float,
    method: Method = "uniform",
    *,
    config: object = None,
    exclude: Iterable[str] = (),
    exclude_first: bool = False,
    exclude_last: bool = False,
    minimum: Bound = 0.0,
    maximum: Bound | None = None,
) -> Allocation:
    """Spread a sparsity over the layers of a model, and write the configuration that brings it about.

    Args:
        model: Not changed. ``"global"`` ranks the weights that it has now, so give it trained ones.
        sparsity: Fraction of zeros among the weights of all layers that ``config`` prunes, in [0, 1]. Layers that are
            excluded here are among them: they stay dense, and the others make up for them. Layers that ``config``
            leaves dense are not.
        method: How it is spread; see the table at the top of this module.
        config: Which layers, by which schedule and structure; its targets are replaced. In any form that
            :func:`~lightning_prune.config.load_config` reads.
        exclude: Names, or regular expressions that match whole names, of layers that stay dense.
        exclude_first: Leave the first layer dense, in the order in which modules were registered.
        exclude_last: Leave the last layer dense.
        minimum: Least sparsity of a layer, or of some by name (or regular expression).
        maximum: Most sparsity of a layer, or of some by name. Unless it is given, ``"global"`` keeps in each layer at
            least a tenth of the density of the model, so that none collapses: at 0.9, 0.99 is the most.

    Returns:
        Counts, and the configuration. With ``per_scalar`` the counts are exact; where kernels, channels or blocks are
        zeroed as one, the total falls short of the asked one by less than the smallest that still would fit.

    Raises:
        ConfigError: The bounds leave no way to reach the sparsity, a name matches no layer, or a rule fixes the
            sparsity of a layer itself (``n_m_ratio``).

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 10))
        >>> spread = allocate(model, 0.75, "erdos_renyi_kernel")
        >>> spread.zeros
        {'0': 6533, '1': 67}
        >>> sum(one.target_zeros for one in plan_pruning(model, spread.config)) == 8800 * 3 // 4
        True
    """
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    sparsity = as_fraction("sparsity", sparsity)
    layers = {one.label: one for one in plan_pruning(model, load_config(config))}
    _check_layers(layers.values(), method)
    names = list(layers)
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        raise ConfigError(f"exclude must be a list of names of layers, got {exclude!r}. Write [{str(exclude)!r}].")
    dense = {name for pattern in exclude for name in _matching(pattern, names, "exclude")}
    dense |= {names[0]} if exclude_first else set()
    dense |= {names[-1]} if exclude_last else set()
    least = _per_layer(minimum, names, "minimum", 0.0)
    most = _per_layer(_default_maximum(sparsity, method) if maximum is None else maximum, names, "maximum", 1.0)
    for name in dense:
        least[name], most[name] = 0.0, 0.0
    if method == "global":
        weights = {name: one.weight for name, one in layers.items()}
        zeros = global_zeros(weights, sparsity, minimum=least, maximum=most)
    else:
        spread = uniform_zeros if method == "uniform" else erdos_renyi_kernel_zeros
        shapes = {name: one.shape for name, one in layers.items()}
        groups = {name: _weights_per_group(one) for name, one in layers.items()}
        zeros = spread(shapes, sparsity, minimum=least, maximum=most, group_sizes=groups)
    rules = _rules(model, layers, zeros)
    return Allocation(method, {name: one.numel for name, one in layers.items()}, zeros, rules)


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
    return _global_zeros(
        pieces, sparsity, minimum, _default_maximum(sparsity, "global") if maximum is None else maximum
    )


def _global_zeros(
    pieces: Mapping[str, tuple[Tensor, Sharding | None]], sparsity: float, minimum: Bound, maximum: Bound
) -> dict[str, int]:
    """:func:`global_zeros` of this process's pieces of weights."""
    sizes = {name: _size(*one) for name, one in pieces.items()}
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
    weights: Sequence[Tensor], sparsities: Sequence[float], shardings: Sequence[Sharding | None] | None = None
) -> list[float]:
    """Move the zeros that are asked of single layers to where one ranking of all of them finds the smallest weights.

    For use at every update of a schedule: the number of zeros in all stays that of the schedule, rounded down once.

    Args:
        weights: Dense weights; of sharded ones this process's pieces.
        sparsities: What the schedule asks of each, fractions in [0, 1].
        shardings: How each is sharded; None for one that this process holds whole.

    Returns:
        Sparsity of each layer, by :func:`global_zeros` with its default bound.

    Example:
        >>> import torch
        >>> rank_together([torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])], [0.25, 0.5])
        [0.0, 0.75]
    """
    parts = list(zip(weights, shardings or [None] * len(weights), strict=True))
    sizes = [_size(*one) for one in parts]
    total = pruned_count_of_all(sizes, sparsities)
    pieces = {str(index): one for index, one in enumerate(parts)}
    maximum = _default_maximum(total / sum(sizes), "global")
    if sum(pruned_count(size, maximum) for size in sizes) < total:  # layers of a few weights, of which none can be kept
        maximum = 1.0
    zeros = _global_zeros(pieces, total / sum(sizes), 0.0, maximum)
    return [count / size for count, size in zip(zeros.values(), sizes, strict=True)]


def _size(piece: Tensor, sharding: Sharding | None) -> int:
    """Number of weights of which this process holds a piece."""
    return piece.numel() if sharding is None else prod(sharding.shape)


def _ranked_zeros(pieces: Sequence[tuple[Tensor, Sharding | None]], total: int) -> list[int]:
    """How many of the ``total`` smallest magnitudes of several tensors are in each of them."""
    shardings = [sharding for _, sharding in pieces if sharding is not None]
    if not shardings:
        return [count_zeros(mask) for mask in keep_largest_of_all([piece for piece, _ in pieces], total)]
    if len(shardings) < len(pieces) or len({sharding.groups for sharding in shardings}) > 1:
        raise ConfigError("Weights that are ranked together must all be sharded, over the same dimensions of the mesh.")
    shards = [one.shard(piece, one.boxes, one.shape) for (piece, _), one in zip(pieces, shardings, strict=True)]
    masks = keep_largest_of_shards(shards, total, reduce=shardings[0].sum)
    return [int(zeros) for zeros in shardings[0].sum(torch.stack([(~mask).sum() for mask in masks]))]


def _default_maximum(sparsity: float, method: str) -> float:
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


def _per_layer(bound: Bound, names: Sequence[str], what: str, default: float) -> dict[str, float]:
    """As :func:`_named`, where a key may be a regular expression; the first that matches holds."""
    if not isinstance(bound, Mapping):
        return dict.fromkeys(names, as_fraction(what, bound))
    found: dict[str, float] = {}
    for pattern, given in bound.items():
        value = as_fraction(f'{what}["{pattern}"]', given)
        for name in _matching(pattern, names, what):
            found.setdefault(name, value)
    return {name: found.get(name, default) for name in names}


def _matching(pattern: str, names: Sequence[str], what: str) -> list[str]:
    try:
        found = [name for name in names if name == pattern or fullmatch(pattern, name)]
    except ConfigError as error:
        raise ConfigError(f"{what}: {shown(pattern)} must be a name or a regular expression: {error}.") from error
    if not found:
        raise ConfigError(f'{what}: "{pattern}" matches no pruned layer.{did_you_mean(pattern, names)}')
    return found


def _check_layers(layers: Iterable[PrunedParameter], method: str) -> None:
    """Refuse rules whose sparsity cannot be moved from layer to layer."""
    for one in layers:
        if one.config.n_m_ratio is not None:
            raise ConfigError(
                f"{one.rule}.n_m_ratio fixes the sparsity of {one.name}, so none can be allocated to it. "
                "Prune it by granularity, or leave it out with None."
            )
        if one.label == one.name:
            raise ConfigError(
                f"{one.rule}.param_name prunes {one.name} beside other parameters of its module, but a rule gives all "
                "of them one sparsity. Leave the module out with None."
            )
        if method == "global" and _weights_per_group(one) > 1:
            raise ConfigError(
                f'{one.rule} prunes {one.name} by {one.structure}, but "global" ranks single weights. '
                'Use granularity "per_scalar" without blocks, or another method.'
            )


def _weights_per_group(one: PrunedParameter) -> int:
    groups = prod(mask_shape(one.shape, granularity=one.config.granularity))
    return one.numel // groups * one.config.block_size


def _rules(model: nn.Module, layers: Mapping[str, PrunedParameter], zeros: Mapping[str, int]) -> MagnitudePrunerConfig:
    """One rule by name for each layer, and for each module that a tied weight hangs in."""
    rules: dict[str, ModuleMagnitudePrunerConfig | None] = {}
    for name, one in layers.items():
        target = zeros[name] / one.numel
        leaf = replace(one.config, target_sparsity=target, initial_sparsity=min(one.config.initial_sparsity, target))
        rules |= dict.fromkeys(module_patterns(model, one), leaf)
    return MagnitudePrunerConfig(module_name_configs=rules)


def module_patterns(model: nn.Module, one: PrunedParameter) -> list[str]:
    r"""Keys of ``module_name_configs`` that match the modules in which a parameter hangs, and no other module.

    Example:
        >>> model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)}), "a_b": nn.Linear(2, 2)})
        >>> [module_patterns(model, one) for one in plan_pruning(model, MagnitudePrunerConfig())]
        [['a\\.b'], ['a_b']]
    """
    names = {path: _module_name(path) for path, _ in model.named_modules()}
    places = {id(owner.module) for owner in one.owners}
    found = [names[path] for path, module in model.named_modules() if id(module) in places]
    return [exact_pattern(name, set(names.values())) for name in dict.fromkeys(found)]


def _module_name(path: str) -> str:
    """The name of a module without the wrapper of torch.compile; of a parametrization, that of its module."""
    return uncompiled_name(path.partition(".parametrizations")[0])
