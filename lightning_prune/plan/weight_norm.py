"""Weights behind a weight norm: the network computes ``w = g * v / |v|``, and ``g`` and ``v`` are trained.

A *row* is what shares one norm: an output channel, as a rule; the whole weight with ``dim=None``. The zeros that a mask
asks for are put into both parts: single ones into ``v``, and where nothing of a row is kept into ``g`` alone, since
a row of zeros in ``v`` would be divided by its norm, 0 / 0.

References:
    Salimans and Kingma, "Weight normalization", 2016, https://arxiv.org/abs/1602.07868
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = [
    "computed_weight",
    "computed_weights",
    "copy_module",
    "fill_zero_rows",
    "gain_names",
    "normed_names",
    "normed_weight",
    "prune_normed",
    "recompute_weights",
    "row_axis",
    "split_mask",
]

_STYLES = (  # of a name: its module with the dot, and the weight; then the names of g and v
    (r"(.*\.|)([^.]+)_[gv]", "{}{}_g", "{}{}_v"),
    (
        r"(.*\.|)parametrizations\.([^.]+)\.original[01]",
        "{}parametrizations.{}.original0",
        "{}parametrizations.{}.original1",
    ),
)


def normed_weight(direction: Tensor, gain: Tensor) -> Tensor:
    """The weight ``g * v / |v|`` as a new tensor; zero, not NaN, where ``|v|`` is zero.

    Args:
        direction: ``v``, of the shape of the weight.
        gain: ``g``, with length 1 in the dimensions over which the norm is taken, or one number for the whole weight.

    Example:
        >>> normed_weight(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[10.0], [1.0]]))
        tensor([[6., 8.],
                [0., 0.]])
    """
    with torch.no_grad():
        norm = _norm(direction, gain)
        return direction * (_spread(gain, direction) / norm).masked_fill_(norm == 0, 0.0)


def split_mask(mask: Tensor, direction: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The masks of the two parts of a weight, from the mask of the weight.

    Args:
        mask: Bytes 0 and 1, or bool, that broadcast over the weight.
        direction: ``v``, for its shape.
        gain: ``g``, for its shape.

    Returns:
        That of ``v``, which keeps rows of which nothing is kept as they are, and that of ``g``, which prunes these.

    Example:
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> split_mask(mask, torch.ones(2, 2), torch.ones(2, 1))
        (tensor([[ True, False],
                [ True,  True]]), tensor([[ True],
                [False]]))
    """
    axes = _axes(direction, gain)
    kept = mask.amax(axes, keepdim=True) if axes else mask
    rows = kept.expand(_spread(gain, direction).shape).reshape(gain.shape)
    return (mask | (kept == 0)).expand(direction.shape), rows


def fill_zero_rows(direction: Tensor, gain: Tensor, direction_mask: Tensor) -> None:
    """Set ``v`` to ones where it is kept, and ``g`` to 0, in rows whose kept part is zero: 0 / 0 becomes 0. In place.

    What was kept there is zero already, and goes on to be trained from there.
    """
    with torch.no_grad():
        rows = _norm(direction * direction_mask, gain) == 0
        if bool(rows.any()):
            direction.masked_fill_(rows & (direction_mask != 0), 1.0)
            gain.masked_fill_(rows.reshape(gain.shape), 0.0)


def prune_normed(direction: Tensor, gain: Tensor, mask: Tensor) -> None:
    """Make ``g * v / |v|`` zero in place where the mask of the weight is 0, and finite everywhere.

    Example:
        >>> v, g = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[10.0], [1.0]])
        >>> prune_normed(v, g, torch.tensor([[False, True], [False, False]]))
        >>> normed_weight(v, g)
        tensor([[ 0., 10.],
                [ 0.,  0.]])
    """
    with torch.no_grad():
        kept, rows = split_mask(mask.to(direction.device), direction, gain)
        fill_zero_rows(direction, gain, kept)
        direction.masked_fill_(kept == 0, 0.0)
        gain.masked_fill_(rows == 0, 0.0)


def row_axis(direction: Tensor, gain: Tensor) -> int | None:
    """The dimension along which rows lie; None where the whole weight is one row."""
    spread = _spread(gain, direction).shape
    return next((axis for axis, size in enumerate(spread) if size > 1), None)


