"""The state of a pruner as plain numbers and tensors, which ``torch.load(weights_only=True)`` accepts.

Masks travel as bits, pruned-away values as one tensor a parameter. A state is checked as a whole before any of it is
used, so that a damaged one never leaves a model half restored.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.errors import CheckpointError, first_names, one_line, shown
from lightning_prune.masks import FORMATS
from lightning_prune.plan import PrunedParameter
from lightning_prune.pruner.state_values import MOST_STEPS, StateValues
from lightning_prune.schedules import (
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    GeometricDecayScheduler,
    PolynomialDecayScheduler,
    PruningScheduler,
)
from lightning_prune.sharding import Box, Sharding

__all__ = [
    "FORMAT_VERSION",
    "ParameterState",
    "dump_state",
    "parse_state",
]

FORMAT_VERSION = 1
_UNSAID = {"pruned_gradient": "zero", "decay": 0.0}  # what a rule means that does not say it
_OURS = (ConstantSparsityScheduler, CosineDecayScheduler, GeometricDecayScheduler, PolynomialDecayScheduler)
_BITS = 2**24  # bits of a mask that are counted at a time


@dataclass(frozen=True)
class ParameterState:
    """What is remembered of one pruned parameter.

    Attributes:
        initial_sparsity: Fraction of zeros from which the schedule started.
        sparsity: Fraction of zeros that the schedule asked for last.
        mask: Bytes 0 and 1 that broadcast over the weight.
        pruned_values: Dense values where the mask is 0, in its order; None if they are forgotten or all zero.
        floor: Fraction of zeros below which the schedule may not fall, after a change of rules.
        schedule: The schedule in steps. What is saved holds it only where the rule has it in units of the run; what is
            read holds it only where the rule is still the same.
        is_other_rule: Whether the rule was another one when the state was saved.
    """

    initial_sparsity: float
    sparsity: float
    mask: Tensor
    pruned_values: Tensor | None
    floor: float = 0.0
    schedule: PruningScheduler | None = None
    is_other_rule: bool = False


def dump_state(
    step_count: int, scope: str, parameters: Iterable[tuple[PrunedParameter, ParameterState]]
) -> dict[str, Any]:
    """Turn the state of a pruner into plain values."""
    entries = {planned.name: _dump_parameter(planned, state) for planned, state in parameters}
    return {"version": FORMAT_VERSION, "step_count": step_count, "scope": scope, "parameters": entries}


def parse_state(
    state: Mapping[str, Any],
    parameters: Sequence[PrunedParameter],
    *,
    scope: str = "layer",
    boxes: Sequence[Box] | None = None,
    allow_config_change: bool = False,
) -> tuple[int, list[ParameterState]]:
    """Check a state against the parameters that it must fit, and read it.

    Args:
        state: What :func:`dump_state` gave.
        parameters: The parameters that are pruned now.
        scope: What is ranked together now, a layer or all of them.
        boxes: For each parameter the part that this process holds. If not given, all of them whole.
        allow_config_change: Accept that a rule (a target, a schedule) differs from the one that the state was saved
            with; names and shapes must fit all the same.

    Returns:
        The step count, and one :class:`ParameterState` for each of ``parameters``.

    Raises:
        CheckpointError: The state is damaged, of an unknown version, or belongs to another model or configuration.
    """
    values = StateValues(state, "")
    version = values.any("version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"The pruning state has format version {shown(version)}, this version of lightning_prune reads "
            f"{FORMAT_VERSION}. Load it with the version that wrote it."
        )
    step_count = values.integer("step_count", most=MOST_STEPS)
    is_old = "scope" not in values  # all was ranked by layers then, and no state had a schedule
    saved_scope = "layer" if is_old else values.text("scope")
    entries = values.any("parameters")
    _check_names(list(StateValues(entries, "")), [planned.name for planned in parameters])
    if not allow_config_change and saved_scope != scope:
        raise CheckpointError(
            f'The pruning state was saved with scope="{shown(saved_scope)[1:-1]}", but this is a run with '
            f'scope="{scope}". Resume with the scope of the checkpoint, or pass allow_config_change=True to go on with '
            "this one."
        )
    saved = [StateValues(entries[planned.name], f" of {planned.name}") for planned in parameters]
    if not allow_config_change:
        for planned, entry in zip(parameters, saved, strict=True):
            _check_rule(planned, entry)
    parts = [Sharding.of_one(planned.shape).box for planned in parameters] if boxes is None else boxes
    return step_count, [
        _parse_parameter(planned, entry, box, is_old=is_old)
        for planned, entry, box in zip(parameters, saved, parts, strict=True)
    ]


def _check_names(saved: list[Any], now: list[str]) -> None:
    """Refuse a state of other parameters than are pruned now."""
    known, there = set(now), set(saved)
    lost = [name if isinstance(name, str) else shown(name) for name in saved if name not in known]
    new = [name for name in now if name not in there]
    if lost or new:
        changes = [f"the checkpoint pruned {first_names(lost)}, which are not pruned now"] if lost else []
        changes += [f"pruned now, but not in the checkpoint: {first_names(new)}"] if new else []
        raise CheckpointError(
            f"The pruning state belongs to another model or configuration: {'; '.join(changes)}. "
            "Resume with the model and rules of the checkpoint, or load only its weights and start a new fit, "
            "which continues from their sparsity."
        )


def _dump_parameter(planned: PrunedParameter, state: ParameterState) -> dict[str, Any]:
    packed = torch.from_numpy(np.packbits(state.mask.cpu().contiguous().numpy().reshape(-1)))
    values = None if state.pruned_values is None else state.pruned_values.cpu()
    return {
        "shape": list(planned.shape),
        "rule": _rule_text(planned),
        "schedule": _schedule_text(planned, state),
        "initial_sparsity": state.initial_sparsity,
        "sparsity": state.sparsity,
        "floor": state.floor,
        "mask": packed,
        "mask_shape": list(state.mask.shape),
        "pruned_values": values,
        "digest": _digest(packed, values),
    }


def _parse_parameter(planned: PrunedParameter, entry: StateValues, box: Box, *, is_old: bool) -> ParameterState:
    shape, saved_shape = entry.shape("mask_shape"), entry.shape("shape")
    if saved_shape != tuple(planned.shape):
        raise CheckpointError(
            f"{planned.name} has shape {shown(list(saved_shape))} in the pruning state and {list(planned.shape)} now. "
            "Resume with the model of the checkpoint."
        )
    if shape != planned.layout.mask_shape(planned.shape):
        raise CheckpointError(
            f"{planned.name}: the mask of the checkpoint has shape {shown(shape)}, which does not fit the structure "
            f"{planned.structure} of now. Resume with the structure of the checkpoint."
        )
    groups = prod(shape)
    packed = entry.vector("mask", -(-groups // 8), (torch.uint8,)).contiguous()
    values = None
    if entry.any("pruned_values") is not None:
        pruned = (groups - _count_kept(packed, 0, groups)) * (prod(planned.shape) // max(groups, 1))
        values = entry.vector("pruned_values", pruned, tuple(FORMATS)).contiguous()
    if _digest(packed, values) != entry.integer("digest", most=2**32 - 1):
        raise entry.damaged("its digest does not fit its content")
    if box.shape == saved_shape:
        mask = _unpack(packed, 0, groups).reshape(shape)
    else:
        mask, values = _cut_out(packed, shape, values, planned.shape, box)
    is_other_rule = entry.text("rule") != _rule_text(planned)
    has_schedule = not (is_old and "schedule" not in entry) and entry.any("schedule") is not None
    return ParameterState(
        entry.fraction("initial_sparsity"),
        entry.fraction("sparsity"),
        mask,
        values,
        entry.fraction("floor"),
        None if not has_schedule or is_other_rule else _read_schedule(planned, entry),
        is_other_rule,
    )


def _unpack(packed: Tensor, start: int, stop: int) -> Tensor:
    """Bits ``start`` to ``stop`` of a packed mask, as bytes 0 and 1."""
    first = start // 8
    bits = np.unpackbits(packed.numpy()[first : -(-stop // 8)], count=stop - 8 * first)
    return torch.from_numpy(bits[start - 8 * first :])


def _count_kept(packed: Tensor, start: int, stop: int) -> int:
    """Number of bits ``start`` to ``stop`` that are 1."""
    pieces = (_unpack(packed, at, min(at + _BITS, stop)) for at in range(start, stop, _BITS))
    return sum(int(piece.sum(dtype=torch.int64)) for piece in pieces)


def _cut_out(
    packed: Tensor, mask_shape: tuple[int, ...], values: Tensor | None, shape: tuple[int, ...], box: Box
) -> tuple[Tensor, Tensor | None]:
    """The part of a mask, and of the pruned values, of one box of the weight; no whole weight is made."""
    part = box.narrowed(mask_shape)
    width, (rows, *rest) = prod(mask_shape[1:]), part.shape
    top = part.start[0] if prod(part.shape) else 0
    strip = _unpack(packed, top * width, (top + rows) * width).reshape(rows, *mask_shape[1:])  # whole rows
    mask = strip[part.within(Box((top, *(0 for _ in rest)), part.stop))]
    if values is None:
        return mask, None
    repeats = prod(shape) // prod(mask_shape)
    before = top * width - _count_kept(packed, 0, top * width)
    pruned = strip.expand(rows, *shape[1:]) == 0
    dense = values.new_zeros(pruned.shape)
    dense[pruned] = values[before * repeats : before * repeats + int(pruned.sum())]
    dense = dense[box.within(Box((top, *(0 for _ in rest)), box.stop))] if prod(box.shape) else dense[:0]
    return mask, dense[mask.expand(dense.shape) == 0]


def _check_rule(planned: PrunedParameter, entry: StateValues) -> None:
    text = _rule_text(planned)
    if entry.text("rule") == text:
        return
    before, now = entry.json("rule"), json.loads(text)
    if not isinstance(before, dict):
        raise entry.damaged(f"rule must be a dict, got {shown(before)}")
    for field in {**now, **before}:
        was, is_now = (rule.get(field, _UNSAID.get(field)) for rule in (before, now))
        if was != is_now:
            raise CheckpointError(
                f"{planned.name}: {field} was {_value(was)} in the checkpoint and is {_value(is_now)} now. Resume with "
                "the configuration of the checkpoint, or pass allow_config_change=True to change it."
            )


def _value(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 100 else shown(value)


def _rule_text(planned: PrunedParameter) -> str:
    """The rule as the user wrote it: a run that is resumed for longer has the same rule."""
    if planned.given is not None:
        return json.dumps({"fixed_masks": planned.given.key})
    return json.dumps(planned.config.described(), default=repr)


def _schedule_text(planned: PrunedParameter, state: ParameterState) -> str | None:
    """The schedule in steps, of a rule that has it in units of the run; None where the rule says all."""
    if state.schedule is None or not state.schedule.is_resolved or planned.config.schedule.is_resolved:
        return None
    return _steps_text(planned, state.schedule)


def _steps_text(planned: PrunedParameter, schedule: PruningScheduler) -> str:
    return json.dumps(replace(planned.config, scheduler=schedule).described()["scheduler"], default=repr)


def _read_schedule(planned: PrunedParameter, entry: StateValues) -> PruningScheduler | None:
    """The schedule of the rule, with the steps that a state holds for it.

    It is the rule that says which schedule that is: no class is looked for that a file names. One of the user's own is
    not read at all; it is written in steps anew.
    """
    written, saved = planned.config.schedule, entry.json("schedule")
    if type(written) not in _OURS:
        return None
    arguments = saved.get("init_args", saved) if isinstance(saved, dict) else None
    if not isinstance(arguments, dict):
        raise entry.damaged(f"schedule must be a dict, got {shown(saved)}")
    name = "begin_step" if isinstance(written, ConstantSparsityScheduler) else "update_steps"
    steps = arguments.get(name)
    is_steps = type(steps) is int if name == "begin_step" else isinstance(steps, (list, str))
    is_steps = is_steps and not (isinstance(steps, list) and any(type(step) is not int for step in steps))
    in_units: dict[str, Any] = dict.fromkeys(("begin", "end", "frequency"))
    if name == "begin_step":
        in_units = {"frequency": arguments.get("frequency")}
        is_steps = is_steps and (in_units["frequency"] is None or type(in_units["frequency"]) is int)
    try:
        schedule: Any = replace(written, **{name: steps, **in_units}) if is_steps else None  # type: ignore[type-var]
    except (ValueError, OverflowError) as error:
        raise entry.damaged(f"schedule.{one_line(error)}") from error
    text = None if schedule is None else _steps_text(planned, schedule)
    if text is None or written.is_resolved or json.loads(text) != saved:
        raise entry.damaged(
            f"schedule must hold the {name} of the {type(written).__name__} of the rule, got {shown(saved)}"
        )
    last = schedule.last_update_step
    if last is not None and last > MOST_STEPS:
        raise entry.damaged(f"{name} must be at most {MOST_STEPS}, got {shown(last)}")
    return schedule  # type: ignore[no-any-return]


def _digest(packed: Tensor, values: Tensor | None) -> int:
    digest = zlib.crc32(packed.numpy().tobytes())
    return digest if values is None else zlib.crc32(values.contiguous().view(torch.uint8).numpy().tobytes(), digest)
