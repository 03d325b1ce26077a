"""What the weights of a layer are ranked by: their magnitudes, or a score of the user's own."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.config import Score, score_name
from lightning_prune.errors import ConfigError, shown
from lightning_prune.plan import PrunedParameter
from lightning_prune.pruner.layer import Layer
from lightning_prune.sharding import is_sharded

__all__ = ["need_scorable", "ranked_values"]


def ranked_values(layer: Layer) -> Tensor:
    """Give what the weights of a layer are ranked by, which is its dense weights where its rule has no score.

    The layer shows its dense weights from here on: settle its mask afterwards.

    Raises:
        ConfigError: The score is no tensor of the weight's shape, is not finite, or is negative.
    """
    score = layer.plan.config.score
    return layer.held.dense() if score is None else _scores(layer, score)


@torch.no_grad()
def _scores(layer: Layer, score: Score) -> Tensor:
    dense = layer.held.dense()
    weight = dense.detach().to(torch.promote_types(dense.dtype, torch.float32), copy=True)
    found = score(weight, layer.held.parameter)
    called = f"{layer.plan.rule}.score ({score_name(score)}) must"
    if not isinstance(found, Tensor):
        raise ConfigError(f"{called} give a tensor, got {shown(found)}.")
    if found.shape != dense.shape or found.is_complex():
        raise ConfigError(
            f"{called} give real numbers of the shape of the weight, {tuple(dense.shape)}, got {found.dtype} of shape "
            f"{tuple(found.shape)}."
        )
    if found.device != dense.device:
        raise ConfigError(f"{called} stay on the device of the weight, {dense.device}, got {found.device}.")
    found = found.detach().to(torch.promote_types(found.dtype, torch.float32))
    if not bool(found.isfinite().all()):
        raise ConfigError(f"{called} be finite, got NaN or infinity.")
    if bool((found < 0).any()):
        raise ConfigError(
            f"{called} be at least 0, got {float(found.min()):g}. Give its absolute value, or what is pruned "
            "first a smaller number."
        )
    return found


def need_scorable(planned: PrunedParameter) -> None:
    """Refuse a parameter whose weights a score does not see.

    Raises:
        ConfigError: Another process holds a part of it, or a weight norm makes the weight of it.
    """
    if planned.config.score is None:
        return
    if is_sharded(planned.parameter):
        raise ConfigError(
            f"{planned.rule}.score needs the whole weight in one process, but {planned.name} is sharded over several "
            "(DTensor). Train with DDP, or leave score out."
        )
    if planned.gain is not None:
        raise ConfigError(
            f"{planned.rule}.score cannot rank {planned.name}: the network uses a weight that a norm makes of it, and "
            "the gradient is not that of the weight. Remove the weight norm, or leave score out."
        )
