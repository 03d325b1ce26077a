"""What a user chooses for a whole model: how masks are held, and what is ranked together."""

from __future__ import annotations

from typing import Literal, get_args

from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.errors import ConfigError, shown
from lightning_prune.masking import Masking
from lightning_prune.slim import Slim

__all__ = ["Scope", "check_choices"]

Scope = Literal["layer", "global"]


def check_choices(config: MagnitudePrunerConfig, slim: object, masking: Masking, scope: Scope) -> Slim | None:
    """Read what a user wrote for ``slim``, and refuse choices that are not known, or do not go together."""
    for name, value, known in (("masking", masking, Masking), ("scope", scope, Scope)):
        if value not in get_args(known):
            allowed = " or ".join(f'"{choice}"' for choice in get_args(known))
            raise ConfigError(f"{name} must be {allowed}, got {shown(value)}.")
    settings = Slim.of(slim)
    if settings is not None and masking != "resident":
        raise ConfigError(f'slim needs masking="resident", got {shown(masking)}: norms and biases are pruned too.')
    if settings is not None and scope != "layer":
        raise ConfigError(f'slim needs scope="layer", got {shown(scope)}: it ranks channels, not single weights.')
    _check_gradients(config, masking, settings)
    _check_scores(config, settings)
    return settings


def _check_gradients(config: MagnitudePrunerConfig, masking: Masking, slim: Slim | None) -> None:
    """Refuse straight-through gradients where pruned weights cannot have them."""
    for path, rule in config.rules().items():
        if rule is None or rule.pruned_gradient == "zero":
            continue
        asked = f"{path}.pruned_gradient={shown(rule.pruned_gradient)} needs"
        if masking != "resident":
            raise ConfigError(
                f'{asked} masking="resident", got {shown(masking)}: the product of a hook has no gradient where the '
                'mask is 0. Write masking="resident", or pruned_gradient="zero".'
            )
        if slim is not None and rule.granularity == "per_channel":
            raise ConfigError(
                f"{asked} to go without slim: where filter, bias and norm of a channel are all zero, no gradient comes "
                'through. Write pruned_gradient="zero" in this rule, or leave slim out.'
            )


def _check_scores(config: MagnitudePrunerConfig, slim: Slim | None) -> None:
    """Refuse scores of channels that can only go together with what the score was not written for."""
    for path, rule in config.rules().items():
        if slim is not None and rule is not None and rule.score is not None and rule.granularity == "per_channel":
            raise ConfigError(
                f"{path}.score must be left out with slim, which ranks a channel by all that goes with it: biases, "
                "norms, and columns of other layers. Leave score out of this rule, or leave slim out."
            )
