"""How a sparsity that is asked of a whole model is spread over its layers.

========================  ==========================================================================================
``"uniform"``             Every layer is equally sparse.
``"global"``              All weights of the model are ranked together: layers of small weights become sparser.
``"erdos_renyi_kernel"``  Layers keep weights in proportion to the sum of their dimensions: large layers become sparser.
========================  ==========================================================================================

Whatever the method and the bounds of single layers, exactly ``floor(weights * sparsity)`` weights of the model are
zero. :func:`allocate` does it for a model; the functions of :mod:`~lightning_prune.masks.spreads` see names and numbers
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rich.table import Table
from torch import nn

from lightning_prune.basics import DottedText, as_fraction, as_text, fullmatch, new_table, uncompiled_name
from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig, load_config
from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.masks import (
    Bound,
    default_maximum,
    erdos_renyi_kernel_zeros,
    global_zeros,
    uniform_zeros,
)
from lightning_prune.plan import PrunedParameter, exact_pattern, plan_pruning

__all__ = [
    "Allocation",
    "Method",
    "allocate",
    "module_patterns",
    "need_magnitudes",
]

Method = Literal["uniform", "global", "erdos_renyi_kernel"]


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
        zeroed as one, the total falls short of what was asked by less than the smallest that still would fit.

    Raises:
        ConfigError: The bounds leave no way to reach the sparsity, a name matches no layer, or a rule fixes the
            sparsity of a layer itself (``n_m_ratio``).

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 10))
        >>> spread = allocate(model, 0.75, "erdos_renyi_kernel")
        >>> spread.zeros
        {'0': 6533, '1': 67}
        >>> sum(parameter.target_zeros for parameter in plan_pruning(model, spread.config)) == 8800 * 3 // 4
        True
    """
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    sparsity = as_fraction("sparsity", sparsity)
    layers = {parameter.label: parameter for parameter in plan_pruning(model, load_config(config))}
    _check_layers(layers.values(), method)
    names = list(layers)
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        raise ConfigError(f"exclude must be a list of names of layers, got {exclude!r}. Write [{str(exclude)!r}].")
    dense = {name for pattern in exclude for name in _matching(pattern, names, "exclude")}
    dense |= {names[0]} if exclude_first else set()
    dense |= {names[-1]} if exclude_last else set()
    least = _per_layer(minimum, names, "minimum", 0.0)
    most = _per_layer(default_maximum(sparsity, method) if maximum is None else maximum, names, "maximum", 1.0)
    for name in dense:
        least[name], most[name] = 0.0, 0.0
    if method == "global":
        weights = {name: parameter.weight for name, parameter in layers.items()}
        zeros = global_zeros(weights, sparsity, minimum=least, maximum=most)
    else:
        spread = uniform_zeros if method == "uniform" else erdos_renyi_kernel_zeros
        shapes = {name: parameter.shape for name, parameter in layers.items()}
        groups = {name: _weights_per_group(parameter) for name, parameter in layers.items()}
        zeros = spread(shapes, sparsity, minimum=least, maximum=most, group_sizes=groups)
    rules = _rules(model, layers, zeros)
    return Allocation(method, {name: parameter.numel for name, parameter in layers.items()}, zeros, rules)


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
    need_magnitudes(layers, "allocate", is_ranking=method == "global")
    for parameter in layers:
        if parameter.config.structure.fixed_sparsity is not None:
            raise ConfigError(
                f"{parameter.rule}.n_m_ratio fixes the sparsity of {parameter.name}, so none can be allocated to it. "
                "Prune it by granularity, or leave it out with None."
            )
        if parameter.label == parameter.name:
            raise ConfigError(
                f"{parameter.rule}.param_name prunes {parameter.name} beside other parameters of its module, but a "
                "rule gives all of them one sparsity. Leave the module out with None."
            )
        if method == "global" and _weights_per_group(parameter) > 1:
            raise ConfigError(
                f'{parameter.rule} prunes {parameter.name} by {parameter.structure}, but "global" ranks single '
                'weights. Use granularity "per_scalar" without blocks, or another method.'
            )


def need_magnitudes(layers: Iterable[PrunedParameter], what: str, *, is_ranking: bool = True) -> None:
    """Refuse masks that are given, and, where it ranks weights, scores that only a training can have.

    Raises:
        ConfigError: There are such.
    """
    for parameter in layers:
        if parameter.given is not None:
            raise ConfigError(f"{what} chooses zeros, but those of {parameter.name} are fixed by {parameter.rule}.")
        if is_ranking and parameter.config.score is not None:
            raise ConfigError(f"{what} ranks magnitudes. Leave {parameter.rule}.score out.")


def _weights_per_group(parameter: PrunedParameter) -> int:
    return parameter.config.structure.weights_per_choice(parameter.shape)


def _rules(model: nn.Module, layers: Mapping[str, PrunedParameter], zeros: Mapping[str, int]) -> MagnitudePrunerConfig:
    """One rule by name for each layer, and for each module that a tied weight hangs in."""
    rules: dict[str, ModuleMagnitudePrunerConfig | None] = {}
    for name, parameter in layers.items():
        target = zeros[name] / parameter.numel
        leaf = replace(
            parameter.config, target_sparsity=target, initial_sparsity=min(parameter.config.initial_sparsity, target)
        )
        rules |= dict.fromkeys(module_patterns(model, parameter), leaf)
    return MagnitudePrunerConfig(module_name_configs=rules)


def module_patterns(model: nn.Module, parameter: PrunedParameter) -> list[str]:
    r"""Keys of ``module_name_configs`` that match the modules in which a parameter hangs, and no other module.

    Example:
        >>> model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)}), "a_b": nn.Linear(2, 2)})
        >>> [module_patterns(model, parameter) for parameter in plan_pruning(model, MagnitudePrunerConfig())]
        [['a\\.b'], ['a_b']]
    """
    names = {path: _module_name(path) for path, _ in model.named_modules()}
    places = {id(owner.module) for owner in parameter.owners}
    found = [names[path] for path, module in model.named_modules() if id(module) in places]
    return [exact_pattern(name, set(names.values())) for name in dict.fromkeys(found)]


def _module_name(path: str) -> str:
    """The name of a module without the wrapper of torch.compile; of a parametrization, that of its module."""
    return uncompiled_name(path.partition(".parametrizations")[0])
