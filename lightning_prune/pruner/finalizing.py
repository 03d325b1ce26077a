"""What stays when pruning ends: plain modules with zeros, in place or in a copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import nn

from lightning_prune.errors import LifecycleError
from lightning_prune.masking import hooked_names, register_coreml_metadata, remove_hooks
from lightning_prune.plan import PruningPlan, uncompiled_name
from lightning_prune.pruner.layer import Layer
from lightning_prune.sharding import is_sharded

__all__ = [
    "do_all",
    "finalize_copy",
    "mask_copy",
    "need_copy",
    "need_own_parameters",
    "register_layers",
    "warn_of_replaced",
]


def mask_copy(layers: Sequence[Layer], model: nn.Module) -> None:
    """Apply the masks to a copy of the model that has the same names, compiled or not, in place."""
    named = model.named_parameters(remove_duplicate=False)
    parameters = {uncompiled_name(name): parameter for name, parameter in named}
    for layer in layers:
        layer.held.mask_copy(layer.plan.name, parameters)


def finalize_copy(layers: Sequence[Layer], model: nn.Module) -> None:
    """Leave plain modules with zeros in a copy of the model, in place."""
    remove_hooks(model)
    mask_copy(layers, model)


def need_copy(layers: Sequence[Layer], model: nn.Module) -> None:
    """Refuse a model of which nothing would be finalized: no name, no hook and no parameter of it is known here."""
    names, own = {layer.plan.name for layer in layers}, {id(layer.held.parameter) for layer in layers}
    is_known = hooked_names(model) or any(
        uncompiled_name(name) in names or id(parameter) in own
        for name, parameter in model.named_parameters(remove_duplicate=False)
    )
    if not is_known:
        raise LifecycleError(
            f"finalize() needs the prepared model or a copy of it, but this {type(model).__name__} has no "
            f"{', '.join(layer.plan.name for layer in layers)}."
        )


def need_own_parameters(layers: Sequence[Layer], model: nn.Module) -> None:
    """Refuse to prune on where the model has other parameters now than those that are pruned."""
    replaced = _find_replaced(layers, model)
    if replaced:
        raise LifecycleError(
            f"{', '.join(replaced)}: the model has another parameter there now than the one that is pruned. Write "
            "new values into the old one (copy_, load_state_dict without assign), or prune what is new with a "
            "MagnitudePruner of its own."
        )


def warn_of_replaced(layers: Sequence[Layer], model: nn.Module) -> None:
    """Warn where the model has other parameters at the end than those that were pruned."""
    replaced = _find_replaced(layers, model)
    if replaced:
        warnings.warn(
            f"The model has another parameter now than the one that was pruned, whatever the report says of "
            f"{', '.join(replaced)}: it may be dense.",
            stacklevel=4,
        )


def register_layers(plan: PruningPlan, model: nn.Module) -> None:
    """Register the buffers by which Core ML Tools recognises a pruned layer."""
    names: dict[str, list[str]] = {}
    for planned in plan:
        module, _, attribute = planned.name.rpartition(".")
        names.setdefault(module, []).append(attribute)
    register_coreml_metadata(model, names)


def do_all(actions: Sequence[Callable[[], None]]) -> None:
    """Do each of them, whatever becomes of the others; the first error is raised at the end."""
    with ExitStack() as stack:
        for action in actions:
            stack.callback(action)


def _find_replaced(layers: Sequence[Layer], model: nn.Module) -> list[str]:
    """Find parameters that the model does not use any more: something has put others in their place."""
    there = {id(parameter) for parameter in model.parameters()}
    return [
        layer.plan.name
        for layer in layers
        if not is_sharded(layer.plan.parameter)  # FSDP2 swaps parameters all the time
        and any(id(part.parameter) not in there for part in layer.held.parts())
    ]
