"""The plan of a model whose network is to be made slim: which of its channels can only go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lightning_prune.config import FixedMasks, MagnitudePrunerConfig
from lightning_prune.errors import ConfigError, SlimError
from lightning_prune.plan import PruningPlan, couple_plan, plan_pruning
from lightning_prune.sharding import is_sharded
from lightning_prune.slim import Slim

if TYPE_CHECKING:
    from lightning_prune.slim import Coupling

__all__ = ["Planner"]


class Planner:
    """Makes plans of one configuration; of what is to be slim, channels are looked for once.

    Args:
        config: What to prune.
        slim: Whether, and how, channels are pruned that can be cut out.
    """

    def __init__(self, config: MagnitudePrunerConfig, slim: Slim | None) -> None:
        self._config, self._slim = config, slim
        self._coupling: Coupling | None = None

    def plan(self, model: nn.Module) -> PruningPlan:
        """Decide what is pruned of a model.

        Raises:
            ConfigError: The configuration does not fit the model, or nothing of it can be made slim.
        """
        plan = plan_pruning(model, self._config)
        if self._slim is None:
            return plan
        if isinstance(self._config, FixedMasks):
            raise ConfigError(
                "slim must be left out with FixedMasks: it chooses channels, and masks from elsewhere leave nothing to "
                "choose. Train without it, and cut out what is dead with lightning_prune.slim.slim."
            )
        if any(is_sharded(planned.parameter) for planned in plan):
            raise ConfigError(
                "slim ranks channels of several parameters together, and needs all of them in one process, but the "
                "model is sharded over several (DTensor). Train it with DDP, or without slim, and make a checkpoint "
                "slim afterwards with lightning_prune.slim.slim."
            )
        if self._coupling is None:
            self._coupling = self._find(model, self._slim)
        return couple_plan(plan, model, self._coupling)

    @staticmethod
    def _find(model: nn.Module, settings: Slim) -> Coupling:
        from lightning_prune.slim import find_coupling

        try:
            return find_coupling(model, settings.inputs_of(model), keep=settings.keep)
        except SlimError as error:
            raise ConfigError(f"slim: {error}") from error
