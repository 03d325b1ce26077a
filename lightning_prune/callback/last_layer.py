"""The last layer of a model, and a warning before pruning empties outputs of it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lightning_prune.basics import is_compiled, uncompiled_name
from lightning_prune.plan import (
    SUPPORTED_MODULES,
    PrunedParameter,
    PruningPlan,
    dense_advice,
)

__all__ = ["LastLayerWatch"]


class LastLayerWatch:
    """Sees which layer runs last before the first backward pass, and warns if a rule for all empties outputs of it.

    Only rules by type and ``global_config`` that prune whole output channels count; without such a rule nothing is
    watched. Frozen modules (a teacher, the network of a metric) are no last layer. Nor is anything known of a model
    that is compiled, in whole or in part: a hook would be compiled in. No module carries a hook: a single hook of torch
    sees all modules until :meth:`close`, so that a copy of a module that is made meanwhile is clean.

    Args:
        model: The model, about to be trained.
        plan: What is pruned of it.
    """

    def __init__(self, model: nn.Module, plan: PruningPlan) -> None:
        self._concerned = {
            id(parameter.owners[0].module): parameter for parameter in plan if _empties_outputs(parameter)
        }
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
        parameter = None if last is None else self._concerned.get(id(last))
        if last is None or parameter is None:
            return
        outputs = parameter.shape[0]
        constant = parameter.target_zeros // (parameter.numel // outputs)
        name = self._names[id(last)]
        advice = dense_advice([name], [other for other in self._names.values() if other != name])
        rank_zero_warn(
            f"{parameter.rule} prunes whole outputs of the layer that runs last, {name or '(root)'} "
            f"({type(last).__name__}): at the target {constant} of its {outputs} outputs are the same for every input. "
            f"Leave it dense: {advice}."
        )


def _empties_outputs(parameter: PrunedParameter) -> bool:
    """Whether a rule that names no module zeroes whole outputs of it, at its target."""
    is_named = parameter.rule.startswith("module_name_configs")
    has_outputs_first = isinstance(parameter.owners[0].module, SUPPORTED_MODULES)
    is_structured = parameter.layout.empties_channels and len(parameter.shape) > 1
    return is_structured and has_outputs_first and not is_named and parameter.target_zeros > 0


def _has_trained_weights(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 and parameter.requires_grad for parameter in module.parameters(recurse=False))
