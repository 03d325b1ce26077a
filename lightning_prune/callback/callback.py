"""The Lightning callback: hooks of a Trainer, and nothing about how pruning works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import RenderableType
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.basics import as_flag, as_text, check_lock, is_a, lock, unlock
from lightning_prune.callback.callers import builder, listed_beside
from lightning_prune.callback.checks import (
    refuse_averages,
    refuse_second_pruner,
    refuse_twins,
    warn_if_abrupt,
    warn_if_missed,
    warn_if_too_short,
    warn_if_untrained,
)
from lightning_prune.callback.last_layer import LastLayerWatch
from lightning_prune.callback.monitors import TargetGate, check_gate
from lightning_prune.callback.strategies import check_strategy
from lightning_prune.callback.timeline import Timeline
from lightning_prune.config import MagnitudePrunerConfig, load_config
from lightning_prune.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    LifecycleError,
    PruningError,
    did_you_mean,
    one_line,
    shown,
)
from lightning_prune.export import CoreMLExport, ExportResult
from lightning_prune.masking import ForeignWeights, Masking, way_of
from lightning_prune.plan import PruningPlan, plan_pruning
from lightning_prune.pruner import MagnitudePruner, Scope, SparsityReport, check_choices
from lightning_prune.sharding import reshard_model

__all__ = ["MagnitudePruningCallback"]

_MOST_MISSED = 10**6  # optimizer steps in a batch that a checkpoint was saved in; each is made up for
_FITTING = (
    "the fit has begun, and keeps what it began with. Change it when the fit is over, or stop, "
    "change it, and resume from a checkpoint with allow_config_change=True."
)
_FIXED = ("config", "masking", "scope", "keep_zeros", "best_at_target", "allow_untested")  # read when a fit begins
_TIMELINE, _GATE = "timeline", "gate"  # keys in the state of the callback, beside those of the pruner's


class MagnitudePruningCallback(Callback):
    """Prunes a LightningModule while the Trainer fits it.

    ``on_fit_start`` prepares the module, ``on_train_batch_end`` counts optimizer steps and updates the masks that are
    due, ``on_fit_end`` finalizes the module and exports it. In between the module's weights always are the pruned ones,
    so that checkpoints, validation and weight averages see what will be shipped.

    Args:
        config: What to prune and how: a :class:`~lightning_prune.config.MagnitudePrunerConfig`, a nested dict, the path
            of a YAML file or its text, or a configuration of Core ML Tools.
        masking: How masks are held. ``"resident"`` leaves all names of the module as they are; ``"hook"`` gives modules
            ``weight_orig`` and ``weight_mask``, as Core ML Tools does; checkpoints have plain names either way.
        scope: What is ranked together at an update: ``"layer"``, each layer by itself, or ``"global"``, the weights of
            all layers, so that layers of small weights become sparser than others.
        export: Write a Core ML package at the end of fit: a :class:`~lightning_prune.export.CoreMLExport`, a dict of
            its arguments, or a path. A failing export never costs the trained model: it is finalized, and
            ``export_error`` says what happened.
        log_layers: Log the sparsity of each layer beside that of the whole.
        prog_bar: Show the global sparsity in the progress bar.
        keep_zeros: Start a weight that has zeros already, from an earlier pruning, at their share and keep them, where
            its target asks for as many at least. False lets zeros of an initialisation be trained.
        show_plan: Log the plan at the start of fit, and the report at its end.
        best_at_target: Let monitors compare only networks at the target: until the last update EarlyStopping does not
            end the run and ReduceLROnPlateau does not lower the learning rate, and at that update both and
            ModelCheckpoint forget the best score so far. Checkpoint files that were the best until then stay where they
            are.
        log_prefix: What the names of logged values start with; give a second callback one of its own.
        allow_config_change: Resume from a checkpoint that was pruned by other targets or schedules.
        allow_untested: Run with a strategy that pruning was not tested with; see
            :data:`~lightning_prune.callback.strategies.TESTED_STRATEGIES`.

    Attributes:
        config: The configuration, a :class:`~lightning_prune.config.MagnitudePrunerConfig`: a copy of what was given.
            It can be changed, but not while a fit runs; nor can then the other arguments that a fit reads when it
            begins.
        pruner: The :class:`~lightning_prune.pruner.MagnitudePruner` of the current or last fit; None before.
        export_result: What was exported at the end of fit, or None.
        export_error: The error of a failed export, or None.

    Logged at updates and epoch ends: ``sparsity/global`` and ``sparsity/<layer>``, fractions in [0, 1], and more; see
    :meth:`SparsityReport.metrics() <lightning_prune.pruner.report.SparsityReport.metrics>`, and for updates
    :meth:`MaskChanges.metrics() <lightning_prune.pruner.report.MaskChanges.metrics>`. They are in
    ``trainer.callback_metrics``, so other callbacks can monitor them. A schedule counts the optimizer steps of the
    Trainer (``trainer.global_step``): a run that was resumed from a checkpoint without pruning is pruned at once as far
    as its schedule has come.

    Raises:
        ConfigError: A value of the configuration cannot work. What needs the model is checked at fit start.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878

    Example:
        >>> callback = MagnitudePruningCallback({
        ...     "global_config": {"scheduler": {"begin": 0.1, "end": 0.6}, "target_sparsity": 0.75},
        ... })
        >>> print(callback.plan(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))).records()[0]["zeros"])
        24
    """

    def __init__(
        self,
        config: MagnitudePrunerConfig | dict[str, Any] | object | None = None,  # the class first, for LightningCLI
        *,
        masking: Masking = "resident",
        scope: Scope = "layer",
        export: CoreMLExport | dict[str, Any] | object | None = None,
        log_layers: bool = True,
        prog_bar: bool = True,
        keep_zeros: bool = True,
        show_plan: bool = True,
        best_at_target: bool = True,
        log_prefix: str = "sparsity",
        allow_config_change: bool = False,
        allow_untested: bool = False,
    ) -> None:
        super().__init__()
        self._config: MagnitudePrunerConfig
        self._refused: ConfigError | None = None
        try:
            check_choices(masking, scope)
            self.config = config
            self.export = _load_export(export)
        except ConfigError as error:
            if builder() != "jsonargparse":
                raise
            # It would be one line of thirty in an error of LightningCLI; the Trainer, built next, will ask for the key.
            self._refused, self.export = error, None
        self.masking: Masking = masking
        self.scope: Scope = scope
        self.log_layers = as_flag("log_layers", log_layers)
        self.prog_bar = as_flag("prog_bar", prog_bar)
        self.keep_zeros = as_flag("keep_zeros", keep_zeros)
        self.show_plan = as_flag("show_plan", show_plan)
        self.best_at_target = as_flag("best_at_target", best_at_target)
        if not isinstance(log_prefix, str):
            raise ConfigError(f'log_prefix must be a text such as "sparsity", got {shown(log_prefix)}.')
        self.log_prefix = log_prefix
        self.allow_config_change = as_flag("allow_config_change", allow_config_change)
        self.allow_untested = as_flag("allow_untested", allow_untested)
        self.pruner: MagnitudePruner | None = None
        self.export_result: ExportResult | None = None
        self.export_error: ExportError | None = None
        self._is_fitting = False
        self._is_training = False
        self._may_be_written = False  # the weights, by the module's own hooks before the first batch
        self._timeline = Timeline()
        self._gate: TargetGate | None = None
        self._foreign: ForeignWeights | None = None
        self._last_layer: LastLayerWatch | None = None
        self._restored: dict[str, Any] | None = None  # a state that came before on_train_start
        self._saved: dict[str, Any] = {}  # the state of the last fit, once its masks are gone
        # what the last fit left, until this one trains
        self._before: tuple[MagnitudePruner | None, dict[str, Any]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a value, unless a fit runs that has read it already: the change would do nothing, and say nothing."""
        if name in _FIXED and "_config" in self.__dict__:
            check_lock(self._config, name)
        super().__setattr__(name, value)

    @property
    def config(self) -> MagnitudePrunerConfig:
        """What to prune and how; a new one is taken in any form that the constructor takes."""
        if self._refused is not None:
            raise self._refused
        return self._config

    @config.setter
    def config(self, config: object) -> None:
        self._config = load_config(config)

    def plan(self, model: nn.Module) -> PruningPlan:
        """Say what would be pruned of a model, by which rule, and what not and why. Nothing is changed."""
        return plan_pruning(model, self.config)

    def report(self) -> SparsityReport:
        """Give the sparsity of every pruned layer, now or at the end of the last fit.

        Raises:
            LifecycleError: No fit was started yet.
        """
        if self.pruner is None:
            raise LifecycleError(
                "report() needs a fit. Call trainer.fit(model) first, or plan(model) for what it will do."
            )
        return self.pruner.report()

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: the rules without their values, so that a changed target still finds it."""
        if not self._is_training:
            # Lightning asks for all keys when it checks a list of callbacks, and calls no hook of theirs that early.
            # Its own error would not say what to do.
            listed = listed_beside("_validate_callbacks_list", "callbacks")
            refuse_twins([one._key for one in listed if isinstance(one, MagnitudePruningCallback)])
        return self._key

    @property
    def _key(self) -> str:
        rules = [*(["global"] if self.config.global_config is not None else [])]
        rules += [key if isinstance(key, str) else key.__name__ for key in self.config.module_type_configs]
        rules += list(self.config.module_name_configs)
        return f"{type(self).__qualname__}[{', '.join(rules)}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked before anything is loaded, and step in front of the checkpoint callbacks."""
        self._foreign = ForeignWeights(pl_module)
        self._is_fitting = stage == "fit"
        if not self._is_fitting:
            return
        if not self.allow_untested:
            check_strategy(trainer.strategy)
        if self.export is not None:
            self.export.check(pl_module)
        self._before = (self.pruner, self._saved)
        self.pruner, self._restored, self._saved, self._timeline = None, None, {}, Timeline()
        self.export_result = self.export_error = None
        # a new list: the Trainer is walking over the old one
        others = [one for one in trainer.callbacks if one is not self]  # type: ignore[attr-defined]
        first_checkpoint = next((i for i, one in enumerate(others) if is_a(one, "Checkpoint")), len(others))
        trainer.callbacks = [*others[:first_checkpoint], self, *others[first_checkpoint:]]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach masks to the module, and tell them the optimizers."""
        reshard_model(pl_module)
        if self._foreign is not None:
            self._foreign.follow(pl_module, trainer.optimizers)
        self.pruner = MagnitudePruner(
            pl_module, self.config, masking=self.masking, scope=self.scope, track_changes=True
        )
        lock(self.config, _FITTING)
        self.pruner.prepare(inplace=True, keep_zeros=self.keep_zeros, optimizers=trainer.optimizers)
        self.pruner.guard_state_dicts()
        if self.export is not None and self.pruner.is_sharded:
            raise ConfigError(
                "export needs the whole model in one process, but it is sharded over several (DTensor). Take export "
                "out, and export a checkpoint afterwards: "
                "CoreMLExport(path).save(Model.load_from_checkpoint(checkpoint))."
            )
        refuse_second_pruner(trainer, self.pruner.plan)
        if way_of(self.masking).shows_dense:
            refuse_averages(trainer)
        self.pruner.find_unattached()  # now, so that step() does not warn of what the next line says
        warn_if_untrained(trainer, self.pruner)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the schedules in steps, and go on where a checkpoint was taken.

        Only now are the length of the run and its global step known: to ask for the length earlier would load the data
        before its state is restored, and a resumable dataloader would start over.
        """
        gate = check_gate((self._restored or {}).get(_GATE))
        pruner, run = self._need_pruner(), self._timeline.measure(trainer, pl_module)
        reshard_model(pl_module)  # the sanity check may have left whole weights behind
        self._may_be_written = self._restored is None
        if self._may_be_written:
            pruner.prepare_anew_if_written()
        pruner.resolve(run)
        if self._restored is not None:
            self._load(self._restored)
            if trainer.global_step - pruner.step_count > _MOST_MISSED:
                raise CheckpointError(
                    f"The pruning state is of optimizer step {pruner.step_count}, but the checkpoint of step "
                    f"{trainer.global_step}: it is damaged. Resume from another one."
                )
            self._follow_run(trainer, pl_module)
            self._count_steps(trainer)  # of a batch whose end was never reached
        else:
            pruner.restore_dense({} if self._foreign is None else self._foreign.dense)
            pruner.fast_forward(trainer.global_step)
            warn_if_abrupt(pruner, run)
        is_pruned_now = pruner.update_count > 0  # what was the best before is not as sparse as this
        self._forget_foreign()
        self._before, self._restored = None, None
        self._is_training = True
        self._last_layer = LastLayerWatch(pl_module, pruner.plan)
        self._mask_averages(trainer)
        self._check_replicas(trainer)
        is_open = pruner.is_at_target and not is_pruned_now
        self._gate = None
        if self.best_at_target and (gate is not None or not is_open):
            self._gate = TargetGate(trainer, gate if is_open else None)
        if pruner.is_at_target:
            self._open_gate(trainer)
        if self.show_plan:
            _show(pruner.plan)
        if self.show_plan and pruner.report().sparsity:
            rank_zero_info(f"Pruning starts from a sparsity of {pruner.report().sparsity:.1%}.")
        warn_if_too_short(pruner, run)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Heal a step that raised and was caught, and follow optimizers that were replaced."""
        pruner = self._need_pruner()
        pruner.reset_optimizers()
        pruner.attach_optimizers(*trainer.optimizers)
        if self._may_be_written and pruner.prepare_anew_if_written():
            pruner.resolve(self._timeline.measure(trainer, pl_module))
            pruner.fast_forward(trainer.global_step)
        self._may_be_written = False
        pruner.project_if_written()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look no further for the layer that runs last: a backward pass may run earlier ones again."""
        if self._last_layer is not None:
            self._last_layer.close()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Zero the gradients of pruned weights before they are clipped."""
        self._need_pruner().mask_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the optimizer steps of this batch, update masks, and log if they changed."""
        pruner = self._need_pruner()
        if self._last_layer is not None:
            self._last_layer.warn()
            self._last_layer = None
        updates = pruner.update_count
        self._follow_run(trainer, pl_module)
        self._count_steps(trainer)
        if pruner.update_count != updates:
            self._mask_averages(trainer)
            self._check_replicas(trainer)
            changes = pruner.changes.metrics(prefix=self.log_prefix) if pruner.changes is not None else {}
            self._log(trainer, pl_module, changes)
        pruner.project_if_written()
        if pruner.is_at_target:
            self._open_gate(trainer)
        if self._gate is not None:
            self._gate.hold(trainer)
            self._gate = None if self._gate.is_done else self._gate

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Zero what another callback wrote to pruned weights."""
        if self._is_training:
            self._need_pruner().project()
        if self._gate is not None:
            self._gate.start_validation(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log once an epoch, whether or not masks changed."""
        self._log(trainer, pl_module)
        self._need_pruner().project()
        if trainer.global_step == 0:
            rank_zero_warn(
                "An epoch is over, but the Trainer has counted no optimizer step, so nothing was pruned. In manual "
                "optimization step the optimizers that self.optimizers() gives: others are not counted."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the weights, which an averaging callback may have replaced."""
        self._need_pruner().settle()
        self._mask_averages(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the zeros permanent, say if the target was missed, and export."""
        self._finish(trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warn_if_missed(self._need_pruner())
        if self.show_plan:
            _show(self.report())
        if self.export is not None and trainer.is_global_zero:
            self._export(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a plain module, whatever happened: with pruned weights, or as it was if no training had begun."""
        unlock(self.config)
        if self._before is not None and not self._is_training:
            if self.pruner is not None and self.pruner.is_prepared:
                self.pruner.undo()
            self.pruner, self._saved = self._before  # what the last fit left is still true
        try:
            self._finish(trainer, is_failed=True)
        except Exception as error:
            rank_zero_warn(f"The module could not be left as it should be: {error}")  # what happened is the exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what belongs to this run of the Trainer."""
        self._finish(trainer)
        self._is_fitting, self._restored = False, None

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must hold beside the pruned weights for a bit-exact resume."""
        if self._restored is not None:
            return self._restored
        if self.pruner is not None and self.pruner.is_prepared:
            gate = self._gate.state_dict() if self._gate is not None and self._gate.is_open else None
            return {**self.pruner.state_dict(), _TIMELINE: self._timeline.state_dict(), _GATE: gate}
        return self._saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: when training starts, or at once if it has."""
        if not self._is_fitting or not state_dict:
            return
        if self._is_training:
            self._load(state_dict)
        else:
            self._restored = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume in silence without the pruning state that a checkpoint has under another key."""
        states = checkpoint.get("callbacks", {})
        if not self._is_fitting or self.state_key in states:
            return
        keys = {one.state_key for one in trainer.callbacks}  # type: ignore[attr-defined]
        orphans = [key for key in states if str(key).startswith(f"{type(self).__qualname__}[") and key not in keys]
        if orphans:
            raise CheckpointError(
                f"The checkpoint has the pruning state of {orphans[0]}, but this callback is {self.state_key}: "
                "the rules are others. Resume with the rules of the checkpoint, or load only its weights and start a "
                "new fit, which continues from their sparsity."
            )

    def _count_steps(self, trainer: Trainer) -> None:
        """Bring the schedule to the Trainer's optimizer step; several optimizers make several steps a batch."""
        pruner = self._need_pruner()
        while pruner.step_count < trainer.global_step:
            pruner.step()

    def _load(self, state: dict[str, Any]) -> None:
        """Take over a saved state, or nothing of it if a part is damaged."""
        has_timeline = isinstance(state, dict) and _TIMELINE in state  # that of a pruner without a Trainer has none
        if has_timeline:
            Timeline().load_state_dict(state[_TIMELINE])
        self._need_pruner().load_state_dict(state, allow_config_change=self.allow_config_change)
        if has_timeline:
            self._timeline.load_state_dict(state[_TIMELINE])

    def _follow_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the updates that are still to come to where they belong in a run that turns out otherwise."""
        pruner = self._need_pruner()
        run = self._timeline.follow(trainer, pl_module, pruner.step_count)
        if run is None:
            return
        try:
            pruner.resolve(run)
        except ConfigError as error:  # no reason to stop a training that has begun
            rank_zero_warn(f"The run is not as long as it was thought to be, and the schedule stays as it was. {error}")

    def _check_replicas(self, trainer: Trainer) -> None:
        """Stop all processes of a data-parallel run if one of them has gone its own way."""
        if trainer.world_size > 1 and is_a(trainer.strategy, "DDPStrategy"):
            self._need_pruner().check_replicas()

    def _open_gate(self, trainer: Trainer) -> None:
        if self._gate is not None and not self._gate.is_open:
            forgotten = self._gate.open(trainer)
            if forgotten:
                rank_zero_info(
                    f"The target sparsity is reached: the best checkpoint is chosen anew from here. "
                    f"{', '.join(forgotten)} stay, but were made before it."
                )

    def _mask_averages(self, trainer: Trainer) -> None:
        """Keep the models of averaging callbacks sparse: an average of pruned weights stays so until masks change."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if isinstance(average, nn.Module):
                self._need_pruner().mask_copy(getattr(average, "module", average))

    def _forget_foreign(self) -> None:
        if self._foreign is not None:
            self._foreign.remove()
            self._foreign = None

    def _finish(self, trainer: Trainer, *, is_failed: bool = False) -> None:
        """Finalize the module if it is not yet, and keep the state for a checkpoint that is still to be written."""
        unlock(self.config)
        self._forget_foreign()
        if self._last_layer is not None:
            self._last_layer.close()
            self._last_layer = None
        if self._gate is not None:
            self._gate.close()
        self._is_training = False
        if self.pruner is not None and self.pruner.is_prepared:
            try:
                self.pruner.settle()
                if self._restored is not None:  # no training has begun: what was saved still holds
                    with suppress(PruningError):  # for the report: rules may have changed, or need the length of a run
                        self.pruner.load_state_dict(self._restored)
                    self._saved, self._restored = self._restored, None
                elif not (is_failed and self.pruner.is_sharded):  # the others may not be there to give their parts
                    self._saved = self.state_dict()
            finally:
                self.pruner.finalize(inplace=True)
        self._gate = None

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        export, pruner = self.export, self._need_pruner()
        if export is None:
            return
        try:
            self.export_result = export.save(pl_module, masks=pruner.masks())
        except ExportError as error:
            self.export_error = error
            if export.on_error == "raise":
                raise
            rank_zero_warn(
                f"The Core ML export failed; the trained and pruned model is unharmed. {error} "
                "Retry with callback.export.save(model)."
            )
            return
        _show(self.export_result)
        for logger in trainer.loggers:
            logger.log_metrics(self.export_result.as_dict(), step=trainer.global_step)

    def _log(self, trainer: Trainer, pl_module: LightningModule, changes: dict[str, float] | None = None) -> None:
        metrics = {**self.report().metrics(prefix=self.log_prefix, layers=self.log_layers), **(changes or {})}
        # For monitors and the progress bar. Loggers are called directly: self.log passes a step on to them only at
        # multiples of log_every_n_steps, which would drop updates.
        for name, value in metrics.items():
            is_shown = self.prog_bar and name == f"{self.log_prefix}/global"
            pl_module.log(name, value, prog_bar=is_shown, logger=False, batch_size=1)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _need_pruner(self) -> MagnitudePruner:
        if self.pruner is None:
            raise LifecycleError("The callback was not set up by a Trainer. Call trainer.fit(model, callbacks=[...]).")
        return self.pruner


def _load_export(export: Any) -> CoreMLExport | None:
    """Read an export in any form that a user may hold."""
    if isinstance(export, (CoreMLExport, type(None))):
        return export
    if isinstance(export, (str, os.PathLike)):
        return CoreMLExport(export)
    if type(export).__module__.startswith("jsonargparse.") and hasattr(export, "as_dict"):
        return _load_export(export.as_dict())  # what LightningCLI could not build: the error says why
    if not isinstance(export, Mapping):
        raise ConfigError(f"export must be a CoreMLExport, a path or None, got {shown(export)}.")
    if "class_path" in export and set(export) <= {"class_path", "init_args"}:  # as LightningCLI writes
        if str(export["class_path"]).rpartition(".")[2] != CoreMLExport.__name__:
            raise ConfigError(f"class_path of an export must be CoreMLExport, got {shown(export['class_path'])}.")
        return _load_export(export["init_args"] if export.get("init_args") else {})
    known = [entry.name for entry in fields(CoreMLExport)]
    for key in export:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" Known are {', '.join(known)}."
            raise ConfigError(f"export.{one_line(key)} is not a known key.{hint}")
    if "path" not in export:
        raise ConfigError('export.path is missing. Write where the package goes: {"path": "model.mlpackage"}.')
    return CoreMLExport(**export)


def _show(renderable: RenderableType) -> None:
    """Log a table through Lightning's own logger, as ModelSummary does."""
    rank_zero_info(f"\n{as_text(renderable)}")
