"""The slim network at the end of a fit: a failure costs nothing, for the trained module is there."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.errors import PruningError, SlimError
from lightning_prune.slim import Slim, SlimResult, slim

__all__ = ["slim_trained"]


def slim_trained(module: LightningModule, settings: Slim) -> tuple[SlimResult | None, SlimError | None]:
    """Cut out what the training has made dead, and write the recipe if it is asked for.

    Returns:
        The slim network, also where its file could not be written; and the error, if there was one.
    """
    result = None
    try:
        result = slim(module, settings.inputs_of(module), keep=settings.keep)
        if settings.path is not None:
            result.save(settings.path)
    except Exception as error:  # a model of the user's own may raise anything when it is copied and called
        what = "was not made" if result is None else "was made, but its file was not written"
        rank_zero_warn(f"The slim network {what}; the trained and pruned model is unharmed. {error}")
        text = str(error) if isinstance(error, PruningError) else f"{type(error).__name__}: {error}"
        return result, error if isinstance(error, SlimError) else SlimError(text)
    return result, None
