"""Layers by their schedules: which are due at a step, which are behind, and when all are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lightning_prune.errors import ConfigError
from lightning_prune.pruner.layer import Layer
from lightning_prune.schedules import PruningScheduler

__all__ = ["Asked", "ScheduleGroup", "Timeline"]

_NEARLY = 0.99  # of its target, which a schedule that cannot tell its end may never meet

Asked: TypeAlias = list[tuple[Layer, float]]
"""Layers whose masks are to be computed anew, each with the sparsity that its schedule asks for."""


class ScheduleGroup(NamedTuple):
    """Layers that share a schedule."""

    schedule: PruningScheduler
    layers: list[Layer]

    def asked_at(self, step: int, layers: Sequence[Layer]) -> Asked:
        """What the schedule asks of some of its layers at a step at which it is due, where their masks may change.

        Raises:
            ConfigError: A schedule of the user's own gave something that is no sparsity.
        """
        asked: Asked = []
        for layer in layers:
            sparsity = max(layer.floor, float(self.schedule.compute_sparsity(step, layer.sparsity, layer)))
            if sparsity != layer.sparsity or self.schedule.reselects(step):
                _need_fraction(layer, sparsity)
                asked.append((layer, sparsity))
        return asked

    def has_ended(self, step: int) -> bool:
        """Whether the last update of the schedule is made, or due at this step."""
        last = self.schedule.last_update_step
        return last is not None and step >= last


class Timeline:
    """Pruned layers, grouped so that a step with nothing due asks each distinct schedule once.

    Args:
        layers: In the order of the plan. A change of their schedules takes a new timeline.
    """

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.layers = list(layers)
        self.groups: list[ScheduleGroup] = []
        for layer in self.layers:
            for schedule, members in self.groups:
                if schedule is layer.schedule or schedule == layer.schedule:
                    members.append(layer)
                    break
            else:
                self.groups.append(ScheduleGroup(layer.schedule, [layer]))

    @property
    def last_update_step(self) -> int | None:
        """Step after which no mask changes; None if a schedule cannot tell."""
        schedules = [group.schedule for group in self.groups]
        lasts = [schedule.last_update_step if schedule.is_resolved else None for schedule in schedules]
        known = [last for last in lasts if last is not None]
        return max(known) if known and len(known) == len(lasts) else None

    def is_at_target(self, step: int) -> bool:
        """Whether the last update is made; if a schedule cannot tell which is the last, whether it pruned enough."""
        return all(
            all(layer.sparsity >= _NEARLY * layer.target_sparsity for layer in group.layers)
            if not group.schedule.is_resolved or group.schedule.last_update_step is None
            else group.has_ended(step)
            for group in self.groups
        )

    def due_at(self, step: int) -> list[ScheduleGroup]:
        """Groups that have an update at this step."""
        due = []
        for group in self.groups:  # a plain loop: this runs at every step of a training
            if group.schedule.is_due(step):
                due.append(group)
        return due

    def behind(self, chosen: Sequence[Layer], first: int, last: int) -> Asked:
        """Find which of the chosen layers are less sparse than their schedules ask for.

        Args:
            chosen: Layers to look at.
            first: Step from which the schedules are played.
            last: Step up to which they are played, inclusive.

        Raises:
            ConfigError: A schedule of the user's own gave something that is no sparsity.
        """
        asked: Asked = []
        wanted = {id(layer) for layer in chosen}
        for schedule, layers in self.groups:
            members = [layer for layer in layers if id(layer) in wanted]
            due = list(schedule.due_steps(first, last)) if members else []
            for layer in members:
                sparsity = layer.sparsity
                for step in due:
                    sparsity = float(schedule.compute_sparsity(step, sparsity, layer))
                if sparsity > layer.sparsity:
                    _need_fraction(layer, sparsity)
                    asked.append((layer, sparsity))
        return asked

    def release_ended(self, step: int) -> None:
        """Forget what was pruned away from layers whose masks do not change any more."""
        for group in self.groups:
            if group.has_ended(step):
                for layer in group.layers:
                    layer.held.release()


def _need_fraction(layer: Layer, sparsity: float) -> None:
    """Refuse a sparsity that a schedule of the user's own has given and that is none."""
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(
            f"{layer.plan.rule}.scheduler gave a sparsity of {sparsity}; it must be a fraction in [0, 1]."
        )
