"""Parameters that are pruned, but in whose place something has put others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from lightning_prune.errors import LifecycleError
from lightning_prune.pruner.layer import Layer
from lightning_prune.sharding import is_sharded

__all__ = ["need_own_parameters", "warn_of_replaced"]


def need_own_parameters(layers: Sequence[Layer], model: nn.Module) -> None:
    """Refuse to prune on where the model has other parameters now than those that are pruned."""
    replaced = _find_replaced(layers, model)
    if replaced:
        raise LifecycleError(
            f"{', '.join(replaced)}: the model has another parameter there now than that which is pruned. Write "
            "new values into the old parameter (copy_, load_state_dict without assign), or prune what is new with a "
            "MagnitudePruner of its own."
        )


def warn_of_replaced(layers: Sequence[Layer], model: nn.Module) -> None:
    """Warn where the model has other parameters at the end than those that were pruned."""
    replaced = _find_replaced(layers, model)
    if replaced:
        warnings.warn(
            f"The model has another parameter now than that which was pruned, whatever the report says of "
            f"{', '.join(replaced)}: it may be dense.",
            stacklevel=4,
        )


def _find_replaced(layers: Sequence[Layer], model: nn.Module) -> list[str]:
    """Find parameters that the model does not use any more: something has put others in their place."""
    there = {id(parameter) for parameter in model.parameters()}
    return [
        layer.plan.name
        for layer in layers
        if not is_sharded(layer.plan.parameter)  # FSDP2 swaps parameters all the time
        and any(id(part.parameter) not in there for part in layer.held.parts())
    ]
