"""What a fit shows and logs: tables through Lightning's own logger, numbers to the loggers of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import RenderableType

from lightning_prune.basics import as_text
from lightning_prune.errors import ConfigError, shown
from lightning_prune.pruner import MagnitudePruner

__all__ = ["as_prefix", "log_metrics", "log_to_loggers", "show", "show_start", "sparsity_metrics"]


def show(renderable: RenderableType) -> None:
    """Log a table through Lightning's own logger, as ModelSummary does."""
    rank_zero_info(f"\n{as_text(renderable)}")


def as_prefix(value: object) -> str:
    """What the names of logged values start with; raises a ConfigError unless it is a text."""
    if not isinstance(value, str):
        raise ConfigError(f'log_prefix must be a text such as "sparsity", got {shown(value)}.')
    return value


def show_start(pruner: MagnitudePruner) -> None:
    """Log the plan of a run, and how sparse its model is already."""
    show(pruner.plan)
    sparsity = pruner.report().sparsity
    if sparsity:
        rank_zero_info(f"Pruning starts from a sparsity of {sparsity:.1%}.")


def sparsity_metrics(
    pruner: MagnitudePruner, prefix: str, *, layers: bool, with_changes: bool = False
) -> dict[str, float]:
    """The numbers of a report, and of what the last update changed if that is asked for.

    Args:
        pruner: Whose model is measured.
        prefix: What all names begin with.
        layers: Whether to give the sparsity of each layer too.
        with_changes: Whether masks were updated just now.
    """
    metrics = pruner.report().metrics(prefix=prefix, layers=layers)
    if with_changes and pruner.changes is not None:
        metrics |= pruner.changes.metrics(prefix=prefix)
    return metrics


def log_metrics(
    trainer: Trainer, pl_module: LightningModule, metrics: Mapping[str, float], *, in_prog_bar: str | None = None
) -> None:
    """Log numbers for monitors, the progress bar and loggers.

    Args:
        trainer: Its ``global_step`` is the step of the numbers.
        pl_module: The module that it fits.
        metrics: The numbers by name.
        in_prog_bar: The name of the number that the progress bar shows.
    """
    for name, value in metrics.items():
        pl_module.log(name, value, prog_bar=name == in_prog_bar, logger=False, batch_size=1)
    # Not by self.log: it passes a step on to loggers only at multiples of log_every_n_steps, which would drop updates.
    log_to_loggers(trainer, metrics)


def log_to_loggers(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Log numbers to the loggers alone, at the optimizer step that the Trainer has come to."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)
