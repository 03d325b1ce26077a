"""One fit: its pruner, how far its run has come, and what a checkpoint of it must hold."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_prune.basics import is_a
from lightning_prune.callback.averages import mask_averages
from lightning_prune.callback.checks import warn_if_abrupt
from lightning_prune.callback.last_layer import LastLayerWatch
from lightning_prune.callback.monitors import TargetGate, check_gate
from lightning_prune.callback.timeline import Timeline
from lightning_prune.errors import CheckpointError, ConfigError, LifecycleError, PruningError
from lightning_prune.masking import ForeignWeights
from lightning_prune.page import Curve, History, planned_curve
from lightning_prune.pruner import MagnitudePruner
from lightning_prune.schedules import TrainingRun
from lightning_prune.sharding import reshard_model

__all__ = ["Fit"]

_MOST_MISSED = 10**6  # optimizer steps in a batch that a checkpoint was saved in; each is made up for
_TIMELINE, _GATE, _HISTORY = "timeline", "gate", "history"  # keys in the state of a fit, beside those of the pruner's


class Fit:
    """One fit of a Trainer, from the setup of the callback to the end: each method is called by one or two hooks.

    Args:
        before: The fit before; what it left is still true until this fit trains.

    Attributes:
        pruner: The pruner; None until the masks are attached.
        before: As given, until this fit trains.
        is_training: Whether batches are trained: schedules are in steps, and a checkpoint is loaded if there is one.
        history: What was logged until now, also before the checkpoint that the fit was resumed from.
        run: The run as it is thought to be; None before training starts.
    """

    def __init__(self, before: Fit | None = None) -> None:
        self.pruner: MagnitudePruner | None = None
        self.before = before
        self.is_training = False
        self.history = History()
        self.run: TrainingRun | None = None
        self._foreign: ForeignWeights | None = None
        self._timeline = Timeline()
        self._gate: TargetGate | None = None
        self._last_layer: LastLayerWatch | None = None
        self._may_be_written = False  # the weights, by the module's own hooks before the first batch
        self._restored: dict[str, Any] | None = None  # a state that came before training starts
        self._saved: dict[str, Any] = {}  # the state, once the masks are gone
        self._logged_at: int | None = None  # the last update that was logged, of a schedule without end

    def need_pruner(self) -> MagnitudePruner:
        """Give the pruner.

        Raises:
            LifecycleError: There is none yet.
        """
        if self.pruner is None:
            raise LifecycleError("The callback was not set up by a Trainer. Call trainer.fit(model, callbacks=[...]).")
        return self.pruner

    def expect_foreign(self, pl_module: LightningModule) -> None:
        """Let a checkpoint that another pruning library wrote be loaded into the module."""
        self._foreign = ForeignWeights(pl_module)

    def follow_foreign(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the state of its optimizers be loaded, too."""
        if self._foreign is not None:
            self._foreign.follow(pl_module, trainer.optimizers)

    def start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        best_at_target: bool,
        allow_config_change: bool,
    ) -> TrainingRun:
        """Write the schedules in steps, and go on where a checkpoint was taken.

        Args:
            trainer: The Trainer, about to train its first batch.
            pl_module: The module, with masks.
            best_at_target: Whether monitors wait for the target.
            allow_config_change: Whether a state that was pruned by other targets or schedules may be loaded.

        Returns:
            The run, as the Trainer plans it.
        """
        gate = check_gate((self._restored or {}).get(_GATE))
        pruner, run = self.need_pruner(), self._timeline.measure(trainer, pl_module)
        reshard_model(pl_module)  # the sanity check may have left whole weights behind
        self._may_be_written = self._restored is None
        if self._may_be_written:
            pruner.prepare_anew_if_written()
        pruner.resolve(run)
        self.run = run
        if self._restored is not None:
            self._resume(trainer, pl_module, self._restored, allow_config_change=allow_config_change)
        else:
            pruner.restore_dense({} if self._foreign is None else self._foreign.dense)
            pruner.fast_forward(trainer.global_step)
            warn_if_abrupt(pruner, run)
        self.before, self._restored = None, None
        self._forget_foreign()
        self.is_training = True
        self._last_layer = LastLayerWatch(pl_module, pruner.plan)
        self._spread_masks(trainer)
        # what was the best until now is not as sparse as a network that was pruned just now
        is_open = pruner.is_at_target and pruner.update_count == 0
        self._gate = None
        if best_at_target and (gate is not None or not is_open):
            self._gate = TargetGate(trainer, gate if is_open else None)
        self._open_gate(trainer)
        return run

    def start_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Heal a step that raised and was caught, and follow optimizers that were replaced."""
        pruner = self.need_pruner()
        pruner.reset_optimizers()
        pruner.attach_optimizers(*trainer.optimizers)
        if self._may_be_written and pruner.prepare_anew_if_written():
            pruner.resolve(self._timeline.measure(trainer, pl_module))
            pruner.fast_forward(trainer.global_step)
        self._may_be_written = False
        pruner.project_if_written()

    def start_backward(self) -> None:
        """Look no further for the layer that runs last: a backward pass may run earlier layers again."""
        if self._last_layer is not None:
            self._last_layer.close()

    def count_steps(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Count the optimizer steps of a batch, and update the masks that are due.

        Returns:
            Whether masks were updated, and that is to be logged: where they are updated at the target without end,
            every ``log_every_n_steps`` steps, since logging takes longer than most updates.
        """
        pruner = self.need_pruner()
        if self._last_layer is not None:
            self._last_layer.warn()
            self._last_layer = None
        updates = pruner.update_count
        self._follow_run(trainer, pl_module)
        self._catch_up(trainer)
        is_updated = pruner.update_count != updates
        if is_updated:
            self._spread_masks(trainer)
        return is_updated and self._is_to_log(trainer)

    def _is_to_log(self, trainer: Trainer) -> bool:
        pruner = self.need_pruner()
        if pruner.last_update_step is not None or not pruner.is_at_target:
            return True
        step, every = pruner.step_count, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._logged_at is not None and step - self._logged_at < every:
            return False
        self._logged_at = step
        return True

    def end_batch(self, trainer: Trainer) -> None:
        """Zero what something else wrote in this batch, and hold the monitors until the target is reached."""
        self.need_pruner().project_if_written()
        self._open_gate(trainer)
        if self._gate is not None:
            self._gate.hold(trainer)
            self._gate = None if self._gate.is_done else self._gate

    def start_validation(self, trainer: Trainer) -> None:
        """Zero what another callback wrote to pruned weights."""
        if self.is_training:
            self.need_pruner().project()
        if self._gate is not None:
            self._gate.start_validation(trainer)

    def finish(self, *, is_failed: bool = False) -> None:
        """Finalize the module if it is not yet, and keep the state for a checkpoint that is still to be written."""
        self._forget_foreign()
        self.start_backward()
        self._last_layer = None
        if self._gate is not None:
            self._gate.close()
        self.is_training = False
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

    def undone(self) -> Fit:
        """The fit that is true when this one failed: the fit before, if this one has not trained."""
        if self.before is None:
            return self
        self._forget_foreign()
        if self.pruner is not None and self.pruner.is_prepared:
            self.pruner.undo()
        return self.before

    def note_metrics(self, trainer: Trainer, *, prefix: str) -> None:
        """Let the history have what was logged since the last call; names with the prefix are our own."""
        if self.is_training:
            self.history.add_metrics(self.need_pruner().step_count, trainer.callback_metrics, prefix=prefix)

    def plan_curve(self) -> None:
        """Let the history have the sparsity that schedules ask for, as far as the run is known."""
        pruner = self.need_pruner()
        if self.history.planned.steps or self.run is None:
            return
        last = self.run.total_steps or max(pruner.step_count, pruner.last_update_step or 0)
        with suppress(Exception):  # a schedule of the user's own may be asked for what it does not foresee
            self.history.planned = planned_curve(pruner.plan, pruner.schedules, last)

    def forget(self) -> None:
        """Let go of what a fit that never trained has kept."""
        self.before, self._restored = None, None

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must hold beside the pruned weights for a bit-exact resume."""
        if self._restored is not None:
            return self._restored
        if self.pruner is not None and self.pruner.is_prepared:
            gate = self._gate.state_dict() if self._gate is not None and self._gate.is_open else None
            state = {**self.pruner.state_dict(), _TIMELINE: self._timeline.state_dict(), _GATE: gate}
            self.plan_curve()
            return {**state, _HISTORY: self.history.state_dict()}
        return self._saved

    def load_state_dict(self, state: dict[str, Any], *, allow_config_change: bool) -> None:
        """Go on where :meth:`state_dict` was taken: when training starts, or at once if it has."""
        if self.is_training:
            self._load(state, allow_config_change=allow_config_change)
        else:
            self._restored = state

    def _resume(
        self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any], *, allow_config_change: bool
    ) -> None:
        """Load a state, and make the steps of a batch whose end was never reached."""
        self._load(state, allow_config_change=allow_config_change)
        step_count = self.need_pruner().step_count
        if trainer.global_step - step_count > _MOST_MISSED:
            raise CheckpointError(
                f"The pruning state is of optimizer step {step_count}, but the checkpoint of step "
                f"{trainer.global_step}: it is damaged. Resume from another one."
            )
        self._follow_run(trainer, pl_module)
        self._catch_up(trainer)

    def _load(self, state: dict[str, Any], *, allow_config_change: bool) -> None:
        """Take over a saved state, or nothing of it if a part is damaged."""
        has_timeline = isinstance(state, dict) and _TIMELINE in state  # that of a pruner without a Trainer has none
        if has_timeline:
            Timeline().load_state_dict(state[_TIMELINE])
            History().load_state_dict(state.get(_HISTORY, History().state_dict()))  # an older state has none
        self.need_pruner().load_state_dict(state, allow_config_change=allow_config_change)
        if has_timeline:
            self._timeline.load_state_dict(state[_TIMELINE])
            if _HISTORY in state:
                self.history.load_state_dict(state[_HISTORY])
            self.history.planned = Curve()  # that of this run may be another

    def _follow_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the updates that are still to come to where they belong in a run that turns out otherwise."""
        pruner = self.need_pruner()
        run = self._timeline.follow(trainer, pl_module, pruner.step_count)
        if run is None:
            return
        self.run, self.history.planned = run, Curve()
        try:
            pruner.resolve(run)
        except ConfigError as error:  # no reason to stop a training that has begun
            rank_zero_warn(f"The run is not as long as it was thought to be, and the schedule stays as it was. {error}")

    def _catch_up(self, trainer: Trainer) -> None:
        """Bring the schedule to the Trainer's optimizer step; several optimizers make several steps a batch."""
        pruner = self.need_pruner()
        while pruner.step_count < trainer.global_step:
            pruner.step()

    def _spread_masks(self, trainer: Trainer) -> None:
        """Mask averages too, and stop all processes of a data-parallel run if one of them has gone its own way."""
        mask_averages(trainer, self.need_pruner())
        if trainer.world_size > 1 and is_a(trainer.strategy, "DDPStrategy"):
            self.need_pruner().check_replicas()

    def _forget_foreign(self) -> None:
        if self._foreign is not None:
            self._foreign.remove()
            self._foreign = None

    def _open_gate(self, trainer: Trainer) -> None:
        """Let monitors compare from now on, if the target is reached."""
        if self._gate is None or self._gate.is_open or not self.need_pruner().is_at_target:
            return
        forgotten = self._gate.open(trainer)
        if forgotten:
            rank_zero_info(
                f"The target sparsity is reached: the best checkpoint is chosen anew from here. "
                f"{', '.join(forgotten)} stay, but were made before it."
            )
