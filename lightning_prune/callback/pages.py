"""The page of a run: written when the run is over, also where it was interrupted; a failure costs nothing."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callback.fit import Fit
from lightning_prune.callback.outcome import Outcome
from lightning_prune.errors import PageError, PruningError, one_line
from lightning_prune.page import check_page_path, gather_page, now, page_path, write_page

__all__ = ["check_page", "load_page", "write_run_page"]


def load_page(path: object) -> Path | None:
    """The path of the page of a run, in full; None for no page. Any other value is a ConfigError."""
    return None if path is None else page_path(path)


def check_page(path: object) -> Path | None:
    """The same of a path at which a page can be written; any other raises a ConfigError."""
    place = load_page(path)
    if place is not None:
        check_page_path(place)
    return place


def write_run_page(
    path: Path | None,
    trainer: Trainer,
    module: LightningModule,
    fit: Fit,
    *,
    outcome: Outcome | None = None,
    exception: BaseException | None = None,
) -> PageError | None:
    """Write the page of a run that is over, in the first process; a failure is warned of.

    Args:
        path: Where it goes; None for no page. ``fast_dev_run`` writes none.
        trainer: The Trainer of the run.
        module: What it trained.
        fit: The fit, with its pruner and its history.
        outcome: What came of it; None where it did not come to its end.
        exception: What ended it before its end, if something did.

    Returns:
        Why there is no page, or None.
    """
    if path is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    try:
        _write(path, module, fit, outcome, exception)
    except Exception as error:  # a disk may be full, and a class of the user's own may have any name
        rank_zero_warn(f"The page {path} was not written; the trained and pruned model is unharmed. {error}")
        text = str(error) if isinstance(error, PruningError) else f"{type(error).__name__}: {error}"
        failure = PageError(text)
        failure.__cause__ = error
        return failure
    return None


def _write(
    path: Path, module: LightningModule, fit: Fit, outcome: Outcome | None, exception: BaseException | None
) -> None:
    pruner = fit.need_pruner()
    fit.plan_curve()
    failures = []
    if outcome is not None:
        failures += [f"The slim network: {one_line(outcome.slim_error)}"] if outcome.slim_error is not None else []
        failures += [f"The export to {export.path}: {one_line(error)}" for export, error in outcome.errors]
    steps = f"{pruner.step_count:,} optimizer steps"
    if exception is not None:
        kind = type(exception).__name__
        why = f"{kind}: {one_line(exception)}" if str(exception) else kind
        status = f"Interrupted after {steps} by {why}; {now()}."
    elif not pruner.is_at_target:
        status = f"Finished after {steps}, before the last pruning update, below the target; {now()}."
    else:
        status = f"Finished after {steps}; {now()}."
    page = gather_page(
        title=type(module).__name__,
        status=status,
        is_finished=exception is None,
        plan=pruner.plan,
        report=pruner.report(),  # of a sharded model counted at its last update: other processes may be gone
        masks={} if pruner.is_sharded else pruner.masks(),
        history=fit.history,
        slim=None if outcome is None else outcome.slim_result,
        exports=() if outcome is None else tuple(outcome.results),
        failures=tuple(failures),
        notes=("The masks of a sharded model are not drawn.",) if pruner.is_sharded else (),
    )
    write_page(page, path)
