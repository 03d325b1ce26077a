"""The state of all layers, taken and put back, whatever the processes that hold them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightning_prune.errors import CheckpointError
from lightning_prune.masks import gather_state, holds_nan
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.state import ParameterState, dump_state, parse_state
from lightning_prune.pruner.timeline import Asked, Timeline
from lightning_prune.sharding import add_up, is_sharded, local_part, require_same, run_together

__all__ = ["Restored", "dump_layers", "is_in_any_process", "parse_layers", "require_same_layers"]


class Restored:
    """A state that was checked against the layers of now, and not yet put back.

    Attributes:
        step_count: Optimizer steps that were made.
        timeline: The layers as they were saved; masks and weights are still those of now.
        behind: What the rules of now ask for beyond that, by this step.
    """

    def __init__(self, step_count: int, layers: Sequence[Layer], states: Sequence[ParameterState]) -> None:
        self.step_count = step_count
        self.timeline = Timeline([layer.restored(saved) for layer, saved in zip(layers, states, strict=True)])
        self._states = states
        pairs = list(zip(self.timeline.layers, states, strict=True))
        changed = [layer for layer, saved in pairs if saved.is_other_rule]
        ranked = [layer for layer in changed if layer.plan.given is None]
        self.behind: Asked = self.timeline.behind(ranked, 1, step_count)
        self.behind += [(layer, layer.target_sparsity) for layer in changed if layer.plan.given is not None]
        late = {id(layer) for layer, _ in self.behind}
        for layer, saved in pairs:
            if id(layer) in late:
                _need_numbers(layer, saved)

    def put_back(self) -> None:
        """Write masks and dense values. It does not fail: all is checked."""
        for layer, saved in zip(self.timeline.layers, self._states, strict=True):
            layer.held.mask.copy_(saved.mask)
            layer.held.restore(saved.pruned_values)


def dump_layers(step_count: int, scope: Scope, layers: Sequence[Layer]) -> dict[str, Any]:
    """Give the state as plain values; every process that holds a part of a weight must do so."""
    states = ((layer.plan, _state_of(layer)) for layer in layers)  # a layer at a time lies in memory as a whole
    return dump_state(step_count, scope, ((planned, state) for planned, state in states if state is not None))


def parse_layers(
    state: Mapping[str, Any], scope: Scope, layers: Sequence[Layer], *, allow_config_change: bool
) -> Restored:
    """Check what :func:`dump_layers` gave; nothing is changed.

    Raises:
        CheckpointError: The state is damaged, or does not fit the layers.
    """
    step_count, states = parse_state(
        state,
        [layer.plan for layer in layers],
        scope=scope,
        boxes=[layer.sharding.box for layer in layers],
        allow_config_change=allow_config_change,
    )
    return Restored(step_count, layers, states)


def require_same_layers(step_count: int, layers: Sequence[Layer]) -> None:
    """Check that all replicas have the same schedules, weights and masks; a collective of a few bytes a layer."""
    configs = [replace(layer.plan.config, scheduler=layer.schedule).described() for layer in layers]
    rules = json.dumps(configs, default=repr)
    values = {"The schedule": zlib.crc32(f"{step_count} {rules}".encode())}
    for layer in layers:
        if not is_sharded(layer.held.parameter):
            values[layer.plan.name] = layer.held.fingerprint()
    require_same(values, "weights and masks", device=layers[0].held.mask.device)


def is_in_any_process(is_true: bool, layers: Sequence[Layer]) -> bool:
    """Whether it is true in any of the processes that hold parts of the weights."""
    sharded = [layer for layer in layers if not layer.sharding.is_whole][:1]
    found = run_together([(layer.sharding, add_up([int(is_true)], layer.held.mask.device)) for layer in sharded])
    return any(count > 0 for (count,) in found) if found else is_true


def _state_of(layer: Layer) -> ParameterState | None:
    """The state of a layer as a whole; None in a process that others hold parts for but which gathers none."""
    held, shape = layer.held, layer.plan.layout.mask_shape(layer.plan.shape)
    mask, weight = held.mask.view(torch.bool), local_part(held.parameter)
    gathered = gather_state(mask, held.pruned_values(), weight, layer.sharding, shape)
    if gathered is None:
        return None
    return ParameterState(layer.initial_sparsity, layer.sparsity, *gathered, layer.floor, layer.schedule)


def _need_numbers(layer: Layer, saved: ParameterState) -> None:
    """Refuse a state from which a layer is to be pruned further, but cannot be ranked."""
    if not layer.sharding.is_whole:
        return  # all processes are told by the update itself
    values = saved.pruned_values
    if holds_nan(local_part(layer.held.parameter)) or (values is not None and holds_nan(values)):
        raise CheckpointError(
            f"{layer.plan.name} holds NaN, so it cannot be pruned as far as the rule of now asks. Resume from a "
            "checkpoint of before, or with the rule of the checkpoint."
        )
