"""What a user chooses for weights that go back to their values of an early step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from lightning_prune.basics import as_whole, plain_number, plain_text
from lightning_prune.errors import ConfigError, shown

__all__ = ["Rewind", "RewindAt"]

RewindAt = Literal["round", "target"]


@dataclass(frozen=True)
class Rewind:
    """Set what the masks keep back to its values of an early step, and train on: lottery tickets.

    After ``to_step`` optimizer steps a copy is taken of all parameters that are trained, and of the running statistics
    of batch and instance norms. When masks have been chosen from the trained weights, all of that goes back to the
    copy: kept weights, biases, norms. What is pruned counts as zero from then on, so that it does not return. The
    optimizers forget what they know of these parameters (momentum, moments, step counts), as in a run that begins. The
    learning rate and the length of a round are the user's.

    Args:
        to_step: Optimizer steps after which the values are taken; 0 is before the first one.
        at: When weights go back. ``"round"``: at each update of the schedule that lies after ``to_step``, which is
            iterative magnitude pruning with a :class:`~lightning_prune.schedules.GeometricDecayScheduler`.
            ``"target"``: once, at the last update.

    Raises:
        ConfigError: A value cannot work.

    References:
        Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020,
        https://arxiv.org/abs/1912.05671

    Example:
        >>> Rewind(500)
        Rewind(to_step=500, at='round')
    """

    to_step: int
    at: RewindAt = "round"

    def __post_init__(self) -> None:
        """Check the values."""
        object.__setattr__(self, "to_step", as_whole("rewind.to_step", plain_number(self.to_step), least=0))
        object.__setattr__(self, "at", plain_text(self.at))
        if self.at not in get_args(RewindAt):
            raise ConfigError(f'rewind.at must be "round" or "target", got {shown(self.at)}.')

    @classmethod
    def of(cls, value: object) -> Rewind | None:
        """What a user may write: None, settings, a dict of them, or the step alone.

        Raises:
            ConfigError: It is none of these.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, dict):
            known = [field.name for field in fields(cls)]
            unknown = [key for key in value if key not in known]
            if unknown or "to_step" not in value:
                raise ConfigError(f"rewind must have to_step, and may have at, got {shown(value)}.")
            return cls(**value)
        if isinstance(value, bool) or not isinstance(plain_number(value), int):
            raise ConfigError(
                f"rewind must be Rewind(to_step=...), a dict of its values or a step, got {shown(value)}."
            )
        return cls(plain_number(value))
