"""Early values of a model, to which it goes back: taken, kept in a state, and put back under the masks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_prune.basics import uncompiled_name
from lightning_prune.errors import CheckpointError, ConfigError, LifecycleError
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.rewind import Rewind
from lightning_prune.pruner.state_values import MOST_STEPS, StateValues
from lightning_prune.pruner.timeline import Timeline
from lightning_prune.sharding import is_sharded

__all__ = ["Rewinding", "refuse_lost_rewinding"]

_KEY = "rewind"


class Rewinding:
    """Takes the values of a model at one step, and sets it back to them at others.

    Args:
        settings: What the user chose.
        model: The prepared model.
        layers: Its pruned parameters, which have masks.

    Raises:
        ConfigError: The model is sharded.
    """

    def __init__(self, settings: Rewind, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._settings, self._model, self._layers = settings, model, layers
        self._values: dict[str, Tensor] | None = None
        sharded = [name for name, tensor in self._tensors().items() if is_sharded(tensor)]
        if sharded:
            raise ConfigError(
                f"rewind needs the whole of each parameter in one process, but {sharded[0]} is sharded over several "
                "(DTensor). Train the model with DDP, or leave rewind out."
            )
        if settings.to_step == 0:
            self.take()

    def check(self, timeline: Timeline) -> None:
        """Refuse schedules that never come to a rewinding, or never to an end; those in units of a run come later.

        Raises:
            ConfigError: Says which.
        """
        if not all(layer.schedule.is_resolved for layer in timeline.layers):
            return
        for layer in timeline.layers:
            if layer.schedule.last_update_step is None:
                raise ConfigError(
                    f"rewind needs a schedule that knows its last update, but {layer.plan.rule}.scheduler, a "
                    f"{type(layer.schedule).__name__}, has none. Write update_steps, or begin and end."
                )
        last = timeline.last_update_step
        if last is not None and last <= self._settings.to_step:
            raise ConfigError(
                f"rewind.to_step must lie before the last update of the masks, at optimizer step {last}, got "
                f"{self._settings.to_step}: no weight would ever go back. Write an earlier to_step."
            )

    def take(self) -> None:
        """Copy the values of now to the memory of the processor; of pruned weights the dense ones."""
        for layer in self._layers:
            for part in layer.held.parts():
                part.dense()
        pruned = {id(part.parameter) for layer in self._layers for part in layer.held.parts()}
        try:
            self._values = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in self._tensors().items()
                if not isinstance(tensor, nn.Parameter) or tensor.requires_grad or id(tensor) in pruned
            }
        finally:
            for layer in self._layers:
                layer.held.settle()

    def after_step(self, step_count: int, optimizers: Sequence[Optimizer]) -> None:
        """Take the values if this is the step.

        Raises:
            LifecycleError: No optimizer is known, so that none can forget.
        """
        if not optimizers:
            raise LifecycleError(
                "step() with rewind must know the optimizers, which forget the momentum of what goes back. Call "
                "pruner.attach_optimizers(optimizer) after prepare()."
            )
        if step_count == self._settings.to_step:
            self.take()

    def skip(self, first: int, last: int) -> None:
        """Follow a schedule that goes from one step to a later one at once.

        Raises:
            ConfigError: The values are of a step that is left out.
        """
        if first <= self._settings.to_step < last:
            raise ConfigError(
                f"rewind.to_step must be a step of this run, which begins after optimizer step {last}, got "
                f"{self._settings.to_step}: the values of that step are not known. Write {last}, or begin anew."
            )
        if last == self._settings.to_step:
            self.take()

    def is_due(self, timeline: Timeline, step_count: int, *, has_changed: bool) -> bool:
        """Whether weights go back after an update of the masks at this step, which may have had nothing to compute."""
        if step_count <= self._settings.to_step:
            return False
        return has_changed if self._settings.at == "round" else step_count == timeline.last_update_step

    def put_back(self, optimizers: Iterable[Optimizer]) -> None:
        """Set everything back to the values that were taken, under the masks of now, and let optimizers forget it."""
        if self._values is None:
            raise LifecycleError(f"The values of optimizer step {self._settings.to_step} were never taken.")
        tensors = self._tensors()
        with torch.no_grad():
            for name, value in self._values.items():
                tensors[name].copy_(value)
        for layer in self._layers:
            layer.held.forget()
        for optimizer in optimizers:
            for name in self._values:
                optimizer.state.pop(tensors[name], None)

    def state_dict(self) -> dict[str, Any]:
        """Give settings and values as plain numbers and tensors, under a key of their own."""
        settings, values = self._settings, self._values
        digest = None if values is None else _digest(values)
        return {_KEY: {"to_step": settings.to_step, "at": settings.at, "values": values, "digest": digest}}

    def read(self, state: Mapping[str, Any], step_count: int, *, allow_config_change: bool) -> dict[str, Tensor] | None:
        """Check the values of a state, for :meth:`take_over`; nothing is changed.

        Raises:
            CheckpointError: They are damaged, do not fit the model, or are those of another step.
        """
        settings, entry = self._settings, None
        saved = state.get(_KEY)
        if saved is not None:
            entry = StateValues(saved, " of rewinding")
            before = (entry.integer("to_step", most=MOST_STEPS), entry.text("at"))
            if before != (settings.to_step, settings.at) and not allow_config_change:
                raise CheckpointError(
                    f"The pruning state was saved with Rewind(to_step={before[0]}, at={before[1]!r}), but this is a "
                    f"run with {settings}. Resume with the settings of the checkpoint, or pass "
                    "allow_config_change=True."
                )
            entry = entry if before[0] == settings.to_step else None
        elif not allow_config_change:
            raise CheckpointError(
                f"The pruning state was saved without rewind, but this is a run with {settings}. Resume without it, or "
                "pass allow_config_change=True."
            )
        values = None if entry is None or entry.any("values") is None else self._read_values(entry)
        if values is None and step_count >= settings.to_step:
            raise CheckpointError(
                f"The pruning state is of optimizer step {step_count}, and has no values of step {settings.to_step} to "
                "go back to. Resume from a checkpoint of before, or write a later to_step."
            )
        return values

    def take_over(self, values: dict[str, Tensor] | None) -> None:
        """Go on with the values that a state had."""
        self._values = values

    def _read_values(self, entry: StateValues) -> dict[str, Tensor]:
        saved, tensors = StateValues(entry.any("values"), " of rewinding"), self._tensors()
        unknown = [str(name) for name in saved if name not in tensors]
        if unknown:
            raise CheckpointError(
                f"The pruning state has an early value of {unknown[0]}, which the model does not have. Resume with the "
                "model of the checkpoint."
            )
        values = {name: saved.tensor(name, tensors[name]) for name in saved}
        if _digest(values) != entry.integer("digest", most=2**32 - 1):
            raise entry.damaged("its digest does not fit its content")
        return values

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that goes back, by the names that it has without pruning."""
        pruned = {id(layer.held.parameter): layer.plan.name for layer in self._layers}
        found: dict[str, Tensor] = {}
        for name, parameter in self._model.named_parameters():
            if isinstance(parameter, UninitializedParameter):
                raise ConfigError(f"rewind: {name} has no shape yet. Run one batch before the model is prepared.")
            found[pruned.get(id(parameter), uncompiled_name(name))] = parameter
        for name, module in self._model.named_modules():
            if isinstance(module, _NormBase):
                for key, buffer in module.named_buffers(prefix=uncompiled_name(name), recurse=False):
                    found[key] = buffer
        return found


def refuse_lost_rewinding(state: Mapping[str, Any], *, allow_config_change: bool) -> None:
    """Refuse a state with early values in a run that would not use them.

    Raises:
        CheckpointError: It has some.
    """
    if state.get(_KEY) is not None and not allow_config_change:
        raise CheckpointError(
            "The pruning state was saved with rewind, but this run has none. Resume with that of the checkpoint, or "
            "pass allow_config_change=True to go on without it."
        )


def _digest(values: Mapping[str, Tensor]) -> int:
    digest = 0
    for value in values.values():
        digest = zlib.crc32(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), digest)
    return digest
