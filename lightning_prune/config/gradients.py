"""What trains a weight while it is pruned: the settings of a rule, and what they do not go with."""

from __future__ import annotations

from math import inf
from typing import Any, Literal, get_args

from lightning_prune.basics import yaml_hint
from lightning_prune.errors import ConfigError, shown
from lightning_prune.schedules import ConstantSparsityScheduler, PruningScheduler

__all__ = ["PrunedGradient", "check_gradient"]

PrunedGradient = Literal["zero", "straight_through"]


def check_gradient(pruned_gradient: Any, decay: Any, schedule: PruningScheduler, initial_sparsity: float) -> None:
    """Check the settings of a rule, and that they do something.

    Raises:
        ConfigError: A value cannot work, or the values together would do nothing.
    """
    allowed = get_args(PrunedGradient)
    if pruned_gradient not in allowed:
        names = " or ".join(f'"{name}"' for name in allowed)
        raise ConfigError(f"pruned_gradient must be {names}, got {shown(pruned_gradient)}.")
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 <= decay < inf:
        raise ConfigError(
            f"decay must be a number of at least 0.0, got {shown(decay)}. Write 0.0002 for the value of SR-STE, "
            f"0.0 for none.{yaml_hint(decay)}"
        )
    if pruned_gradient == "zero":
        if decay > 0.0:
            raise ConfigError(
                f'decay must be 0.0 with pruned_gradient="zero", got {decay}. Write '
                'pruned_gradient="straight_through" beside it, or leave it out; what an optimizer calls weight_decay '
                "acts on pruned weights too."
            )
        return
    is_one_shot = isinstance(schedule, ConstantSparsityScheduler) and schedule.frequency is None
    if is_one_shot and initial_sparsity == 0.0:
        raise ConfigError(
            'pruned_gradient="straight_through" needs a scheduler that computes masks more than once, since a weight '
            f"that is pruned for good is not trained, got {shown(schedule)}. Write "
            'scheduler={"begin_step": 1, "frequency": 1} for a new mask at every step, or update_steps.'
        )
