"""Pictures for loggers at each update of masks: sparsity as planned and as it came, by layer, and masks."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.analysis import plot_layers, plot_mask, plot_plan
from lightning_prune.callback.fit import Fit
from lightning_prune.errors import ConfigError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FigureLog"]

Sink = Callable[[str, "Figure", int], None]

MOST_MASKS = 6
MOST_LAYERS = 60  # bars of a picture


class FigureLog:
    """Gives pictures to those loggers of a Trainer that take any, in the first process.

    Args:
        trainer: The Trainer, before training starts.

    Raises:
        ConfigError: None of its loggers takes pictures, or matplotlib is not installed.
    """

    def __init__(self, trainer: Trainer) -> None:
        try:
            from matplotlib.figure import Figure  # noqa: F401
        except ImportError as error:
            raise ConfigError('log_figures=True needs matplotlib: pip install "lightning-prune[plot]"') from error
        self._sinks: list[Sink] = []
        if not trainer.is_global_zero:
            return
        self._sinks = [sink for logger in trainer.loggers if (sink := find_sink(logger)) is not None]
        if not self._sinks:
            given = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise ConfigError(
                "log_figures=True needs a logger that takes pictures: TensorBoardLogger, WandbLogger or MLFlowLogger. "
                f"The Trainer's loggers: {given}. Give it one of these, or leave log_figures out."
            )

    def log(self, trainer: Trainer, fit: Fit, prefix: str) -> None:
        """Draw how far pruning has come; what fails is warned of once, and no picture is drawn any more.

        Args:
            trainer: Its ``global_step`` is the step of the pictures.
            fit: The fit, with its pruner and its history.
            prefix: What the names of the pictures begin with.
        """
        if not self._sinks:
            return
        try:
            for name, figure in _figures(fit):
                for sink in self._sinks:
                    sink(f"{prefix}_figures/{name}", figure, trainer.global_step)
        except Exception as error:  # a logger may lose its server
            rank_zero_warn(f"No more figures are logged: {type(error).__name__}: {one_line(error)}")
            self._sinks = []


def _figures(fit: Fit) -> Iterator[tuple[str, Figure]]:
    pruner, run = fit.need_pruner(), fit.run
    report = pruner.report()
    if run is not None:
        last = run.total_steps or max(pruner.step_count, pruner.last_update_step or 1)
        actual = fit.history.actual
        measured = dict(zip(actual.steps, actual.values, strict=True))
        yield "plan", plot_plan(pruner.plan, replace(run, total_steps=last), actual=measured)
    if len(report.layers) <= MOST_LAYERS:
        yield "layers", plot_layers(report)
    shapes = {planned.name: planned.shape for planned in pruner.plan if len(planned.shape) > 1}
    masks = {} if pruner.is_sharded else pruner.masks()
    for name in [name for name in shapes if name in masks][:MOST_MASKS]:
        yield f"mask/{name}", plot_mask(masks[name], name=name, shape=shapes[name])


def find_sink(logger: Any) -> Sink | None:
    """How a logger takes a figure of matplotlib; None if it takes none.

    TensorBoard's writer adds figures; the logger of Weights & Biases takes a list of images under a key; the client of
    MLflow takes a figure, the run that it belongs to, and the name of a file.
    """
    experiment = logger.experiment
    if callable(getattr(experiment, "add_figure", None)):
        return lambda name, figure, step: experiment.add_figure(name, figure, global_step=step)
    if _takes(getattr(logger, "log_image", None), "key", "images", "step"):
        return lambda name, figure, step: logger.log_image(key=name, images=[_as_image(figure)], step=step)
    if _takes(getattr(experiment, "log_figure", None), "run_id", "figure", "artifact_file") and logger.run_id:
        return lambda name, figure, step: experiment.log_figure(
            run_id=logger.run_id, figure=figure, artifact_file=f"{name}/step_{step:08}.png"
        )
    return None


def _takes(method: Any, *names: str) -> bool:
    """Whether something is a function with arguments of these names."""
    if not callable(method):
        return False
    try:
        return set(names) <= set(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return False


def _as_image(figure: Figure) -> Any:
    """A figure as an image of Pillow, which matplotlib brings along."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return Image.open(file)
