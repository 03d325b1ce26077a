"""Parameters and buffers of a network, each under one name."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["standing_names", "states_of"]


def standing_names(model: nn.Module) -> dict[str, str]:
    """The name that stands for each name of a parameter or buffer: the first of those that it has."""
    seen: dict[int, str] = {}
    return {
        name: seen.setdefault(id(tensor), name)
        for named in (model.named_parameters, model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }


def states_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that stand for them."""
    tensors: dict[str, Tensor] = {}
    standing = standing_names(model)
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            tensors.setdefault(standing[name], tensor)
    return tensors
