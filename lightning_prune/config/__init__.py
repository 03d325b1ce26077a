"""Configuration: what is pruned, how, and by which schedule. Every value is checked when it is set.

Three levels, the nearer wins: ``module_name_configs`` (regular expressions that match whole names) over
``module_type_configs`` over ``global_config``. ``None`` at any level leaves what it matches dense.
"""

from __future__ import annotations

from lightning_prune.config.fixed import FixedMasks
from lightning_prune.config.levels import MagnitudePrunerConfig
from lightning_prune.config.loading import load_config
from lightning_prune.config.rules import ModuleMagnitudePrunerConfig
from lightning_prune.config.scores import Score, score_name

__all__ = ["FixedMasks", "MagnitudePrunerConfig", "ModuleMagnitudePrunerConfig", "Score", "load_config", "score_name"]
