"""Values of a saved state, each checked before it is used: what a file holds may be anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_prune.basics import is_plain
from lightning_prune.errors import CheckpointError, one_line, shown

__all__ = ["MOST_STEPS", "StateValues"]

MOST_STEPS = 10**9  # optimizer steps of a run; a schedule may have to be followed step by step


class StateValues:
    """A dict of a saved state, of which each value is asked for as what it must be.

    Args:
        values: What the file holds there.
        what: What it is the state of, for the errors.

    Raises:
        CheckpointError: It is no dict. Each method raises it likewise, where the value is missing or another.
    """

    def __init__(self, values: Any, what: str) -> None:
        self._what = what
        if not isinstance(values, Mapping):
            raise self.damaged(f"it must be a dict, got {shown(values)}")
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def damaged(self, why: str) -> CheckpointError:
        """The error that says what is wrong."""
        return CheckpointError(f"The pruning state{self._what} is damaged: {why}. Resume from another checkpoint.")

    def any(self, key: str) -> Any:
        """The value, whatever it is."""
        if key not in self._values:
            raise self.damaged(f"it has no {key}")
        return self._values[key]

    def integer(self, key: str, *, most: int) -> int:
        """A whole number from 0 to ``most``."""
        value = self.any(key)
        if type(value) is not int or not 0 <= value <= most:
            raise self.damaged(f"{key} must be a whole number from 0 to {most}, got {shown(value)}")
        return value

    def fraction(self, key: str) -> float:
        """A number in [0, 1]."""
        value = self.any(key)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise self.damaged(f"{key} must be a fraction in [0, 1], got {shown(value)}")
        return float(value)

    def text(self, key: str) -> str:
        """A text."""
        value = self.any(key)
        if not isinstance(value, str):
            raise self.damaged(f"{key} must be a text, got {shown(value)}")
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of dimensions."""
        value = self.any(key)
        if not isinstance(value, (list, tuple)) or any(type(size) is not int for size in value):
            raise self.damaged(f"{key} must be a list of sizes, got {shown(value)}")
        return tuple(value)

    def json(self, key: str) -> Any:
        """What a text of JSON says."""
        try:
            return json.loads(self.text(key))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{key} must be JSON, got {shown(self._values[key])}: {one_line(error)}") from error

    def vector(self, key: str, length: int, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        """A tensor of rank 1, on the CPU."""
        value = self.any(key)
        is_fine = isinstance(value, Tensor) and is_plain(value) and value.shape == (length,) and value.dtype in dtypes
        if not is_fine:
            kind = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.damaged(f"{key} must be a plain tensor of {length} numbers ({names}), got {kind}")
        return value.detach().cpu()  # type: ignore[no-any-return]

    def tensor(self, key: str, like: Tensor) -> Tensor:
        """A tensor of the shape and dtype of another, on the CPU."""
        value = self.any(key)
        is_fine = (
            isinstance(value, Tensor) and is_plain(value) and (value.shape, value.dtype) == (like.shape, like.dtype)
        )
        if not is_fine:
            kind = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
            raise self.damaged(f"{key} must be a plain tensor of {like.dtype} of shape {tuple(like.shape)}, got {kind}")
        return value.detach().cpu()  # type: ignore[no-any-return]
