"""What stays when pruning ends: plain modules with zeros, in place or in a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import nn

from lightning_prune.basics import uncompiled_name
from lightning_prune.errors import LifecycleError
from lightning_prune.masking import hooked_names, register_coreml_metadata, remove_hooks
from lightning_prune.plan import PruningPlan, copy_module
from lightning_prune.pruner.layer import Layer

__all__ = ["do_all", "finalize_copy", "mask_copy", "register_layers"]


def mask_copy(layers: Sequence[Layer], model: nn.Module) -> None:
    """Apply the masks to a copy of the model that has the same names, compiled or not, in place."""
    named = model.named_parameters(remove_duplicate=False)
    parameters = {uncompiled_name(name): parameter for name, parameter in named}
    for layer in layers:
        layer.held.mask_copy(layer.plan.name, parameters)


def finalize_copy(layers: Sequence[Layer], model: nn.Module, *, inplace: bool) -> nn.Module:
    """Leave plain modules with zeros in a copy of the prepared model, or in a copy of that.

    Raises:
        LifecycleError: It is no copy of the prepared model.
    """
    _need_copy(layers, model)
    model = model if inplace else copy_module(model)
    remove_hooks(model)
    mask_copy(layers, model)
    return model


def _need_copy(layers: Sequence[Layer], model: nn.Module) -> None:
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
