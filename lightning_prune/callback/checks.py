"""What a fit is refused or warned of, because it would prune otherwise than its user thinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.basics import is_a, lock
from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.errors import CheckpointError, ConfigError
from lightning_prune.plan import PruningPlan, shared_patterns
from lightning_prune.pruner import MagnitudePruner
from lightning_prune.schedules import ConstantSparsityScheduler, PruningScheduler, TrainingRun

__all__ = [
    "lock_config",
    "refuse_orphans",
    "refuse_second_pruner",
    "refuse_twins",
    "stand_before_checkpoints",
    "warn_if_abrupt",
    "warn_if_missed",
    "warn_if_too_short",
    "warn_if_uncounted",
    "warn_if_untrained",
]

_FEW = 6  # updates, below which an update of a cubic schedule prunes more than half of what is to be pruned
_FITTING = (
    "the fit has begun, and keeps what it began with. Change it when the fit is over, or stop, "
    "change it, and resume from a checkpoint with allow_config_change=True."
)
_ROOM = 20  # optimizer steps of a run in which there is room for more


def stand_before_checkpoints(trainer: Trainer, callback: Callback) -> None:
    """Let a callback go before those that write checkpoints, which are to hold what it has done."""
    # a new list: the Trainer is walking over the old list
    others = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
    place = next((place for place, other in enumerate(others) if is_a(other, "Checkpoint")), len(others))
    trainer.callbacks = [*others[:place], callback, *others[place:]]  # type: ignore[attr-defined]


def lock_config(config: MagnitudePrunerConfig) -> None:
    """Refuse changes of a configuration while a fit runs."""
    lock(config, _FITTING)


def refuse_twins(keys: Sequence[str]) -> None:
    """Refuse two pruning callbacks of which Lightning could not tell the states apart: they have the same rules."""
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(
                f"The Trainer has {keys.count(key)} pruning callbacks with rules of the same names, {key}: one "
                "parameter can have one pruner. Give it one of them, and write all rules into its configuration."
            )


def refuse_second_pruner(trainer: Trainer, plan: PruningPlan) -> None:
    """Refuse Lightning's ModelPruning on a parameter of the plan: it would rename it at the end of the first epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        others = {(id(module), name) for module, name in getattr(callback, "_parameters_to_prune", None) or ()}
        for parameter in plan:
            if any((id(owner.module), owner.attribute) in others for owner in parameter.owners):
                raise ConfigError(
                    f"{parameter.rule}: {parameter.name} is pruned already, by {type(callback).__name__}. One "
                    "parameter can have one pruner: take one of the two callbacks out, or leave this module out "
                    "with None."
                )


