"""The last layer of a model, and a warning before pruning empties outputs of it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lightning_prune.plan import (
    SUPPORTED_MODULES,
    PrunedParameter,
    PruningPlan,
    dense_advice,
    is_compiled,
    uncompiled_name,
)

__all__ = ["LastLayerWatch"]


class LastLayerWatch:
    """Sees which layer runs last before the first backward pass, and warns if a rule for all empties outputs of it.

    Only rules by type and ``global_config`` that prune whole output channels are meant; without one nothing is watched.
    Frozen modules (a teacher, the network of a metric) are no last layer. Nor is anything known of a model that is
    compiled, in whole or in part: a hook would be compiled in. No module carries a hook: one for all of them is there
    until :meth:`close`, so that a copy of a module that is made meanwhile is clean.

    Args:
        model: The model, about to be trained.
        plan: What is pruned of it.
    """

    def __init__(self, model: nn.Module, plan: PruningPlan) -> None:
        self._concerned = {id(one.owners[0].module): one for one in plan if _empties_outputs(one)}
        self._names = {id(module): uncompiled_name(name) for name, module in model.named_modules()}
        self._trained = {id(module) for module in model.modules() if _has_trained_weights(module)}
        self._last: nn.Module | None = None
        self._handle: Any = None
        if self._concerned and not any(map(is_compiled, model.modules())):
            self._handle = register_module_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in self._trained:
            self._last = module

    def close(self) -> None:
        """Take the hook off; what has run until now is known."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def warn(self) -> None:
        """Say once what would become of the last layer, and how to leave it dense."""
        self.close()
        last, self._last = self._last, None
        one = None if last is None else self._concerned.get(id(last))
        if last is None or one is None:
            return
        outputs = one.shape[0]
        constant = one.target_zeros // (one.numel // outputs)
        name = self._names[id(last)]
        advice = dense_advice([name], [other for other in self._names.values() if other != name])
        rank_zero_warn(
            f"{one.rule} prunes whole outputs of the layer that runs last, {name or '(root)'} "
            f"({type(last).__name__}): at the target {constant} of its {outputs} outputs are the same for every input. "
            f"Leave it dense: {advice}."
        )


def _empties_outputs(one: PrunedParameter) -> bool:
    """Whether a rule that names no module zeroes whole outputs of it, at its target."""
    is_named = one.rule.startswith("module_name_configs")
    has_outputs_first = isinstance(one.owners[0].module, SUPPORTED_MODULES)
    is_structured = one.config.structure.empties_channels and len(one.shape) > 1
    return is_structured and has_outputs_first and not is_named and one.target_zeros > 0


def _has_trained_weights(module: nn.Module) -> bool:
    return any(one.ndim > 1 and one.requires_grad for one in module.parameters(recurse=False))
