"""The pruner: prepare a model, step with its optimizer, finalize it. No Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.config import load_config
from lightning_prune.errors import ConfigError, LifecycleError
from lightning_prune.masking import Masking, way_of
from lightning_prune.plan import SUPPORTED_MODULES, PruningPlan, copy_module, warn_of_dense
from lightning_prune.pruner import finalizing
from lightning_prune.pruner.choices import Scope, check_choices
from lightning_prune.pruner.coupling import Planner
from lightning_prune.pruner.masked import MaskedModel
from lightning_prune.pruner.measuring import report_layers
from lightning_prune.pruner.progress import Progress
from lightning_prune.pruner.report import SparsityReport
from lightning_prune.pruner.rewind import Rewind
from lightning_prune.pruner.training import Training
from lightning_prune.schedules import TrainingRun
from lightning_prune.slim import Slim

__all__ = ["MagnitudePruner"]


class MagnitudePruner(MaskedModel):
    """Makes a model sparse while it trains, keeping the weights that are largest in magnitude.

    At each update step of its schedule a layer's mask is computed anew from its dense weights, so that a weight that
    was pruned may return. Between updates the mask holds, and the optimizer trains what it keeps. A method that needs
    attached masks raises a LifecycleError before :meth:`prepare` and after :meth:`finalize`.

    Args:
        model: The model to prune.
        config: What to prune and how, in any form that :func:`~lightning_prune.config.load_config` reads.
        masking: How a mask is held. ``"hook"``: as Core ML Tools documents it, the module has ``weight_orig``,
            ``weight_mask`` and a forward pre-hook. ``"resident"``: ``weight`` stays the Parameter and always is the
            pruned weight; the optimizers must be given to :meth:`attach_optimizers`. Both train bit-equal networks.
        scope: What is ranked together at an update. ``"layer"``: each layer by itself, at the sparsity of its schedule.
            ``"global"``: the single weights of all layers that are due, anew each time; they have as many zeros
            together as their schedules ask for, and no layer keeps less than a tenth of the density of them all.
        track_changes: Count what each update changes, for :attr:`changes`. Costs a copy of one mask at a time.
        slim: With ``True`` or :class:`~lightning_prune.slim.Slim`, rules ``per_channel`` prune channels that can be cut
            out: those that can only go together as one, ranked by the norm of all their weights, with biases and norms.
            What cannot go stays dense, and the plan says why. Needs ``masking="resident"``.
        rewind: :class:`~lightning_prune.Rewind`, or its step: kept weights go back to early values. Needs optimizers.

    Raises:
        ConfigError: The configuration does not hold together, or ``masking`` or ``scope`` is unknown.

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
        slim: Slim | dict[str, Any] | bool | None = None,
        rewind: Rewind | dict[str, Any] | int | None = None,
    ) -> None:
        self._model, self._config = model, load_config(config)
        settings, self._rewind = check_choices(self._config, slim, masking, scope), Rewind.of(rewind)
        self._planner = Planner(self._config, settings)
        self._way, self._scope, self._track_changes = way_of(masking), scope, track_changes
        self._progress = Progress(model, Training(self._way))  # without layers: not prepared
        self._plan: PruningPlan | None = None
        self._keep_zeros = self._has_told = False  # told of what stays dense

    @property
    def model(self) -> nn.Module:
        """The model that is pruned: the prepared copy, unless ``prepare(inplace=True)``."""
        return self._model

    @property
    def plan(self) -> PruningPlan:
        """What is pruned, by which rule, and what is not and why."""
        if self._plan is None:
            return self._planner.plan(self._model)
        waiting = [layer.plan for layer in self._layers if layer.is_waiting]
        why = "nothing trains it: it waits until an optimizer does"
        return self._plan.without(waiting, why) if waiting else self._plan

    @property
    def supported_modules(self) -> tuple[type[nn.Module], ...]:
        """What ``global_config`` prunes; other modules are pruned where their type or name is given."""
        return SUPPORTED_MODULES

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
                them trains, or that is frozen, then waits: it is left out of updates, and catches up at the next update
                after it is trained. A weight that a rule names in full does not wait. Needs ``inplace``.

        Raises:
            ConfigError: The configuration does not fit the model; a LifecycleError if it is prepared already.
        """
        if self._layers:
            raise LifecycleError("prepare() was called before. Make a new MagnitudePruner to prune again.")
        if optimizers is not None and not inplace:
            raise ConfigError("optimizers train the model itself, not a copy of it. Write prepare(inplace=True, ...).")
        training = Training(self._way, optimizers)
        model = self._model if inplace else copy_module(self._model)
        plan = self._planner.plan(model)
        if not self._has_told:  # what is prepared anew is told of already
            warn_of_dense(plan, self._config)
            self._has_told = True
        self._progress = Progress(model, training, self._scope, track_changes=self._track_changes, rewind=self._rewind)
        try:
            self._progress.attach(plan, self._way, keep_zeros=keep_zeros)
            if run is not None:
                self.resolve(run)
            self.attach_optimizers(*training.optimizers)
        except BaseException:
            self._take_off()
            raise
        self._plan, self._keep_zeros = plan, keep_zeros
        self._progress.note_start(anew=True)
        self._unprepared, self._model = self._model, model
        return model

    def prepare_anew_if_written(self) -> bool:
        """Choose the masks of :meth:`prepare` again if something else has written to the weights since; say whether.

        Weights that are loaded after ``prepare`` are pruned by their own magnitudes then, not by those of what they
        have replaced. Before the first step, of a model that was prepared in place; call :meth:`resolve` again then.
        """
        self._need_prepared("prepare_anew_if_written")
        if not self._progress.was_written():
            self._progress.retake_start()
            return False
        training, is_guarded = self._progress.training, self._progress.is_guarded
        for layer in self._layers:
            layer.held.take_writes()
        self.undo()
        optimizers = training.optimizers if training.may_wait else None
        self.prepare(inplace=True, keep_zeros=self._keep_zeros, optimizers=optimizers)
        if is_guarded:
            self.guard_state_dicts()
        self.attach_optimizers(*training.optimizers)
        return True

    def guard_state_dicts(self) -> None:
        """Let every state dict have pruned weights under plain names, not ``weight_orig`` and ``weight_mask``."""
        self._need_prepared("guard_state_dicts")
        self._progress.guard_state_dicts()

    def undo(self) -> None:
        """Take the masks off and put back what they pruned away: as if :meth:`prepare` had not been called.

        With ``masking="resident"`` that is forgotten at the last update of a schedule, and stays zero then.
        """
        self._need_prepared("undo")
        self._take_off()
        self._model = self._unprepared

    def resolve(self, run: TrainingRun) -> None:
        """Write the schedules that are in units of a training run (fractions, epochs) as steps.

        Call it before the first step, and again whenever the run turns out otherwise than it was thought to be: updates
        that were made stay, those to come move, and sparsity does not fall. A schedule that needs a length which is not
        known, or cannot finish in the run, is a ConfigError.
        """
        self._need_prepared("resolve")
        self._progress.resolve(run)

    def attach_optimizers(self, *optimizers: Optimizer) -> None:
        """Tell which optimizers train the model. Resident masks need them; hooks do without."""
        self._need_prepared("attach_optimizers")
        self._progress.training.attach(optimizers, self._layers)

    def step(self) -> None:
        """Count one optimizer step, and update the masks that are due. Call it after ``optimizer.step()``.

        Warns once where what is pruned away cannot be trained: resident masks that know no optimizer of a weight, and
        weights behind a hook that no forward has used at the first step.

        Raises:
            PruningError: A weight holds NaN; its mask stays as it was, and the step is not counted.
        """
        self._need_prepared("step")
        self._progress.step()

    def fast_forward(self, step_count: int) -> None:
        """Go to a later step of the schedule at once, pruning as far as it has come by then; never back."""
        self._need_prepared("fast_forward")
        self._progress.fast_forward(step_count)

    def restore_dense(self, dense: Mapping[str, Tensor]) -> None:
        """Put back, behind the masks, what another pruning library had pruned away.

        The zeros that it left are the mask, which holds until the next update of the schedule. That goes on as the
        configuration says, and not from these zeros on. ``dense`` has weights before masking, by parameter name.
        """
        self._progress.restore_dense(dense)

    def finalize(
        self, model: nn.Module | None = None, inplace: bool = False, *, coreml_metadata: bool = False
    ) -> nn.Module:
        """Make the zeros permanent and leave a plain module. Doing it twice is harmless.

        Args:
            model: The model to finalize: the prepared one, or a copy of it; any other is an error.
            inplace: Change the model itself instead of a copy.
            coreml_metadata: Register the buffers by which Core ML Tools recognises a pruned layer on conversion. That
                path also zeroes every weight of magnitude up to 9.77e-4; see
                :func:`~lightning_prune.masking.metadata.register_coreml_metadata`.
        """
        self._need_layers("finalize")
        target = self._model if model is None else model
        if inplace and target is self._model:
            if not self.is_finalized:
                self._progress.detach()
        else:
            if self.is_prepared:
                self.settle()  # a forward that was interrupted leaves a weight with its graph, which has no copy
            target = finalizing.finalize_copy(self._layers, target, inplace=inplace)
        if coreml_metadata:
            finalizing.register_layers(self.plan, target)
        return target

    def report(self) -> SparsityReport:
        """Count the zeros of the masks, layer by layer; layers that wait to be trained are left out."""
        self._need_layers("report")
        return report_layers(self._layers, has_targets=self._scope == "layer")

    def state_dict(self) -> dict[str, Any]:
        """Give the step count, the masks and the pruned-away values as plain numbers and tensors.

        The state does not depend on how the model is sharded. Where it is, every process must call this: all is brought
        to the memory of the first process, layer by layer; the others get a state without parameters.
        """
        self._need_layers("state_dict")
        return self._progress.state_dict()

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
        self._progress.load_state_dict(state, allow_config_change=allow_config_change)

    def _take_off(self) -> None:
        progress, self._progress, self._plan = self._progress, Progress(self._model, Training(self._way)), None
        progress.take_off()