def normed_names(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Of each weight that ``torch.nn.utils.weight_norm`` (the old style) computes, the names of ``g`` and ``v``."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))
    return {hook.name: (f"{hook.name}_g", f"{hook.name}_v") for hook in hooks}


def computed_weight(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of a name; of the ``v`` of a weight norm, in either style, the weight that the network computes.

    Example:
        >>> tensors = {"weight_g": torch.tensor([[2.0], [0.0]]), "weight_v": torch.ones(2, 1)}
        >>> computed_weight("weight_v", tensors)
        tensor([[2.],
                [0.]])
    """
    found = _find_norm(name, tensors)
    if found is None or name != found[2]:
        return tensors[name]
    return normed_weight(tensors[name], tensors[found[1]])


def computed_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, where ``g`` and ``v`` of a weight norm, in either style, give way to the weight.

    Example:
        >>> state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.eye(2) * 3, "a.bias": torch.zeros(2)}
        >>> computed_weights(state)
        {'a.weight': tensor([[1., 0.],
                [0., 1.]]), 'a.bias': tensor([0., 0.])}
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _find_norm(name, state)
        if found is None:
            tensors[name] = tensor
        else:
            weight, gain, direction = found
            tensors[weight] = normed_weight(state[direction], state[gain])
    return tensors


def gain_names(tensors: Mapping[str, Tensor]) -> set[str]:
    """Of named tensors, those that are the ``g`` of a weight norm, in either style, whose ``v`` is among them.

    Example:
        >>> sorted(gain_names({"weight_g": torch.ones(2, 1), "weight_v": torch.eye(2), "alone_g": torch.ones(2, 1)}))
        ['weight_g']
    """
    found = (_find_norm(name, tensors) for name in tensors)
    return {norm[1] for norm in found if norm is not None}


def _find_norm(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, str, str] | None:
    """The names of a weight, its ``g`` and its ``v``, if a name is that of either part; by names and shapes."""
    for pattern, *parts in _STYLES:
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        module, weight = match.groups()
        gain, direction = (part.format(module, weight) for part in parts)
        is_whole = gain in tensors and direction in tensors and f"{module}{weight}" not in tensors
        if is_whole and _is_gain(tensors[gain], tensors[direction]):
            return f"{module}{weight}", gain, direction
    return None


def recompute_weights(module: nn.Module) -> None:
    """Compute the attributes of weight norms in the old style anew, which otherwise only a forward does."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            with torch.no_grad():
                setattr(module, hook.name, hook.compute_weight(module))


def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy, also of norms in the old style: these keep a weight with its graph, which torch does not copy."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            held = getattr(module, hook.name, None) if isinstance(hook, (WeightNorm, SpectralNorm)) else None
            if isinstance(held, Tensor) and held.grad_fn is not None:
                memo[id(held)] = held.detach().clone()
    return copy.deepcopy(model, memo)


def _is_gain(gain: Tensor, direction: Tensor) -> bool:
    """Whether a tensor may be the ``g`` of a ``v``, by its shape: one number for each row, or one for all."""
    if gain.ndim == 0:
        return direction.ndim > 1 and direction.is_floating_point()
    long = [axis for axis, size in enumerate(gain.shape) if size > 1]
    return (
        gain.ndim == direction.ndim > 1
        and direction.is_floating_point()
        and len(long) <= 1
        and all(gain.shape[axis] == direction.shape[axis] for axis in long)
    )


def _axes(direction: Tensor, gain: Tensor) -> tuple[int, ...]:
    """The dimensions over which the norm is taken, those of length 1 among them."""
    return tuple(axis for axis, size in enumerate(_spread(gain, direction).shape) if size == 1)


def _spread(gain: Tensor, direction: Tensor) -> Tensor:
    """``g`` with as many dimensions as ``v``: a norm of the whole weight has none."""
    return gain if gain.ndim else gain.view((1,) * direction.ndim)


def _norm(direction: Tensor, gain: Tensor) -> Tensor:
    axes = _axes(direction, gain)
    return torch.linalg.vector_norm(direction, dim=axes, keepdim=True) if axes else direction.abs()