def refuse_orphans(trainer: Trainer, key: str, states: Mapping[str, object]) -> None:
    """Refuse to resume in silence without the pruning state that a checkpoint has under the key of other rules.

    Args:
        trainer: Its callbacks have the keys that are theirs.
        key: The key of the pruning callback that asks.
        states: States of callbacks in the checkpoint, by key.
    """
    if key in states:
        return
    kind, known = key.partition("[")[0], {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
    orphans = [other for other in states if str(other).startswith(f"{kind}[") and other not in known]
    if orphans:
        raise CheckpointError(
            f"The checkpoint has the pruning state of {orphans[0]}, but this callback is {key}: the rules are others. "
            "Resume with the rules of the checkpoint, or load only its weights and start a new fit, which continues "
            "from their sparsity."
        )


def warn_if_untrained(trainer: Trainer, pruner: MagnitudePruner) -> None:
    """Say which weights no optimizer of the Trainer updates, though they are not frozen."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    known = {id(parameter) for group in groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in pruner.parameters().items() if parameter.requires_grad}
    names = [name for name, parameter in trained.items() if id(parameter) not in known]
    if names:
        rank_zero_warn(
            f"Updated by no optimizer of the Trainer: {', '.join(names)}. What trains them otherwise is not seen, and "
            "they stay dense unless a rule names them in full. Return their optimizer from configure_optimizers, or "
            "leave them out with None."
        )


def warn_if_uncounted(trainer: Trainer) -> None:
    """Say at the end of an epoch that the Trainer has counted no optimizer step."""
    if trainer.global_step == 0:
        rank_zero_warn(
            "An epoch is over, but the Trainer has counted no optimizer step, so nothing was pruned. In manual "
            "optimization step the optimizers that self.optimizers() gives: others are not counted."
        )


def warn_if_missed(pruner: MagnitudePruner) -> None:
    """Say at the end of a fit what is not as sparse as it was meant to be."""
    left = pruner.untrained
    if left:
        modules = dict.fromkeys(map(_module_of, left))
        others = {_module_of(name) for name in pruner.parameters()} - set(modules)
        pattern = "|".join(shared_patterns(modules, others))
        rank_zero_warn(
            f"Not pruned to the target, since no optimizer trained them or they were frozen at their updates: "
            f"{', '.join(left)}. To leave them dense on purpose, write "
            f'module_name_configs: {{"{pattern}": None}}; to prune them all the same, name each in full there.'
        )
    if pruner.is_at_target:
        return
    last = "" if pruner.last_update_step is None else f" at {pruner.last_update_step}"
    rank_zero_warn(
        f"Training ended after {pruner.step_count} optimizer steps, before the last pruning update{last}: "
        f"sparsity is {pruner.report().sparsity:.1%}, below the target."
    )


def _module_of(parameter: str) -> str:
    """Name of the module that a parameter belongs to, also behind a parametrization."""
    return (
        parameter.split(".parametrizations.")[0] if ".parametrizations." in parameter else parameter.rpartition(".")[0]
    )


def warn_if_abrupt(pruner: MagnitudePruner, run: TrainingRun) -> None:
    """Say where a schedule from ``begin`` to ``end`` comes down to few updates, though the run has room for more."""
    if run.is_rehearsal or run.total_steps is None or run.total_steps < _ROOM or pruner.is_at_target:
        return
    schedules = pruner.schedules
    rules = {parameter.rule: (parameter.config.schedule, schedules[parameter.name]) for parameter in pruner.plan}
    for rule, (written, schedule) in rules.items():
        if written.is_resolved:
            continue
        steps: Sequence[int] = getattr(schedule, "update_steps", ())
        begin, end = (getattr(written, name, None) for name in ("begin", "end"))
        if not 0 < len(steps) < _FEW or begin == end:  # of one moment one update is asked for
            continue
        if end == 1 and isinstance(end, int):
            advice = "end=1 is one step; write 1.0 for the whole run."
        elif getattr(written, "frequency", None) is not None and steps[-1] - steps[0] >= _FEW - 1:
            advice = "Leave frequency out, or write a smaller frequency."
        else:
            advice = "Let begin and end lie further apart."
        updates = "1 update" if len(steps) == 1 else f"{len(steps)} updates"
        rank_zero_warn(
            f"{rule}.scheduler makes {updates} in this run, at optimizer steps {', '.join(map(str, steps))}: so much "
            f"at once costs accuracy. {advice}"
        )


def warn_if_too_short(pruner: MagnitudePruner, run: TrainingRun) -> None:
    """Say which schedules in steps end after the run does, and what to write in each."""
    if run.is_rehearsal or run.total_steps is None:
        return
    written = {parameter.rule: parameter.config.schedule for parameter in pruner.plan}
    rules = {parameter.rule: pruner.schedules[parameter.name] for parameter in pruner.plan}
    for rule, schedule in rules.items():
        last = schedule.last_update_step or 0
        if last <= run.total_steps:
            continue
        rank_zero_warn(
            f"{rule}.scheduler: the last pruning update is at optimizer step {last}, but this run has "
            f"{run.total_steps}: it will end below the target sparsity. Train longer, or "
            f"{_earlier(written[rule], run.total_steps)}."
        )


def _earlier(schedule: PruningScheduler, total: int) -> str:
    """What to write in a schedule that ends after the run, so that it ends in time."""
    if isinstance(schedule, ConstantSparsityScheduler):
        return f"write an earlier begin_step: at most {total}, or 0.5 for the middle of the run"
    if getattr(schedule, "end", None) is not None:
        return "write an earlier end, for example end=0.8"
    if getattr(schedule, "update_steps", None) is not None:
        return f"let update_steps end at {total} or before, or write begin and end as fractions of the run"
    return f"let {type(schedule).__name__} end at step {total} or before"
