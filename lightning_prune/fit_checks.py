"""What a fit is refused or warned of, because it would prune otherwise than its user thinks."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_prune.class_names import is_a
from lightning_prune.errors import ConfigError
from lightning_prune.plan import PruningPlan
from lightning_prune.pruner import MagnitudePruner
from lightning_prune.schedules import TrainingRun

__all__ = ["refuse_averages", "refuse_second_pruner", "warn_if_abrupt", "warn_if_untrained", "warn_if_unused"]

_FEW = 5  # updates, below which one prunes more than half of what is to be pruned


def refuse_second_pruner(trainer: Trainer, plan: PruningPlan) -> None:
    """Refuse Lightning's ModelPruning on a parameter of the plan: it would rename it at the end of the first epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        others = {(id(module), name) for module, name in getattr(callback, "_parameters_to_prune", None) or ()}
        for one in plan:
            if any((id(owner.module), owner.attribute) in others for owner in one.owners):
                raise ConfigError(
                    f"{one.rule}: {one.name} is pruned already, by {type(callback).__name__}. One parameter can have "
                    "one pruner: take one of the two callbacks out, or leave this module out with None."
                )


def refuse_averages(trainer: Trainer) -> None:
    """Refuse averages of a module with hooks: what they validate and save would be dense."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, "WeightAveraging"):
            raise ConfigError(
                f'{type(callback).__name__} averages parameters by their places, which masking="hook" changes. '
                'Use masking="resident".'
            )


def warn_if_untrained(trainer: Trainer, pruner: MagnitudePruner) -> None:
    """Say which weights no optimizer of the Trainer updates, though they could be trained."""
    known = {id(one) for optimizer in trainer.optimizers for group in optimizer.param_groups for one in group["params"]}
    names = [name for name, one in pruner.parameters().items() if one.requires_grad and id(one) not in known]
    if names:
        rank_zero_warn(
            f"Pruned, but updated by no optimizer of the Trainer: {', '.join(names)}. What trains them otherwise is "
            "not seen. Return their optimizer from configure_optimizers, or leave them out with None."
        )


def warn_if_unused(optimizer: Optimizer, pruner: MagnitudePruner) -> None:
    """Say which weights got no gradient behind their hooks: most often a function reads them past the forward."""
    known = {id(one) for group in optimizer.param_groups for one in group["params"]}
    names = [
        name for name, one in pruner.parameters().items() if id(one) in known and one.requires_grad and one.grad is None
    ]
    if names:
        rank_zero_warn(
            f'No gradient at the first optimizer step: {", ".join(names)}. With masking="hook" a weight is trained '
            "only through the forward of its own module. If another module or a function reads it, use "
            'masking="resident".'
        )


def warn_if_abrupt(plan: PruningPlan, run: TrainingRun) -> None:
    """Say where a schedule in units of the run comes down to few updates, though the run has room for more."""
    rules = {one.rule: (one.written.schedule, one.config.schedule) for one in plan if one.written is not None}
    for rule, (written, schedule) in rules.items():
        steps: Sequence[int] = getattr(schedule, "update_steps", ())
        has_room = run.total_steps is not None and run.total_steps >= 4 * _FEW
        if not 0 < len(steps) < _FEW or not has_room:
            continue
        frequency, end = getattr(written, "frequency", None), getattr(written, "end", None)
        if end == 1 and isinstance(end, int):
            advice = "end=1 is one step; write 1.0 for the whole run."
        elif frequency is not None and steps[-1] - steps[0] >= 2 * _FEW:
            advice = f"Leave frequency out, or write less than {frequency!r}."
        else:
            advice = "Let begin and end lie further apart."
        rank_zero_warn(
            f"{rule}.scheduler makes {len(steps)} updates in this run, at optimizer steps "
            f"{', '.join(map(str, steps))}: so much at once costs accuracy. {advice}"
        )
