"""The pruner: prepare a model, step with its optimizer, finalize it. No Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.basics import as_whole
from lightning_prune.config import load_config
from lightning_prune.errors import ConfigError, LifecycleError, shown
from lightning_prune.masking import Masking, way_of
from lightning_prune.plan import SUPPORTED_MODULES, PruningPlan, copy_module, plan_pruning, warn_of_dense
from lightning_prune.pruner import finalizing
from lightning_prune.pruner.choices import Scope, check_choices
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.measuring import measure, measure_sharded
from lightning_prune.pruner.report import MaskChanges, SparsityReport
from lightning_prune.pruner.restoring import dump_layers, is_in_any_process, parse_layers, require_same_layers
from lightning_prune.pruner.starting import attach_layers, find_starts
from lightning_prune.pruner.state_values import MOST_STEPS
from lightning_prune.pruner.timeline import Asked, ScheduleGroup, Timeline
from lightning_prune.pruner.training import Training
from lightning_prune.pruner.updating import update_layers
from lightning_prune.schedules import PruningScheduler, TrainingRun
from lightning_prune.sharding import is_sharded

__all__ = ["MagnitudePruner"]

_WAITS = "nothing trains it: it waits until an optimizer does"


class MagnitudePruner:
    """Makes a model sparse while it trains, keeping the weights that are largest in magnitude.

    At each update step of its schedule a layer's mask is computed anew from its dense weights, so that a weight that
    was pruned may return. Between updates the mask holds, and the optimizer trains what it keeps.

    Args:
        model: The model to prune.
        config: What to prune and how, in any form that :func:`~lightning_prune.config.load_config` reads.
        masking: How a mask is held. ``"hook"``: as Core ML Tools documents it, the module has ``weight_orig``,
            ``weight_mask`` and a forward pre-hook. ``"resident"``: ``weight`` stays the Parameter and always is the
            pruned weight; the optimizers must be given to :meth:`attach_optimizers`. Both train bit-equal networks.
        scope: What is ranked together at an update. ``"layer"``: each layer by itself, so that it has the sparsity that
            its schedule asks for. ``"global"``: the single weights of all layers that are due, anew each time; they
            have as many zeros together as their schedules ask for, and no layer keeps less than a tenth of the density
            of them all.
        track_changes: Count what each update changes, for :attr:`changes`. Costs a copy of one mask at a time.

    Raises:
        ConfigError: The configuration does not hold together, or ``masking`` or ``scope`` is unknown.
        LifecycleError: From a method that needs attached masks, before :meth:`prepare` or after :meth:`finalize`.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878

    Example:
        >>> model = nn.Linear(8, 4)
        >>> pruner = MagnitudePruner(model, {"global_config": {"scheduler": {"update_steps": [1, 2]}}})
        >>> model = pruner.prepare()
        >>> pruner.step(); pruner.step()
        >>> pruner.report()["global"]["unstructured_weight_sparsity"]
        0.5
        >>> int((pruner.finalize().weight == 0).sum())
        16
    """

    def __init__(
        self,
        model: nn.Module,
        config: object = None,
        *,
        masking: Masking = "hook",
        scope: Scope = "layer",
        track_changes: bool = False,
    ) -> None:
        check_choices(masking, scope)
        self._model = self._unprepared = model
        self._config = load_config(config)
        self._way, self._scope, self._track_changes = way_of(masking), scope, track_changes
        self._step_count = self._update_count = 0
        self._plan: PruningPlan | None = None  # and no layers in the timeline: not prepared
        self._timeline, self._training = Timeline(), Training(self._way)
        self._start: tuple[bool, list[int]] | None = None  # keep_zeros, and the fingerprints of what prepare() left
        self._is_guarded = self._has_told = self._is_finalized = False  # told: of what stays dense
        self._changes: MaskChanges | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is pruned: the prepared copy, unless ``prepare(inplace=True)``."""
        return self._model

    @property
    def step_count(self) -> int:
        """Optimizer steps so far."""
        return self._step_count

    @property
    def update_count(self) -> int:
        """Update steps that this object has made."""
        return self._update_count

    @property
    def changes(self) -> MaskChanges | None:
        """What the last computation of masks changed; None before it, and without ``track_changes``."""
        return self._changes

    @property
    def is_prepared(self) -> bool:
        """Whether masks are attached."""
        return bool(self._layers) and not self._is_finalized

    @property
    def is_finalized(self) -> bool:
        """Whether masks were made permanent in place."""
        return self._is_finalized

    @property
    def is_sharded(self) -> bool:
        """Whether other processes hold parts of the weights; then all of them must make the same calls."""
        return any(is_sharded(layer.plan.parameter) for layer in self._layers)

    @property
    def plan(self) -> PruningPlan:
        """What is pruned, by which rule, and what is not and why."""
        if self._plan is None:
            return plan_pruning(self._model, self._config)
        waiting = [layer.plan for layer in self._layers if layer.is_waiting]
        return self._plan.without(waiting, _WAITS) if waiting else self._plan

    @property
    def untrained(self) -> list[str]:
        """Names of the parameters that the last update of their schedule left out, since nothing trains them."""
        return [layer.plan.name for layer in self._layers if layer.is_behind]

    @property
    def schedules(self) -> dict[str, PruningScheduler]:
        """The schedule of each parameter by its name, in steps once the length of the run is known."""
        return {layer.plan.name: layer.schedule for layer in self._layers}

    @property
    def supported_modules(self) -> tuple[type[nn.Module], ...]:
        """What ``global_config`` prunes; other modules are pruned where their type or name is given."""
        return SUPPORTED_MODULES

    @property
    def last_update_step(self) -> int | None:
        """Step after which no mask changes; None if a schedule cannot tell."""
        return self._timeline.last_update_step

    @property
    def is_at_target(self) -> bool:
        """Whether the last update is made; if a schedule cannot tell which is the last, whether it pruned enough."""
        return self._timeline.is_at_target(self._step_count)

    def masks(self) -> dict[str, Tensor]:
        """Bool masks (True = keep) by parameter name; views that follow the updates and broadcast over the weights."""
        return {layer.plan.name: layer.held.mask.view(torch.bool) for layer in self._layers}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The Parameters that are pruned, as an optimizer knows them, by the names that they have without pruning."""
        return {layer.plan.name: layer.held.parameter for layer in self._layers}

    def prepare(
        self,
        inplace: bool = False,
        *,
        run: TrainingRun | None = None,
        keep_zeros: bool = False,
        optimizers: Iterable[Optimizer] | None = None,
    ) -> nn.Module:
        """Attach masks, at the initial sparsity, and give the model to train.

        Args:
            inplace: Change the model itself instead of a copy; its parameters stay the same objects.
            run: Length of the training run, for schedules that are written in its units; see :meth:`resolve`.
            keep_zeros: Start from the sparsity that a weight has already, from an earlier pruning, where that is higher
                than ``initial_sparsity``. A weight with more zeros than its target asks for was initialised with them:
                they are trained.
            optimizers: What trains the model; they are attached, see :meth:`attach_optimizers`. A weight that none of
                them trains, or that is frozen, then waits: it is left out of updates, and catches up at the next one
                after it is trained. A weight that a rule names in full does not wait. Needs ``inplace``.

        Raises:
            ConfigError: The configuration does not fit the model.
            LifecycleError: The model is prepared already.
        """
        if self._layers:
            raise LifecycleError("prepare() was called before. Make a new MagnitudePruner to prune again.")
        if optimizers is not None and not inplace:
            raise ConfigError("optimizers train the model itself, not a copy of it. Write prepare(inplace=True, ...).")
        training = Training(self._way, optimizers)
        model = self._model if inplace else copy_module(self._model)
        plan = plan_pruning(model, self._config)
        if not self._has_told:  # what is prepared anew is told of already
            warn_of_dense(plan, self._config)
        self._has_told = True
        starts = find_starts(plan, self._scope, keep_zeros=keep_zeros)
        layers = attach_layers(plan, self._way, starts)
        self._plan, self._timeline, self._training = plan, Timeline(layers), training
        try:
            trained = {id(layer) for layer in training.trained_among(layers)}
            pairs = [(layer, start) for layer, start in zip(layers, starts, strict=True) if id(layer) in trained]
            pairs = [(layer, start) for layer, start in pairs if start.sparsity or start.kept]
            kept = [start.kept for _, start in pairs if start.kept is not None]
            self._update([(layer, start.sparsity) for layer, start in pairs], kept or None)
            if run is not None:
                self.resolve(run)
            measure_sharded(layers)
            self.attach_optimizers(*training.optimizers)
        except BaseException:
            self._take_off()
            raise
        self._start = (keep_zeros, self._fingerprints())
        self._unprepared, self._model = self._model, model
        return model

    def prepare_anew_if_written(self) -> bool:
        """Choose the masks of :meth:`prepare` again if something else has written to the weights since.

        Weights that are loaded after ``prepare`` are pruned by their own magnitudes then, not by those of what they
        have replaced. Before the first step, of a model that was prepared in place.

        Returns:
            Whether it did; schedules in units of a run are then to be resolved again.
        """
        self._need_prepared("prepare_anew_if_written")
        if self._start is None or not is_in_any_process(self._start[1] != self._fingerprints(), self._layers):
            return False
        training, (keep_zeros, _), is_guarded = self._training, self._start, self._is_guarded
        for layer in self._layers:
            layer.held.take_writes()
        self.undo()
        optimizers = training.optimizers if training.may_wait else None
        self.prepare(inplace=True, keep_zeros=keep_zeros, optimizers=optimizers)
        if is_guarded:
            self.guard_state_dicts()
        self.attach_optimizers(*training.optimizers)
        return True

    def guard_state_dicts(self) -> None:
        """Let every state dict of the model have pruned weights under plain names, until the model is finalized.

        With ``masking="hook"`` it has ``weight_orig`` and ``weight_mask`` otherwise, as with Core ML Tools.
        """
        self._need_prepared("guard_state_dicts")
        self._is_guarded = True
        for layer in self._layers:
            layer.held.guard_state_dict()

    def undo(self) -> None:
        """Take the masks off and put back what they pruned away: as if :meth:`prepare` had not been called.

        With ``masking="resident"`` what was pruned away is known until the last update of a schedule; it stays zero
        after that.
        """
        self._need_prepared("undo")
        self._take_off()
        self._model = self._unprepared
        self._step_count, self._update_count, self._changes = 0, 0, None

    def resolve(self, run: TrainingRun) -> None:
        """Write the schedules that are in units of a training run (fractions, epochs) as steps.

        Call it before the first step, and again whenever the run turns out otherwise than it was thought to be: updates
        that were made stay, those to come move, and sparsity does not fall.

        Raises:
            ConfigError: A schedule needs a length that is not known, or cannot finish in the run.
        """
        self._need_prepared("resolve")
        schedules = [layer.resolved(run, self._step_count) for layer in self._layers]
        for layer, schedule in zip(self._layers, schedules, strict=True):
            layer.follow(schedule)
        self._timeline = Timeline(self._layers)

    def attach_optimizers(self, *optimizers: Optimizer) -> None:
        """Tell which optimizers train the model. Resident masks need them; hooks do without.

        Raises:
            ConfigError: An optimizer is not a :class:`torch.optim.Optimizer`.
        """
        self._need_prepared("attach_optimizers")
        self._training.attach(optimizers, self._layers)

    def find_unattached(self) -> list[str]:
        """Find what no attached optimizer updates now; :meth:`step` keeps it pruned, whatever else writes to it.

        Returns:
            Names of these parameters; none that is frozen, and none with ``masking="hook"``.
        """
        return self._training.find_unattached(self._layers)

    def step(self) -> None:
        """Count one optimizer step, and update the masks that are due. Call it after ``optimizer.step()``.

        Warns once where what is pruned away cannot be trained: resident masks that know no optimizer of a weight, and
        weights behind a hook that no forward has used at the first step.

        Raises:
            PruningError: A weight holds NaN; its mask stays as it was, and the step is not counted.
        """
        if self._plan is None or self._is_finalized:
            self._need_prepared("step")
        training, timeline = self._training, self._timeline
        training.after_step(timeline.layers, self._model)
        self._step_count += 1
        if training.may_wait:
            self._make_up()
        due = timeline.due_at(self._step_count)
        if due:
            try:
                finalizing.need_own_parameters(timeline.layers, self._model)
                self._update_groups(due)
            except BaseException:
                self._step_count -= 1  # a later call makes up for it
                raise

    def fast_forward(self, step_count: int) -> None:
        """Go to a later step of the schedule at once, pruning as far as it has come by then.

        Raises:
            ConfigError: The schedule is beyond this step already.
        """
        self._need_prepared("fast_forward")
        step_count = as_whole("step_count", step_count, least=0)
        if step_count < self._step_count:
            raise ConfigError(f"step_count must be at least {self._step_count}, the steps made, got {step_count}.")
        if step_count > MOST_STEPS:
            raise ConfigError(f"step_count must be at most {MOST_STEPS} optimizer steps, got {shown(step_count)}.")
        first, self._step_count = self._step_count + 1, step_count
        moving = [layer for layer in self._layers if not layer.is_continued or layer.has_ended(step_count)]
        self._catch_up(self._timeline.behind(self._training.trained_among(moving), first, step_count))
        self._note_start()

    def restore_dense(self, dense: Mapping[str, Tensor]) -> None:
        """Put back, behind the masks, what another pruning library had pruned away.

        The zeros that it left are the mask, which holds until the next update of the schedule. That goes on as the
        configuration says, and not from these zeros on.

        Args:
            dense: Weights before masking, by parameter name; other names are ignored.
        """
        for layer in self._layers:
            weight = dense.get(layer.plan.name)
            if weight is not None and tuple(weight.shape) == layer.plan.shape:
                layer.restore_dense(weight)
        self._note_start()

    def mask_copy(self, model: nn.Module) -> None:
        """Apply the masks to a copy of the model that has the same names, compiled or not, in place."""
        finalizing.mask_copy(self._layers, model)

    def reset_optimizers(self) -> None:
        """Take the dense weights away from an optimizer whose step raised and was caught."""
        self._training.reset()

    def project(self) -> None:
        """Zero pruned weights that something other than an optimizer has written to."""
        for layer in self._layers:
            layer.held.project()

    def project_if_written(self) -> None:
        """The same where PyTorch counted a write since the last one: next to free, but blind to ``.data``."""
        for layer in self._layers:
            layer.held.project_if_written()

    def settle(self) -> None:
        """Make every weight agree with its mask again, after something else wrote to it."""
        for layer in self._layers:
            layer.held.settle()

    def mask_gradients(self, optimizer: Optimizer | None = None) -> None:
        """Zero the gradients of pruned weights; of one optimizer's, or of all of them."""
        self._training.mask_gradients(optimizer)

    def check_replicas(self) -> None:
        """Check that all processes of a data-parallel run hold the same weights, masks and schedules.

        One small collective for all parameters together; every process must call it. Parameters that are sharded have
        no replicas, and are left out.

        Raises:
            PruningError: Something differs; names the parameter and the ranks. Raised in every process.
        """
        self._need_prepared("check_replicas")
        require_same_layers(self._step_count, self._layers)

    def finalize(
        self, model: nn.Module | None = None, inplace: bool = False, *, coreml_metadata: bool = False
    ) -> nn.Module:
        """Make the zeros permanent and leave a plain module. Doing it twice is harmless.

        Args:
            model: The model to finalize: the prepared one, or a copy of it.
            inplace: Change the model itself instead of a copy.
            coreml_metadata: Register the buffers by which Core ML Tools recognises a pruned layer on conversion. That
                path also zeroes every weight of magnitude up to 9.77e-4; see
                :func:`~lightning_prune.masking.metadata.register_coreml_metadata`.

        Raises:
            LifecycleError: ``model`` is no copy of the prepared one.
        """
        self._need_layers("finalize")
        target = self._model if model is None else model
        if inplace and target is self._model:
            if not self._is_finalized:
                self._detach()
        else:
            finalizing.need_copy(self._layers, target)
            if self.is_prepared:
                self.settle()  # a forward that was interrupted leaves a weight with its graph, which has no copy
            target = target if inplace else copy_module(target)
            finalizing.finalize_copy(self._layers, target)
        if coreml_metadata:
            finalizing.register_layers(self.plan, target)
        return target

    def report(self) -> SparsityReport:
        """Count the zeros of the masks, layer by layer; of those that wait to be trained none.

        Raises:
            LifecycleError: An update of a sharded model failed, so that the processes could not count together.
        """
        self._need_layers("report")
        self._measure()
        shown_layers = [layer for layer in self._layers if not layer.is_waiting]
        measured = [layer.measured for layer in shown_layers if layer.measured is not None]
        if len(measured) < len(shown_layers):
            raise LifecycleError("report() cannot count the zeros of a sharded model whose last update failed.")
        if self._scope == "global":  # no layer has a target of its own
            measured = [replace(one, target_sparsity=None) for one in measured]
        return SparsityReport(measured)

    def state_dict(self) -> dict[str, Any]:
        """Give the step count, the masks and the pruned-away values as plain numbers and tensors.

        The state does not depend on how the model is sharded. Where it is, every process must call this: the masks (as
        bits) and the pruned-away values are brought to the memory of the first process, layer by layer; the others
        get a state without parameters.
        """
        self._need_layers("state_dict")
        return dump_layers(self._step_count, self._scope, self._layers)

    def load_state_dict(self, state: Mapping[str, Any], *, allow_config_change: bool = False) -> None:
        """Go on where :meth:`state_dict` was taken; the model's weights must be those of that moment.

        Args:
            state: What :meth:`state_dict` gave. Checked as a whole before anything is changed; no class that it names
                is looked for.
            allow_config_change: Accept another target or schedule than the state was saved with: the model is pruned
                at once as far as the new schedule has come by now, and its sparsity never falls below the saved one.
                Otherwise a schedule in units of the run keeps the steps that it had, also in a run that is longer now;
                one of the user's own class stays as :meth:`resolve` has written it, as nothing is built from a file.

        Raises:
            CheckpointError: The state is damaged, or does not fit the model or the configuration.
        """
        self._need_prepared("load_state_dict")
        restored = parse_layers(state, self._scope, self._layers, allow_config_change=allow_config_change)
        self._step_count, self._start, self._timeline = restored.step_count, None, restored.timeline
        restored.put_back()
        self._catch_up(restored.behind)

    @property
    def _layers(self) -> list[Layer]:
        return self._timeline.layers

    def _update(self, asked: Asked, zeros: list[float] | None = None) -> None:
        """Compute masks anew; see :func:`~lightning_prune.pruner.updating.update_layers`."""
        changed = update_layers(asked, self._scope, zeros=zeros, track_changes=self._track_changes)
        if self._track_changes:
            self._changes = MaskChanges(*changed, sum(layer.plan.numel for layer in self._layers))

    def _update_groups(self, due: list[ScheduleGroup]) -> None:
        """Make the update of this step."""
        step, trained_among = self._step_count, self._training.trained_among
        self._update([one for group in due for one in group.asked_at(step, trained_among(group.layers))])
        self._update_count += 1
        self.find_unattached()
        self._end_update()

    def _catch_up(self, asked: Asked) -> None:
        """Prune layers that are behind their schedules."""
        self._update(asked)
        self._update_count += 1 if asked else 0
        self._end_update()

    def _end_update(self) -> None:
        self._timeline.release_ended(self._step_count)
        measure_sharded(self._layers)

    def _make_up(self) -> None:
        """Prune what was left out of the last update of its schedule, and is trained by now."""
        late = [layer for layer in self._layers if layer.is_late(self._step_count)]
        trained = self._training.trained_among(late) if late else []
        if trained:
            self._catch_up(self._timeline.behind(trained, 1, self._step_count))

    def _fingerprints(self) -> list[int]:
        return [layer.held.fingerprint() for layer in self._layers]

    def _note_start(self) -> None:
        """Remember the weights that training will start from."""
        self._start = None if self._start is None else (self._start[0], self._fingerprints())

    def _measure(self) -> None:
        """Count the zeros of all masks that lie wholly in this process; the others were counted at their update."""
        measure([layer for layer in self._layers if layer.sharding.is_whole])

    def _take_off(self) -> None:
        removals = [*self._training.removals(), *(layer.held.undo for layer in self._layers)]
        self._plan, self._timeline, self._start, self._is_guarded = None, Timeline(), None, False
        finalizing.do_all(removals)

    def _detach(self) -> None:
        self._measure()  # so that a report stays readable afterwards
        finalizing.warn_of_replaced(self._layers, self._model)
        removals = [*self._training.removals(), *(layer.held.detach for layer in self._layers)]
        self._is_finalized = True
        finalizing.do_all(removals)

    def _need_layers(self, method: str) -> None:
        if not self._layers:
            raise LifecycleError(f"{method}() needs a prepared model. Call prepare() first.")

    def _need_prepared(self, method: str) -> None:
        if self._is_finalized:
            raise LifecycleError(
                f"{method}() needs a prepared model, but it was finalized. Make a new MagnitudePruner."
            )
        self._need_layers(method)
