"""What a fit leaves beside the trained module: its slim copy, and files for other runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.callback.exports import named_numbers, save_all
from lightning_prune.callback.logs import log_to_loggers, show
from lightning_prune.callback.slimming import slim_trained
from lightning_prune.errors import ExportError, SlimError
from lightning_prune.export import Export, ExportResult
from lightning_prune.pruner import MagnitudePruner
from lightning_prune.slim import Slim, SlimResult

__all__ = ["Outcome", "hand_over", "raise_if_asked"]


class Outcome(NamedTuple):
    """What came of it; each failure is kept, and costs nothing else."""

    slim_result: SlimResult | None
    slim_error: SlimError | None
    results: list[ExportResult]
    errors: list[tuple[Export, ExportError]]


def hand_over(
    trainer: Trainer,
    module: LightningModule,
    pruner: MagnitudePruner,
    slim: Slim | None,
    exports: Sequence[Export],
) -> Outcome:
    """Make a trained and finalized module slim, if that is asked for, and export it; show and log what came of it."""
    model: nn.Module = module
    masks: Mapping[str, Tensor] | None = pruner.masks()
    result, failure = (None, None) if slim is None else slim_trained(module, slim)
    if result is not None:
        show(result)
        log_to_loggers(trainer, result.as_dict())
        model, masks = result.model, None
    saved, errors = save_all(exports, model, masks)
    for each in saved:
        show(each)
    if saved:
        log_to_loggers(trainer, named_numbers(saved))
    return Outcome(result, failure, saved, errors)


def raise_if_asked(errors: Sequence[tuple[Export, ExportError]]) -> None:
    """Raise the first error of an export whose failure is to end the run."""
    for export, error in errors:
        if export.on_error == "raise":
            raise error
