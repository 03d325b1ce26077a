"""The Lightning callback: hooks of a Trainer, and nothing about how pruning works."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.basics import as_flag, check_lock, unlock
from lightning_prune.callback.averages import mask_averages, refuse_averages
from lightning_prune.callback.callers import builder, listed_beside
from lightning_prune.callback.checks import (
    lock_config,
    refuse_orphans,
    refuse_second_pruner,
    refuse_twins,
    stand_before_checkpoints,
    warn_if_missed,
    warn_if_too_short,
    warn_if_uncounted,
    warn_if_untrained,
)
from lightning_prune.callback.exports import in_a_list, load_exports, refuse_sharded
from lightning_prune.callback.figures import FigureLog
from lightning_prune.callback.fit import Fit
from lightning_prune.callback.logs import as_prefix, log_metrics, show, show_start, sparsity_metrics
from lightning_prune.callback.outcome import hand_over, raise_if_asked
from lightning_prune.callback.pages import check_page, load_page, write_run_page
from lightning_prune.callback.strategies import check_strategy
from lightning_prune.config import MagnitudePrunerConfig, load_config
from lightning_prune.errors import ConfigError, ExportError, LifecycleError, PageError, SlimError
from lightning_prune.export import CoreMLExport, Export, ExportResult
from lightning_prune.masking import Masking, way_of
from lightning_prune.plan import PruningPlan
from lightning_prune.pruner import MagnitudePruner, Planner, Rewind, Scope, SparsityReport, check_choices
from lightning_prune.sharding import reshard_model
from lightning_prune.slim import Slim, SlimResult

__all__ = ["MagnitudePruningCallback"]

_FIXED = {"config", "masking", "scope", "keep_zeros", "best_at_target", "allow_untested"}  # read when a fit begins
_FIXED |= {"slim", "rewind", "page", "log_figures"}


class MagnitudePruningCallback(Callback):
    """Prunes a LightningModule while the Trainer fits it.

    ``on_fit_start`` prepares the module, ``on_train_batch_end`` counts optimizer steps and updates the masks that are
    due, ``on_fit_end`` finalizes the module and exports it. In between the module's weights are always
    pruned, so that checkpoints, validation and weight averages see what will be shipped.

    Args:
        config: What to prune and how: a :class:`~lightning_prune.config.MagnitudePrunerConfig`, a nested dict, the path
            of a YAML file or its text, or a configuration of Core ML Tools.
        masking: How masks are held. ``"resident"`` leaves all names of the module as they are; ``"hook"`` gives modules
            ``weight_orig`` and ``weight_mask``, as Core ML Tools does; checkpoints have plain names either way.
        scope: What is ranked together at an update: ``"layer"``, each layer by itself, or ``"global"``, the weights of
            all layers, so that layers of small weights become sparser than others.
        export: Write a file for another runtime at the end of fit: a :class:`~lightning_prune.export.CoreMLExport` or
            another :class:`~lightning_prune.export.Export`, a dict of its arguments, a path, whose ending says the
            format, or a list of these. A failing export costs neither the trained model nor another export: the model
            is finalized, and ``export_errors`` says what happened.
        slim: Prune channels that can be cut out, and cut them out at the end of fit: ``True``, or
            :class:`~lightning_prune.slim.Slim` with the example inputs, names of modules to keep whole, and a path for
            the recipe. See :class:`~lightning_prune.MagnitudePruner`. The module itself keeps its size; ``slim_result``
            has the slim copy, and an export writes that.
        rewind: Set weights back to their values of an early step when masks were chosen, and train on (lottery
            tickets): the step, or :class:`~lightning_prune.Rewind`.
        page: Write what came of the run to a page of HTML at this path, when it is over or was interrupted; a page that
            is there is replaced, another file is not. A page that cannot be written costs nothing: ``page_error`` says
            why.
        log_figures: Give pictures to loggers that take any (TensorBoard, Weights & Biases, MLflow) at each update of
            masks: sparsity as planned and as it came, that of each layer, and the first six masks. Needs matplotlib.
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
        allow_untested: Run with a strategy other than :data:`~lightning_prune.callback.strategies.TESTED_STRATEGIES`.

    Attributes:
        config: The configuration, a :class:`~lightning_prune.config.MagnitudePrunerConfig`: a copy of what was given.
            It can be changed, but not while a fit runs; nor can then the other arguments that a fit reads when it
            begins.
        pruner: The :class:`~lightning_prune.pruner.MagnitudePruner` of the current or last fit; None before.
        export: The export, the list of exports, or None.
        export_results: What was exported at the end of fit: a list of
            :class:`~lightning_prune.export.ExportResult`, of the exports that succeeded.
        export_errors: Each export that failed, with its error: a list of pairs.
        slim: The settings of slimming, or None.
        slim_result: The slim network and its proof, a :class:`~lightning_prune.slim.SlimResult`, at the end of fit in
            the first process; None before, and without ``slim``.
        slim_error: Why there is none, or no file of it, or None.
        page: The path of the page, or None.
        page_error: Why it was not written, or None.

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
        export: CoreMLExport | dict[str, Any] | list[Any] | object | None = None,
        slim: Slim | dict[str, Any] | bool | None = None,
        rewind: Rewind | dict[str, Any] | int | None = None,
        page: str | os.PathLike[str] | None = None,
        log_figures: bool = False,
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
            self.config = config
            self.export = load_exports(export)
            self.slim = check_choices(self.config, slim, masking, scope)
            self.rewind = Rewind.of(rewind)
            self.page = load_page(page)
        except ConfigError as error:
            if builder() != "jsonargparse":
                raise
            # It would be one line of thirty in an error of LightningCLI; the Trainer, built next, will ask for the key.
            self._refused, self.export, self.slim, self.rewind, self.page = error, None, None, None, None
        self.masking: Masking = masking
        self.scope: Scope = scope
        self.log_figures = as_flag("log_figures", log_figures)
        self.log_layers = as_flag("log_layers", log_layers)
        self.prog_bar = as_flag("prog_bar", prog_bar)
        self.keep_zeros = as_flag("keep_zeros", keep_zeros)
        self.show_plan = as_flag("show_plan", show_plan)
        self.best_at_target = as_flag("best_at_target", best_at_target)
        self.log_prefix = as_prefix(log_prefix)
        self.allow_config_change = as_flag("allow_config_change", allow_config_change)
        self.allow_untested = as_flag("allow_untested", allow_untested)
        self.slim_result: SlimResult | None = None
        self.slim_error: SlimError | None = None
        self.page_error: PageError | None = None
        self.export_results: list[ExportResult] = []
        self.export_errors: list[tuple[Export, ExportError]] = []
        self._is_fitting = False
        self._fit = Fit()  # the current or last fit; before the first, an empty one
        self._figures: FigureLog | None = None

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

    @property
    def pruner(self) -> MagnitudePruner | None:
        """The pruner of the current or last fit; None before."""
        return self._fit.pruner

    def plan(self, model: nn.Module) -> PruningPlan:
        """Say what would be pruned of a model, by which rule, and what not and why. Nothing is changed."""
        return Planner(self.config, self.slim).plan(model)

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
    def export_result(self) -> ExportResult | None:
        """The first of the results of exports at the end of fit, or None."""
        return self.export_results[0] if self.export_results else None

    @property
    def export_error(self) -> ExportError | None:
        """The first of the errors of exports at the end of fit, or None."""
        return self.export_errors[0][1] if self.export_errors else None

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: the rules without their values, so that a changed target still finds it."""
        if not self._fit.is_training:
            # Lightning asks for all keys when it checks a list of callbacks, and calls no hook of theirs that early.
            # Its own error would not say what to do.
            listed = listed_beside("_validate_callbacks_list", "callbacks")
            refuse_twins([callback._key for callback in listed if isinstance(callback, MagnitudePruningCallback)])
        return self._key

    @property
    def _key(self) -> str:
        return f"{type(self).__qualname__}[{', '.join(self.config.rule_names)}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what can be checked before anything is loaded, and step in front of the checkpoint callbacks."""
        self._is_fitting = stage == "fit"
        if not self._is_fitting:
            self._fit.expect_foreign(pl_module)
            return
        if not self.allow_untested:
            check_strategy(trainer.strategy)
        for export in in_a_list(self.export):
            export.check(pl_module)
        self.page = check_page(self.page)
        self._figures = FigureLog(trainer) if self.log_figures else None
        self._fit = Fit(self._fit)
        self._fit.expect_foreign(pl_module)
        if self.slim is not None:
            self.slim.inputs_of(pl_module)
        self.slim_result = self.slim_error = self.page_error = None
        self.export_results, self.export_errors = [], []
        stand_before_checkpoints(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach masks to the module, and tell them the optimizers."""
        reshard_model(pl_module)
        self._fit.follow_foreign(trainer, pl_module)
        options: dict[str, Any] = {"masking": self.masking, "scope": self.scope, "slim": self.slim}
        pruner = MagnitudePruner(pl_module, self.config, track_changes=True, rewind=self.rewind, **options)
        self._fit.pruner = pruner
        lock_config(self.config)
        pruner.prepare(inplace=True, keep_zeros=self.keep_zeros, optimizers=trainer.optimizers)
        pruner.guard_state_dicts()
        if in_a_list(self.export) and pruner.is_sharded:
            refuse_sharded()
        refuse_second_pruner(trainer, pruner.plan)
        if way_of(self.masking).shows_dense:
            refuse_averages(trainer)
        pruner.find_unattached()  # now, so that step() does not warn of what the next line says
        warn_if_untrained(trainer, pruner)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the schedules in steps, go on where a checkpoint was taken, and show the plan.

        Only now are the length of the run and its global step known: to ask for the length earlier would load the data
        before its state is restored, and a resumable dataloader would start over.
        """
        run = self._fit.start(
            trainer, pl_module, best_at_target=self.best_at_target, allow_config_change=self.allow_config_change
        )
        self._fit.history.describe(self.config)
        pruner = self._fit.need_pruner()
        if self.show_plan:
            show_start(pruner)
        warn_if_too_short(pruner, run)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Heal a step that raised and was caught, and follow optimizers that were replaced."""
        self._fit.start_batch(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The layer that runs last has run."""
        self._fit.start_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Zero the gradients of pruned weights before they are clipped."""
        self._fit.need_pruner().mask_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the optimizer steps of this batch, update masks, and log if they changed."""
        if self._fit.count_steps(trainer, pl_module):
            self._log(trainer, pl_module, with_changes=True)
        self._fit.end_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Zero what another callback wrote to pruned weights."""
        self._fit.start_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was logged."""
        self._fit.note_metrics(trainer, prefix=self.log_prefix)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log once an epoch, whether or not masks changed."""
        self._log(trainer, pl_module)
        self._fit.note_metrics(trainer, prefix=self.log_prefix)
        self._fit.need_pruner().project()
        warn_if_uncounted(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the weights, which an averaging callback may have replaced."""
        self._fit.need_pruner().settle()
        mask_averages(trainer, self._fit.need_pruner())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the zeros permanent, say if the target was missed, make the network slim, and export."""
        self._finish()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warn_if_missed(self._fit.need_pruner())
        if self.show_plan:
            show(self.report())
        if trainer.is_global_zero:
            outcome = hand_over(trainer, pl_module, self._fit.need_pruner(), self.slim, in_a_list(self.export))
            self.slim_result, self.slim_error, self.export_results, self.export_errors = outcome
            self.page_error = write_run_page(self.page, trainer, pl_module, self._fit, outcome=outcome)
            raise_if_asked(self.export_errors)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a plain module, whatever happened: with pruned weights, or as it was if no training had begun."""
        unlock(self.config)
        self._fit = self._fit.undone()
        has_trained = self._fit.is_training
        try:
            self._finish(is_failed=True)
        except Exception as error:
            rank_zero_warn(f"The module could not be left as it should be: {error}")  # what happened is the exception
        if has_trained:
            self.page_error = write_run_page(self.page, trainer, pl_module, self._fit, exception=exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what belongs to this run of the Trainer."""
        self._finish()
        self._fit.forget()
        self._is_fitting, self._figures = False, None

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must hold beside the pruned weights for a bit-exact resume."""
        return self._fit.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: when training starts, or at once if it has."""
        if self._is_fitting and state_dict:
            self._fit.load_state_dict(state_dict, allow_config_change=self.allow_config_change)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume in silence without the pruning state that a checkpoint has under another key."""
        if self._is_fitting:
            refuse_orphans(trainer, self.state_key, checkpoint.get("callbacks", {}))

    def _finish(self, *, is_failed: bool = False) -> None:
        """Finalize the module if it is not yet, and let the configuration be changed again."""
        unlock(self.config)
        self._fit.finish(is_failed=is_failed)

    def _log(self, trainer: Trainer, pl_module: LightningModule, *, with_changes: bool = False) -> None:
        """Log the sparsity, and what the last update changed."""
        pruner = self._fit.need_pruner()
        metrics = sparsity_metrics(pruner, self.log_prefix, layers=self.log_layers, with_changes=with_changes)
        whole = f"{self.log_prefix}/global"
        log_metrics(trainer, pl_module, metrics, in_prog_bar=whole if self.prog_bar else None)
        self._fit.history.add_sparsity(pruner.step_count, metrics[whole])
        if with_changes and self._figures is not None:
            self._figures.log(trainer, self._fit, self.log_prefix)
