"""Where pruning has come to: steps, updates, and the masks that they have left. What a step does is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from lightning_prune.basics import as_whole
from lightning_prune.errors import ConfigError, shown
from lightning_prune.masking import MaskingWay
from lightning_prune.plan import PruningPlan
from lightning_prune.pruner.choices import Scope
from lightning_prune.pruner.finalizing import do_all
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.measuring import measure_sharded, measure_whole
from lightning_prune.pruner.replaced import need_own_parameters, warn_of_replaced
from lightning_prune.pruner.report import MaskChanges
from lightning_prune.pruner.restoring import Restored, dump_layers, is_in_any_process, parse_layers
from lightning_prune.pruner.rewind import Rewind
from lightning_prune.pruner.rewinding import Rewinding, refuse_lost_rewinding
from lightning_prune.pruner.starting import attach_layers, find_starts
from lightning_prune.pruner.state_values import MOST_STEPS
from lightning_prune.pruner.timeline import Asked, ScheduleGroup, Timeline
from lightning_prune.pruner.training import Training
from lightning_prune.pruner.updating import update_layers
from lightning_prune.schedules import TrainingRun

__all__ = ["Progress"]


class Progress:
    """Layers of a model while they are pruned; without layers, a model that is not prepared.

    Args:
        model: The model that they are part of.
        training: What trains it.
        scope: What is ranked together at an update.
        track_changes: Whether to count what each update changes.
        rewind: Whether, and when, weights go back to early values.

    Attributes:
        step_count: Optimizer steps so far.
        update_count: Update steps that were made.
        changes: What the last computation of masks changed; None before it, and without ``track_changes``.
        timeline: The layers by their schedules.
        training: What trains the model.
        is_guarded: Whether state dicts have pruned weights under plain names.
        is_detached: Whether the zeros are permanent.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        scope: Scope = "layer",
        *,
        track_changes: bool = False,
        rewind: Rewind | None = None,
    ) -> None:
        self.step_count = self.update_count = 0
        self.changes: MaskChanges | None = None
        self.timeline, self.training = Timeline(), training
        self.is_guarded = self.is_detached = False
        self._model, self._scope, self._track_changes = model, scope, track_changes
        self._rewind, self._rewinding = rewind, cast("Rewinding | None", None)  # made when there are layers
        self._start_prints: list[int] | None = None  # fingerprints of what training starts from, if that is known

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order of the plan."""
        return self.timeline.layers

    def attach(self, plan: PruningPlan, way: MaskingWay, *, keep_zeros: bool) -> None:
        """Put masks on all planned parameters, and compute those of layers that are trained.

        Where this fails, :meth:`take_off` takes off what was attached.
        """
        starts = find_starts(plan, self._scope, keep_zeros=keep_zeros)
        self.timeline = Timeline(attach_layers(plan, way, starts))
        of_layers = {id(layer): start for layer, start in zip(self.layers, starts, strict=True)}
        trained = [(layer, of_layers[id(layer)]) for layer in self.training.trained_among(self.layers)]
        sparse = [(layer, start) for layer, start in trained if start.sparsity or start.kept]
        zeros = [start.kept for _, start in sparse if start.kept is not None]  # of all of them, or of none
        asked = [(layer, start.sparsity) for layer, start in sparse]
        by_layer = [sparsity for _, sparsity in asked] if self._scope == "layer" else None
        self._update(asked, zeros or by_layer)
        measure_sharded(self.layers)
        if self._rewind is not None:
            self._rewinding = Rewinding(self._rewind, self._model, self.layers)
            self._rewinding.check(self.timeline)

    def guard_state_dicts(self) -> None:
        """Let every state dict have pruned weights under plain names, until the masks are taken off or detached."""
        self.is_guarded = True
        for layer in self.layers:
            layer.held.guard_state_dict()

    def resolve(self, run: TrainingRun) -> None:
        """Write schedules in units of a run as steps; all of them or, where that fails, none."""
        schedules = [layer.resolved(run, self.step_count) for layer in self.layers]
        for layer, schedule in zip(self.layers, schedules, strict=True):
            layer.follow(schedule)
        self.timeline = Timeline(self.layers)
        if self._rewinding is not None and self.step_count == 0:
            self._rewinding.check(self.timeline)

    def step(self) -> None:
        """Count a step, and make the updates that are due; where they fail, it is not counted."""
        timeline, training = self.timeline, self.training
        training.after_step(timeline.layers, self._model)
        if self._rewinding is not None:
            self._rewinding.after_step(self.step_count + 1, training.optimizers)
        self.step_count += 1
        if training.may_wait:
            self._make_up()
        due = timeline.due_at(self.step_count)
        if due:
            try:
                need_own_parameters(timeline.layers, self._model)
                self._update_groups(due)
            except BaseException:
                self.step_count -= 1  # a later call makes up for it
                raise

    def fast_forward(self, step_count: int) -> None:
        """Go to a later step at once, pruning as far as the schedules have come by then.

        Raises:
            ConfigError: There is no such later step.
        """
        step_count = as_whole("step_count", step_count, least=0)
        if step_count < self.step_count:
            raise ConfigError(f"step_count must be at least {self.step_count}, the steps made, got {step_count}.")
        if step_count > MOST_STEPS:
            raise ConfigError(f"step_count must be at most {MOST_STEPS} optimizer steps, got {shown(step_count)}.")
        if self._rewinding is not None:
            self._rewinding.skip(self.step_count, step_count)
        first, self.step_count = self.step_count + 1, step_count
        moving = [layer for layer in self.layers if not layer.is_continued or layer.has_ended(step_count)]
        self._catch_up(self.timeline.behind(self.training.trained_among(moving), first, step_count))
        self.note_start()

    def restore_dense(self, dense: Mapping[str, Tensor]) -> None:
        """Put back what another library had pruned away, from whole dense weights by the names of parameters."""
        for layer in self.layers:
            weight = dense.get(layer.plan.name)
            if weight is not None and tuple(weight.shape) == layer.plan.shape:
                layer.restore_dense(weight)
        self.note_start()

    def retake_start(self) -> None:
        """Take the values of now for those of step 0 to which weights go back, if they do."""
        if self._rewinding is not None and self.step_count == 0:
            self._rewinding.skip(0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Give the state as plain values; every process that holds a part of a weight must do so."""
        state = dump_layers(self.step_count, self._scope, self.layers)
        return state if self._rewinding is None else state | self._rewinding.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], *, allow_config_change: bool) -> None:
        """Go on from a state, which is checked as a whole before anything is changed."""
        restored = parse_layers(state, self._scope, self.layers, allow_config_change=allow_config_change)
        if self._rewinding is None:
            refuse_lost_rewinding(state, allow_config_change=allow_config_change)
            self._resume(restored)
        else:
            values = self._rewinding.read(state, restored.step_count, allow_config_change=allow_config_change)
            self._resume(restored)
            self._rewinding.take_over(values)

    def note_start(self, *, anew: bool = False) -> None:
        """Remember the weights that training will start from, unless it was forgotten; ``anew`` if it was."""
        if anew or self._start_prints is not None:
            self._start_prints = self._fingerprints()

    def was_written(self) -> bool:
        """Whether something has written to the weights, in any process, since :meth:`note_start`."""
        if self._start_prints is None:
            return False
        return is_in_any_process(self._start_prints != self._fingerprints(), self.layers)

    def take_off(self) -> None:
        """Take all masks off, and put back what they pruned away."""
        do_all([*self.training.removals(), *(layer.held.undo for layer in self.layers)])

    def detach(self) -> None:
        """Make the zeros permanent; the layers stay for a report."""
        measure_whole(self.layers)
        warn_of_replaced(self.layers, self._model)
        self.is_detached = True
        do_all([*self.training.removals(), *(layer.held.detach for layer in self.layers)])

    def _resume(self, restored: Restored) -> None:
        """Go on from a state, and as far as the rules of now ask for beyond it."""
        self.step_count, self.timeline, self._start_prints = restored.step_count, restored.timeline, None
        restored.put_back()
        self._catch_up(restored.behind)

    def _update(self, asked: Asked, zeros: list[float] | None = None) -> None:
        changed = update_layers(asked, self._scope, zeros=zeros, track_changes=self._track_changes)
        if self._track_changes:
            self.changes = MaskChanges(*changed, sum(layer.plan.numel for layer in self.layers))

    def _update_groups(self, due: list[ScheduleGroup]) -> None:
        """Make the update of this step."""
        trained_among = self.training.trained_among
        asked = [pair for group in due for pair in group.asked_at(self.step_count, trained_among(group.layers))]
        self._update(asked)
        self.update_count += 1
        self.training.find_unattached(self.layers)
        rewinding = self._rewinding
        if rewinding is not None and rewinding.is_due(self.timeline, self.step_count, has_changed=bool(asked)):
            rewinding.put_back(self.training.optimizers)
        self._end_update()

    def _catch_up(self, asked: Asked) -> None:
        """Prune layers that are behind their schedules."""
        self._update(asked)
        self.update_count += 1 if asked else 0
        self._end_update()

    def _end_update(self) -> None:
        self.timeline.release_ended(self.step_count)
        measure_sharded(self.layers)

    def _make_up(self) -> None:
        """Prune what was left out of the last update of its schedule, and is trained by now."""
        late = [layer for layer in self.layers if layer.is_late(self.step_count)]
        trained = self.training.trained_among(late) if late else []
        if trained:
            self._catch_up(self.timeline.behind(trained, 1, self.step_count))

    def _fingerprints(self) -> list[int]:
        return [layer.held.fingerprint() for layer in self.layers]
