"""What ranks weights in place of their magnitude: a function of the user's, which no file can name."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_prune.errors import ConfigError, one_line, shown

__all__ = ["Score", "check_score", "score_name"]


class Score(Protocol):
    """What ranks the weights of a layer in place of their magnitude: any function of this form.

    It is called once for each parameter at each update of its schedule, under ``torch.no_grad()``, and never when a
    model is prepared. Of a group (a kernel, a channel, a block) the L2 norm of its scores is ranked, as that of its
    magnitudes otherwise; in n:m and in single weights the scores themselves are.

    Example:
        First-order Taylor pruning: the smallest ``|w * g|`` changes the loss least, by the gradient ``g`` of the last
        batch. ``zero_grad()`` comes after ``pruner.step()`` then.

        >>> import torch
        >>> from lightning_prune import MagnitudePruner
        >>> def taylor(weight, parameter):
        ...     return (weight * parameter.grad).abs()
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([3.0, 2.0, 1.0]))
        >>> rule = {"scheduler": {"begin_step": 1}, "target_sparsity": 0.34, "score": taylor}
        >>> pruner = MagnitudePruner(layer, {"global_config": rule})
        >>> layer = pruner.prepare(inplace=True)
        >>> layer(torch.tensor([0.1, 5.0, 5.0])).backward()
        >>> pruner.step()
        >>> layer.weight.tolist()  # the largest weight has the smallest score
        [[0.0, 2.0, 1.0]]
    """

    def __call__(self, weight: Tensor, parameter: nn.Parameter) -> Tensor:
        """Score the weights of a parameter.

        Args:
            weight: A copy of the dense weight, with what was pruned away put back, in float32 (float64 of a float64
                parameter), without a graph.
            parameter: The Parameter as the optimizer knows it, for its ``grad`` and for what a program keeps by it.

        Returns:
            A tensor of the shape of ``weight`` and on its device, finite and at least 0; the smallest are pruned.
        """


def check_score(score: Any, initial_sparsity: float) -> None:
    """Refuse what is no function of two arguments, and weights to prune before there is anything to score by.

    Raises:
        ConfigError: It is no such function; or weights are to be pruned when the model is prepared.
    """
    if score is None:
        return
    if isinstance(score, str):
        raise ConfigError(
            f"score must be a function score(weight, parameter), got the text {shown(score)}. No file names a function "
            "that is imported: set rule.score in Python."
        )
    if not callable(score) or isinstance(score, type):
        raise ConfigError(f"score must be a function score(weight, parameter) that gives a tensor, got {shown(score)}.")
    try:
        inspect.signature(score).bind(None, None)
    except ValueError:  # a function of C that does not say
        pass
    except TypeError as error:
        raise ConfigError(
            f"score must take two arguments, score(weight, parameter), got {score_name(score)}: {one_line(error)}."
        ) from error
    if initial_sparsity:
        raise ConfigError(
            f"initial_sparsity must be 0.0 with a score, got {initial_sparsity}: before training there is nothing to "
            "score by."
        )


def score_name(score: Score) -> str:
    """What a plan and a checkpoint call a score: the name of the function, or of the class of an object."""
    return str(getattr(score, "__name__", type(score).__name__))
