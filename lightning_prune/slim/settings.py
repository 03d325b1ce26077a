"""What a user chooses for a training whose network is to be made slim."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lightning_prune.basics import plain_list
from lightning_prune.errors import ConfigError, shown

__all__ = ["Slim"]


@dataclass(frozen=True)
class Slim:
    """Prune channels that can be cut out, and cut them out at the end.

    Args:
        example_inputs: A tensor, a sequence of positional arguments, or a dict of keyword arguments of one call.
            Default: the model's ``example_input_array``.
        keep: Names of modules whose output channels all stay.
        path: Where the recipe of the slim network is written at the end of a fit, see
            :meth:`~lightning_prune.slim.SlimResult.save`. Default: nowhere.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> Slim(keep=["stem"]).keep
        ('stem',)
    """

    example_inputs: Any = None
    keep: Sequence[str] = ()
    path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        names = plain_list(self.keep)
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"slim.keep must be a list of names of modules, got {shown(self.keep)}.")
        object.__setattr__(self, "keep", tuple(names))
        if self.path is not None and not isinstance(self.path, (str, os.PathLike)):
            raise ConfigError(f"slim.path must be a path or None, got {shown(self.path)}.")

    def inputs_of(self, model: object) -> Any:
        """The example: the given one, or the model's own.

        Raises:
            ConfigError: There is none.
        """
        inputs = self.example_inputs if self.example_inputs is not None else getattr(model, "example_input_array", None)
        if inputs is None:
            raise ConfigError(
                "slim needs an example of the model's inputs. Write slim=Slim(example_inputs=torch.zeros(...)), or set "
                "self.example_input_array in the module."
            )
        return inputs

    @classmethod
    def of(cls, value: object) -> Slim | None:
        """What a user may write: True, False, None, settings, or a dict of them.

        Raises:
            ConfigError: It is none of these.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, bool):
            return cls() if value else None
        if isinstance(value, dict):
            unknown = [key for key in value if key not in {field.name for field in fields(cls)}]
            if unknown:
                raise ConfigError(f"slim.{unknown[0]} is not a known key. Known are example_inputs, keep and path.")
            return cls(**value)
        raise ConfigError(f"slim must be True, False or Slim(...), got {shown(value)}.")
