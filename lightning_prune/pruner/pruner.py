"""The pruner: prepare a model, step with its optimizer, finalize it. No Lightning."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.basics import as_whole
from lightning_prune.config import load_config
from lightning_prune.errors import ConfigError, LifecycleError, shown
from lightning_prune.masking import (
    HeldMask,
    Masking,
    OptimizerLink,
    hooked_names,
    register_coreml_metadata,
    remove_hooks,
    way_of,
)
from lightning_prune.plan import (
    SUPPORTED_MODULES,
    PruningPlan,
    copy_module,
    plan_pruning,
    uncompiled_name,
    warn_of_dense,
)
from lightning_prune.pruner.choices import Scope, check_choices
from lightning_prune.pruner.layer import Layer, group_by_schedule, state_of
from lightning_prune.pruner.measuring import measure, measure_sharded
from lightning_prune.pruner.report import MaskChanges, SparsityReport
from lightning_prune.pruner.starting import kept_sparsities, need_single_weights, present_sparsity, share_schedule
from lightning_prune.pruner.state import dump_state, parse_state
from lightning_prune.pruner.state_values import MOST_STEPS
from lightning_prune.pruner.updating import find_behind, need_fractions, need_numbers, rank_layers, update_layer
from lightning_prune.schedules import PruningScheduler, TrainingRun
from lightning_prune.sharding import add_up, find_shardings, is_sharded, require_same, run_together

__all__ = ["MagnitudePruner"]

_LOOKS = 3  # steps, at most, at which weights are looked for that nothing uses
_WAITS = "nothing trains it: it waits until an optimizer does"
_NEARLY = 0.99  # of its target, which a schedule that cannot tell its end may never meet


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
        self._way = way_of(masking)
        self._scope: Scope = scope
        self._step_count = 0
        self._update_count = 0
        self._plan: PruningPlan | None = None
        self._layers: list[Layer] = []
        self._groups: list[tuple[PruningScheduler, list[Layer]]] = []
        self._optimizers: list[Optimizer] = []
        self._only_trained = self._is_guarded = False
        self._start: tuple[bool, list[int]] | None = None  # keep_zeros, and the fingerprints of what prepare() left
        self._links: list[OptimizerLink] = []
        self._unattached: list[HeldMask] | None = None  # not looked for yet
        self._looks = 0  # for weights that nothing uses
        self._has_told = False  # of what stays dense
        self._is_finalized = False
        self._track_changes = track_changes
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
        lasts = [scheduler.last_update_step if scheduler.is_resolved else None for scheduler, _ in self._groups]
        known = [last for last in lasts if last is not None]
        return max(known) if known and len(known) == len(lasts) else None

    @property
    def is_at_target(self) -> bool:
        """Whether the last update is made; if a schedule cannot tell which is the last, whether it pruned enough."""
        return all(
            all(one.sparsity >= _NEARLY * one.target_sparsity for one in layers)
            if not scheduler.is_resolved or scheduler.last_update_step is None
            else self._step_count >= scheduler.last_update_step
            for scheduler, layers in self._groups
        )

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
        """Attach masks, at the initial sparsity.

        Args:
            inplace: Change the model itself instead of a copy.
            run: Length of the training run, for schedules that are written in its units; see :meth:`resolve`.
            keep_zeros: Start from the sparsity that a weight has already, from an earlier pruning, where that is higher
                than ``initial_sparsity``. A weight with more zeros than its target asks for was initialised so, and is
                not meant.
            optimizers: What trains the model; they are attached, see :meth:`attach_optimizers`. A weight that none of
                them trains, or that is frozen, then waits: it is left out of updates, and catches up at the next one
                after it is trained. One that a rule names in full does not wait. Needs ``inplace``.

        Returns:
            The model to train. Its parameters are the same objects, in the same order, if ``inplace``.

        Raises:
            ConfigError: The configuration does not fit the model.
            LifecycleError: The model is prepared already.
        """
        if self._layers:
            raise LifecycleError("prepare() was called before. Make a new MagnitudePruner to prune again.")
        if optimizers is not None and not inplace:
            raise ConfigError("optimizers train the model itself, not a copy of it. Write prepare(inplace=True, ...).")
        self._optimizers, self._only_trained = list(optimizers or ()), optimizers is not None
        model = self._model if inplace else copy_module(self._model)
        plan = plan_pruning(model, self._config)
        if not self._has_told:  # what is prepared anew is told of already
            warn_of_dense(plan, self._config)
        self._has_told = True
        layers: list[Layer] = []
        shardings = find_shardings([one.parameter for one in plan])
        present = [0.0] * len(shardings)
        if keep_zeros:
            tasks = [(two, present_sparsity(one, two)) for one, two in zip(plan, shardings, strict=True)]
            present = kept_sparsities(plan, run_together(tasks), self._scope)
        try:
            if self._scope == "global":
                need_single_weights(plan)
            for one, sharding, zeros in zip(plan, shardings, present, strict=True):
                start = max(one.config.initial_sparsity, zeros)
                layers.append(Layer(one, self._way.attach(one), start, one.config.schedule, sharding))
            first = [layer for layer in self._trained_among(layers) if layer.initial_sparsity > 0]
            # zeros that are there already stay where they are: they are not ranked with the weights of other layers
            self._update([(layer, layer.initial_sparsity) for layer in first], "layer" if any(present) else self._scope)
            if self._scope == "global" and any(present):
                share_schedule(layers)
            self._plan, self._layers, self._groups = plan, layers, group_by_schedule(layers)
            if run is not None:
                self.resolve(run)
            measure_sharded(layers)
            self.attach_optimizers(*self._optimizers)
        except BaseException:
            self._take_off(layers)
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
        if self._start is None or not self._any_process(self._start[1] != self._fingerprints()):
            return False
        optimizers, (keep_zeros, _), is_guarded = self._optimizers, self._start, self._is_guarded
        waits = self._only_trained
        for layer in self._layers:
            layer.held.take_writes()
        self.undo()
        self.prepare(inplace=True, keep_zeros=keep_zeros, optimizers=optimizers if waits else None)
        if is_guarded:
            self.guard_state_dicts()
        self.attach_optimizers(*optimizers)
        return True

    def _note_start(self) -> None:
        """Remember the weights that training will start from."""
        self._start = None if self._start is None else (self._start[0], self._fingerprints())

    def _fingerprints(self) -> list[int]:
        return [layer.held.fingerprint() for layer in self._layers]

    def _any_process(self, is_true: bool) -> bool:
        """Whether it is true in any of the processes that hold parts of the weights."""
        flags = ((layer.sharding, add_up([int(is_true)], layer.held.mask.device)) for layer in self._layers)
        sharded = [(sharding, flag) for sharding, flag in flags if not sharding.is_whole][:1]
        return any(sum(counts) for counts in run_together(sharded)) if sharded else is_true

    def guard_state_dicts(self) -> None:
        """Let every state dict of the model have pruned weights under plain names, until the model is finalized.

        With ``masking="hook"`` it has ``weight_orig`` and ``weight_mask`` otherwise, as with Core ML Tools.

        Raises:
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("guard_state_dicts")
        self._is_guarded = True
        for layer in self._layers:
            layer.held.guard_state_dict()

    def undo(self) -> None:
        """Take the masks off and put back what they pruned away: as if :meth:`prepare` had not been called.

        With ``masking="resident"`` what was pruned away is known until the last update of a schedule; it stays zero
        after that.

        Raises:
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("undo")
        self._take_off(self._layers)
        self._model = self._unprepared
        self._step_count, self._update_count, self._changes = 0, 0, None

    def _take_off(self, layers: list[Layer]) -> None:
        removals = [*(link.remove for link in self._links), *(layer.held.undo for layer in layers)]
        self._plan, self._layers, self._groups, self._links = None, [], [], []
        self._start, self._is_guarded = None, False
        _do_all(removals)

    def resolve(self, run: TrainingRun) -> None:
        """Write the schedules that are in units of a training run (fractions, epochs) as steps.

        Call it before the first step, and again whenever the run turns out otherwise than it was thought to be: updates
        that were made stay, those to come move, and sparsity does not fall.

        Raises:
            ConfigError: A schedule needs a length that is not known, or cannot finish in the run.
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("resolve")
        schedules = [layer.resolved(run, self._step_count) for layer in self._layers]
        for layer, schedule in zip(self._layers, schedules, strict=True):
            layer.follow(schedule)
        self._groups = group_by_schedule(self._layers)

    def attach_optimizers(self, *optimizers: Optimizer) -> None:
        """Tell which optimizers train the model. Resident masks need them; hooks do without.

        Raises:
            ConfigError: An optimizer is not a :class:`torch.optim.Optimizer`.
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("attach_optimizers")
        self._optimizers += [one for one in optimizers if not any(one is known for known in self._optimizers)]
        linked = {id(link.optimizer) for link in self._links}
        new = [one for one in optimizers if id(one) not in linked]
        links = [self._way.link(one, [layer.held for layer in self._layers]) for one in new]
        self._links += [link for link in links if link is not None]
        self._unattached = None if new else self._unattached

    def find_unattached(self) -> list[str]:
        """Find what no attached optimizer updates now; :meth:`step` keeps it pruned, whatever else writes to it.

        Returns:
            Names of these parameters; none that is frozen, and none with ``masking="hook"``.
        """
        held = {layer.plan.name: layer.held for layer in self._layers}
        names = self._way.find_unattached(held, self._links)
        self._unattached = [held[name] for name in names]
        return names

    def step(self) -> None:
        """Count one optimizer step, and update the masks that are due. Call it after ``optimizer.step()``.

        Warns once where what is pruned away cannot be trained: resident masks that know no optimizer of a weight, and
        weights behind a hook that no forward has used at the first step.

        Raises:
            LifecycleError: The model is not prepared.
            PruningError: A weight holds NaN; its mask stays as it was, and the step is not counted.
        """
        if not self._layers or self._is_finalized:
            self._need_prepared("step")
        if self._unattached is None:
            self._warn_of_unattached()
        if self._looks < _LOOKS:
            self._warn_of_unused()
        for held in self._unattached or ():
            held.project_if_written()
        self.reset_optimizers()
        self._step_count += 1
        if self._only_trained:
            self._make_up()
        due = []
        for group in self._groups:
            if group[0].is_due(self._step_count):
                due.append(group)
        if due:
            try:
                self._need_own_parameters()
                self._update_groups(due)
            except BaseException:
                self._step_count -= 1  # a later call makes up for it
                raise

    def fast_forward(self, step_count: int) -> None:
        """Go to a later step of the schedule at once, pruning as far as it has come by then.

        Raises:
            ConfigError: The schedule is beyond this step already.
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("fast_forward")
        step_count = as_whole("step_count", step_count, least=0)
        if step_count < self._step_count:
            raise ConfigError(f"step_count must be at least {self._step_count}, the steps made, got {step_count}.")
        if step_count > MOST_STEPS:
            raise ConfigError(f"step_count must be at most {MOST_STEPS} optimizer steps, got {shown(step_count)}.")
        first, self._step_count = self._step_count + 1, step_count
        holding = [layer for layer in self._layers if layer.is_continued and not self._has_ended(layer.schedule)]
        behind = [layer for layer in self._layers if not any(layer is other for other in holding)]
        self._catch_up(find_behind(self._groups, self._trained_among(behind), first, step_count))
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
                weight = weight[layer.sharding.box.within(layer.sharding.whole)]
                layer.held.restore_dense(weight)
                layer.initial_sparsity = layer.plan.config.initial_sparsity
                layer.floor, layer.is_continued = min(layer.sparsity, layer.target_sparsity), layer.sparsity > 0.0
        self._note_start()

    def mask_copy(self, model: nn.Module) -> None:
        """Apply the masks to a copy of the model that has the same names, compiled or not, in place."""
        named = model.named_parameters(remove_duplicate=False)
        parameters = {uncompiled_name(name): parameter for name, parameter in named}
        for layer in self._layers:
            layer.held.mask_copy(layer.plan.name, parameters)

    def reset_optimizers(self) -> None:
        """Take the dense weights away from an optimizer whose step raised and was caught."""
        for link in self._links:
            link.reset()

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
        for link in self._links:
            if optimizer is None or link.optimizer is optimizer:
                for mask in link:
                    mask.mask_gradient()

    def check_replicas(self) -> None:
        """Check that all processes of a data-parallel run hold the same weights, masks and schedules.

        One small collective for all parameters together; every process must call it. Parameters that are sharded have
        no replicas, and are left out.

        Raises:
            LifecycleError: The model is not prepared.
            PruningError: Something differs; names the parameter and the ranks. Raised in every process.
        """
        self._need_prepared("check_replicas")
        configs = [replace(layer.plan.config, scheduler=layer.schedule).as_dict() for layer in self._layers]
        rules = json.dumps(configs, default=repr)
        values = {"The schedule": zlib.crc32(f"{self._step_count} {rules}".encode())}
        for layer in self._layers:
            if not is_sharded(layer.held.parameter):
                values[layer.plan.name] = layer.held.fingerprint()
        require_same(values, "weights and masks", device=self._layers[0].held.mask.device)

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
            LifecycleError: The model was never prepared, or ``model`` is no copy of it.
        """
        if not self._layers:
            raise LifecycleError("finalize() needs a prepared model. Call prepare() first.")
        is_own = model is None or model is self._model
        target = self._model if model is None else model
        if inplace and is_own:
            if not self._is_finalized:
                self._detach()
        else:
            self._need_copy(target)
            if self.is_prepared:
                self.settle()  # a forward that was interrupted leaves a weight with its graph, which has no copy
            target = target if inplace else copy_module(target)
            remove_hooks(target)
            self.mask_copy(target)
        if coreml_metadata:
            names: dict[str, list[str]] = {}
            for one in self.plan:
                module, _, attribute = one.name.rpartition(".")
                names.setdefault(module, []).append(attribute)
            register_coreml_metadata(target, names)
        return target

    def report(self) -> SparsityReport:
        """Count the zeros of the masks, layer by layer; of those that wait to be trained none.

        Raises:
            LifecycleError: The model was never prepared, or an update of a sharded model failed, so that the processes
                could not count together.
        """
        if not self._layers:
            raise LifecycleError("report() needs a prepared model. Call prepare() first.")
        self._measure()
        shown = [layer for layer in self._layers if not layer.is_waiting]
        measured = [layer.measured for layer in shown if layer.measured is not None]
        if len(measured) < len(shown):
            raise LifecycleError("report() cannot count the zeros of a sharded model whose last update failed.")
        if self._scope == "global":  # no layer has a target of its own
            measured = [replace(one, target_sparsity=None) for one in measured]
        return SparsityReport(measured)

    def _measure(self) -> None:
        """Count the zeros of all masks that lie wholly in this process."""
        measure([layer for layer in self._layers if layer.sharding.is_whole])

    def state_dict(self) -> dict[str, Any]:
        """Give the step count, the masks and the pruned-away values as plain numbers and tensors.

        The state does not depend on how the model is sharded. Where it is, every process must call this: the masks (as
        bits) and the pruned-away values are brought to the memory of the first process, layer by layer; the others
        get a state without parameters.

        Raises:
            LifecycleError: The model was never prepared.
        """
        if not self._layers:
            raise LifecycleError("state_dict() needs a prepared model. Call prepare() first.")
        states = ((layer.plan, state_of(layer)) for layer in self._layers)
        return dump_state(self._step_count, self._scope, ((one, state) for one, state in states if state is not None))

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
            LifecycleError: The model is not prepared.
        """
        self._need_prepared("load_state_dict")
        step_count, states = parse_state(
            state,
            [layer.plan for layer in self._layers],
            scope=self._scope,
            boxes=[layer.sharding.box for layer in self._layers],
            allow_config_change=allow_config_change,
        )
        layers = [layer.restored(saved) for layer, saved in zip(self._layers, states, strict=True)]
        groups = group_by_schedule(layers)
        changed = [layer for layer, saved in zip(layers, states, strict=True) if saved.is_other_rule]
        behind = find_behind(groups, changed, 1, step_count)
        need_numbers([layer for layer, _ in behind], dict(zip(map(id, layers), states, strict=True)))
        # all is checked: from here on nothing fails
        self._step_count, self._start, self._layers, self._groups = step_count, None, layers, groups
        for layer, saved in zip(layers, states, strict=True):
            layer.held.mask.copy_(saved.mask)
            layer.held.restore(saved.pruned_values)
        self._catch_up(behind)

    def _update_groups(self, groups: list[tuple[PruningScheduler, list[Layer]]]) -> None:
        step = self._step_count
        asked: list[tuple[Layer, float]] = []
        for scheduler, layers in groups:
            for layer in self._trained_among(layers):
                sparsity = max(layer.floor, float(scheduler.compute_sparsity(step, layer.sparsity, layer)))
                if sparsity != layer.sparsity or scheduler.reselects(step):
                    asked.append((layer, sparsity))
        self._update(asked)
        self._update_count += 1
        self.find_unattached()
        for scheduler, layers in groups:
            self._release_if_done(scheduler, layers)
            measure_sharded(layers)

    def _trained_among(self, layers: list[Layer]) -> list[Layer]:
        """Layers that an optimizer trains, of those that are due; the others wait, and are noted."""
        if not self._only_trained:
            return layers
        known = {
            id(one) for optimizer in self._optimizers for group in optimizer.param_groups for one in group["params"]
        }
        for layer in layers:
            held = layer.held
            is_trained = held.parameter.requires_grad or held.got_gradient  # some are frozen for a part of each batch
            layer.is_behind = not (layer.plan.is_named or (is_trained and id(held.parameter) in known))
            held.got_gradient = False
        return [layer for layer in layers if not layer.is_behind]

    def _make_up(self) -> None:
        """Prune what was left out of the last update of its schedule, and is trained by now."""
        late = [
            layer
            for layer in self._layers
            if layer.is_behind and layer.held.parameter.requires_grad and self._has_ended(layer.schedule)
        ]
        trained = self._trained_among(late) if late else []
        if trained:
            self._catch_up(find_behind(self._groups, trained, 1, self._step_count))

    def _has_ended(self, schedule: PruningScheduler) -> bool:
        last = schedule.last_update_step
        return last is not None and self._step_count > last

    def _update(self, asked: list[tuple[Layer, float]], scope: Scope | None = None) -> None:
        """Compute the masks of layers anew, at the sparsities that are asked of them."""
        need_fractions(asked)
        try:
            found = rank_layers(asked) if (scope or self._scope) == "global" else [sparsity for _, sparsity in asked]
            changes = run_together(
                [
                    (layer.sharding, update_layer(layer, sparsity, own, self._track_changes))
                    for (layer, sparsity), own in zip(asked, found, strict=True)
                ]
            )
        except BaseException:
            for layer, _ in asked:
                layer.held.settle()
            raise
        if self._track_changes:
            pruned, returned = (sum(one[place] for one in changes) for place in (0, 1))
            self._changes = MaskChanges(pruned, returned, sum(layer.plan.numel for layer in self._layers))

    def _catch_up(self, asked: list[tuple[Layer, float]]) -> None:
        """Prune layers that are behind their schedules."""
        self._update(asked)
        self._update_count += 1 if asked else 0
        for scheduler, layers in self._groups:
            self._release_if_done(scheduler, layers)
        measure_sharded(self._layers)

    def _release_if_done(self, scheduler: PruningScheduler, layers: list[Layer]) -> None:
        last = scheduler.last_update_step
        if last is not None and self._step_count >= last:
            for layer in layers:
                layer.held.release()

    def _warn_of_unattached(self) -> None:
        names = self.find_unattached()
        if names and not self._links:
            warnings.warn(
                'step() with masking="resident" knows no optimizer. That is right where a network is pruned without '
                "training. If it is trained, what was pruned away is not trained with it: call "
                "pruner.attach_optimizers(optimizer) after prepare().",
                stacklevel=3,
            )
        elif names:
            warnings.warn(
                f"Pruned, but updated by no attached optimizer: {', '.join(names)}. They stay pruned, but what was "
                "pruned away is not trained. Give their optimizer to attach_optimizers(); one that was made before "
                "prepare() copied the model trains the original.",
                stacklevel=3,
            )

    def _warn_of_unused(self) -> None:
        names = self._way.find_unused({layer.plan.name: layer.held for layer in self._layers}, self._model)
        self._looks = self._looks + 1 if names is None else _LOOKS
        if names:
            warnings.warn(
                f'No gradient at the first optimizer step: {", ".join(names)}. With masking="hook" a weight is trained '
                "only through the forward of its own module. If another module or a function reads it, use "
                'masking="resident".',
                stacklevel=3,
            )

    def _find_replaced(self) -> list[str]:
        """Find parameters that the model does not use any more: something has put others in their place."""
        there = {id(parameter) for parameter in self._model.parameters()}
        return [
            layer.plan.name
            for layer in self._layers
            if not is_sharded(layer.plan.parameter)  # FSDP2 swaps parameters all the time
            and any(id(part.parameter) not in there for part in layer.held.parts())
        ]

    def _need_copy(self, model: nn.Module) -> None:
        """Refuse a model of which nothing would be finalized: no name, no hook and no parameter of it is known here."""
        known, own = self.masks(), {id(layer.held.parameter) for layer in self._layers}
        is_known = hooked_names(model) or any(
            uncompiled_name(name) in known or id(parameter) in own
            for name, parameter in model.named_parameters(remove_duplicate=False)
        )
        if not is_known:
            raise LifecycleError(
                f"finalize() needs the prepared model or a copy of it, but this {type(model).__name__} has no "
                f"{', '.join(known)}."
            )

    def _need_own_parameters(self) -> None:
        replaced = self._find_replaced()
        if replaced:
            raise LifecycleError(
                f"{', '.join(replaced)}: the model has another parameter there now than the one that is pruned. Write "
                "new values into the old one (copy_, load_state_dict without assign), or prune what is new with a "
                "MagnitudePruner of its own."
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy knows no optimizers: it is not its parameters that these update."""
        return {**self.__dict__, "_links": [], "_unattached": None}

    def _detach(self) -> None:
        self._measure()  # so that a report stays readable afterwards
        replaced = self._find_replaced()
        if replaced:
            warnings.warn(
                f"The model has another parameter now than the one that was pruned, whatever the report says of "
                f"{', '.join(replaced)}: it may be dense.",
                stacklevel=3,
            )
        removals = [*(link.remove for link in self._links), *(layer.held.detach for layer in self._layers)]
        self._links, self._is_finalized = [], True
        _do_all(removals)

    def _need_prepared(self, method: str) -> None:
        if self._is_finalized:
            raise LifecycleError(
                f"{method}() needs a prepared model, but it was finalized. Make a new MagnitudePruner."
            )
        if not self._layers:
            raise LifecycleError(f"{method}() needs a prepared model. Call prepare() first.")


def _do_all(actions: list[Callable[[], None]]) -> None:
    """Do each of them, whatever becomes of the others; the first error is raised at the end."""
    with ExitStack() as stack:
        for action in actions:
            stack.callback(action)
