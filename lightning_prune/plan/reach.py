"""What a plan leaves dense although its rules may have meant it: said once, where pruning begins."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable

from torch import distributed

from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.plan.rows import PruningPlan, SkippedModule

__all__ = ["warn_of_dense"]

_SHOWN = 5  # names, reasons or types in one warning


def warn_of_dense(plan: PruningPlan, config: MagnitudePrunerConfig, *, stacklevel: int = 3) -> None:
    """Warn of weights that a rule does not fit, and where the rules reach less than half of a model.

    Of many processes, which all have the same plan, the first alone says so.

    Args:
        plan: What is pruned, and what not.
        config: The rules. Without ``global_config`` they name all that they mean, and nothing is said of the rest.
        stacklevel: As of :func:`warnings.warn`, seen from here.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
        return
    texts = [_describe_misfits([row for row in plan.skipped if row.cause == "misfit"])]
    if config.global_config is not None:
        texts.append(_describe_unreached(plan))
    for text in filter(None, texts):
        warnings.warn(text, stacklevel=stacklevel)


def _describe_misfits(rows: list[SkippedModule]) -> str:
    if not rows:
        return ""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row.reason, []).append(row.name or "(root)")
    told = [f"{reason} ({_few(names)})" for reason, names in list(reasons.items())[:_SHOWN]]
    told += [f"{len(reasons) - _SHOWN} more reasons in the plan"] if len(reasons) > _SHOWN else []
    weights = sum(sum(row.weights.values()) for row in rows)
    layers = "1 layer stays" if len(rows) == 1 else f"{len(rows)} layers stay"
    size = f" ({weights:,} weights)" if weights else ""
    return (
        f"{layers} dense{size}, as the rule does not fit: {'; '.join(told)}. If that is meant, leave "
        "them out by name with None."
    )


def _describe_unreached(plan: PruningPlan) -> str:
    """What no rule reaches, by type, and how to write it; nothing where half of the weights are reached."""
    types: dict[str, dict[str, None]] = {}
    sizes: dict[str, int] = {}
    for row in plan.skipped:
        if row.cause == "reach" and row.weights:
            types.setdefault(row.kind, {}).update(dict.fromkeys(row.weights))
            sizes[row.kind] = sizes.get(row.kind, 0) + sum(row.weights.values())
    reached, unreached = sum(planned.numel for planned in plan if len(planned.shape) > 1), sum(sizes.values())
    if reached >= unreached:
        return ""
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_SHOWN]
    told = ", ".join(f"{kind} ({sizes[kind]:,})" for kind in largest)
    keys = [f"{json.dumps(kind)}{_parameter(list(types[kind]))}" for kind in largest]
    dense = ", ".join(f"{json.dumps(kind)}: None" for kind in largest)
    return (
        f"Little gets pruned: the rules reach {reached:,} of {reached + unreached:,} weights of rank 2 and more "
        f"({reached / (reached + unreached):.1%}). They do not reach {told}. To prune these too, give them rules in "
        f"module_type_configs, under {', '.join(keys)}; if it is meant, write module_type_configs={{{dense}}}."
    )


def _parameter(names: list[str]) -> str:
    """How a rule names the parameters of a module, where that is not the default."""
    return "" if names == ["weight"] else f" with param_name={json.dumps('|'.join(_stems(names)))}"


def _stems(names: Iterable[str]) -> list[str]:
    r"""Names as few regular expressions: those that differ in digits alone are one."""
    return list(dict.fromkeys(re.sub(r"\d+", r"\\d+", name) for name in names))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
