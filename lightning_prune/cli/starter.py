"""A configuration to start from: YAML with comments, for one model, to be edited by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from torch import nn

from lightning_prune.analysis import Method, allocate, module_patterns
from lightning_prune.basics import as_fraction, plain_list, plain_number, plain_text
from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.errors import ConfigError
from lightning_prune.plan import plan_pruning

__all__ = ["starter_yaml"]

_HEAD = """\
# What is pruned of {model}, and how. Written by `lightning-prune init`; edit it, then look at it again by
# `lightning-prune plan {model} --config THIS_FILE --steps STEPS`.
#
# scheduler          begin, end and frequency of the updates: an int is optimizer steps, a float a fraction of the
#                    training run, "2 epochs" epochs; or update_steps: [100, 200], or begin_step: 100 for one shot
# target_sparsity    fraction of zeros at the end, in [0, 1]
# granularity        what is zeroed as one: per_scalar, per_kernel (convolutions alone) or per_channel (rows of Linear)
# block_size         consecutive output channels that are zeroed together; 1 is none
# n_m_ratio          [2, 4]: of every 4 weights along dim, 2 are zero; in place of target_sparsity
"""


def starter_yaml(
    model: nn.Module,
    *,
    name: str,
    sparsity: float = 0.75,
    scheduler: Mapping[str, Any] | None = None,
    dense: Sequence[str] = (),
    method: Method | None = None,
) -> str:
    """Write a configuration for a model as YAML with comments.

    Args:
        model: The model.
        name: What the comments call it.
        sparsity: Fraction of zeros; of each layer, or of the model where ``method`` spreads it.
        scheduler: Arguments of the schedule. Default: updates from a tenth of the run to 0.6 of it.
        dense: Names, or regular expressions, of modules that stay dense.
        method: Write one rule a layer, with the sparsity spread by it; see ``allocate``. Layers
            that stay dense count as part of the model then.

    Returns:
        Text that :meth:`~lightning_prune.config.MagnitudePrunerConfig.from_yaml` reads.

    Raises:
        ConfigError: A value cannot work, or nothing of the model can be pruned.

    Example:
        >>> text = starter_yaml(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), name="net", dense=["1"])
        >>> MagnitudePrunerConfig.from_yaml(text).module_name_configs
        {'1': None}
    """
    sparsity = as_fraction("sparsity", sparsity)
    given = {"begin": 0.1, "end": 0.6} if scheduler is None else scheduler
    schedule = {name: plain_list(plain_text(plain_number(value))) for name, value in given.items()}
    rule = {"scheduler": schedule, "target_sparsity": sparsity}
    config = MagnitudePrunerConfig.from_dict({"global_config": rule})
    if method is not None:
        body = _spread_body(model, config, schedule, sparsity, method, dense)
    else:
        config = MagnitudePrunerConfig.from_dict({"global_config": rule, "module_name_configs": dict.fromkeys(dense)})
        body = _uniform_body(model, config, schedule, sparsity, dense)
    text = _HEAD.format(model=name) + "\n" + body
    plan_pruning(model, MagnitudePrunerConfig.from_yaml(text))  # what is written must work
    return text


def _uniform_body(
    model: nn.Module, config: MagnitudePrunerConfig, schedule: Mapping[str, Any], sparsity: float, dense: Sequence[str]
) -> str:
    """One rule for all layers, and every layer as a comment that can be made a rule."""
    plan = plan_pruning(model, config)
    lines = [
        "global_config:  # for every Linear and convolution that no rule below matches",
        f"  scheduler: {_flow(schedule)}",
        f"  target_sparsity: {sparsity!r}",
        "  granularity: per_scalar",
        "  block_size: 1",
        "",
        f"module_name_configs:{'' if dense else ' {}'}  # rules by name, a regular expression; null leaves it dense",
    ]
    lines += [f"  {_quoted(name)}: null" for name in dense]
    lines += ["  # " + line for line in _layer_lines(model, plan)]
    return "\n".join(lines) + "\n"


def _layer_lines(model: nn.Module, plan: Iterable[Any]) -> list[str]:
    """Every pruned layer as an entry to copy."""
    found = []
    for planned in plan:
        shape = "x".join(map(str, planned.shape))
        found += [
            f"{_quoted(pattern)}: null  # {type(planned.owners[0].module).__name__} {shape}, {planned.numel:,} weights"
            for pattern in module_patterns(model, planned)
        ]
    return ["The layers that are pruned; copy what needs a rule of its own to the level above.", *found]


def _spread_body(
    model: nn.Module,
    config: MagnitudePrunerConfig,
    schedule: Mapping[str, Any],
    sparsity: float,
    method: Method,
    dense: Sequence[str],
) -> str:
    """One rule a layer; the schedule is written once."""
    spread = allocate(model, sparsity, method, config=config, exclude=dense)
    lines = [
        f"module_name_configs:  # {sparsity:.2%} of all weights, spread by the method {method}",
    ]
    for index, (pattern, rule) in enumerate(spread.config.module_name_configs.items()):
        if rule is None:
            raise ConfigError(f'module_name_configs["{pattern}"] has no rule.')
        scheduler = f"&schedule {_flow(schedule)}" if index == 0 else "*schedule"
        lines += [
            f"  {_quoted(pattern)}:",
            f"    scheduler: {scheduler}",
            f"    target_sparsity: {rule.target_sparsity!r}",
        ]
    return "\n".join(lines) + "\n"


def _flow(values: Mapping[str, Any]) -> str:
    """A mapping on one line."""
    return yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, width=1000).strip()


def _quoted(name: str) -> str:
    """A name as a YAML text; JSON's quotes are valid there."""
    return json.dumps(name)
