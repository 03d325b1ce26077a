"""What a run has logged, step by step and within bounds: for its page, and small enough for its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_prune.config import MagnitudePrunerConfig
from lightning_prune.errors import CheckpointError, shown
from lightning_prune.page.contents import Curve
from lightning_prune.pruner import MOST_STEPS

__all__ = ["History"]

MOST_POINTS = 128  # of a curve: a page has no more room
MOST_METRICS = 12
MOST_LETTERS = 200  # of the name of a metric
MOST_CONFIGURATION = 2**15  # letters


class History:
    """Curves of a run: its sparsity, planned and actual, and what the module has logged.

    Of a long run each curve keeps 128 points: a new point takes the place of that whose neighbours are nearest to each
    other. Of the names that the module logs the first twelve are kept. That is at most 30 kilobytes in a checkpoint.

    Attributes:
        planned: Sparsity as the schedule asks for it.
        configuration: The configuration as YAML text; empty if it is long.

    Example:
        >>> history = History()
        >>> history.add_sparsity(10, 0.5)
        >>> history.actual
        Curve(steps=(10,), values=(0.5,))
    """

    def __init__(self) -> None:
        self.planned = Curve()
        self.configuration = ""
        self._actual: dict[int, float] = {}
        self._metrics: dict[str, dict[int, float]] = {}
        self._last: dict[str, object] = {}  # the values as they were logged last

    @property
    def actual(self) -> Curve:
        """Sparsity of all pruned layers after each update."""
        return _curve(self._actual)

    @property
    def metrics(self) -> dict[str, Curve]:
        """What was logged, by name."""
        return {name: _curve(points) for name, points in self._metrics.items()}

    def add_sparsity(self, step: int, sparsity: float) -> None:
        """Note the sparsity of all pruned layers."""
        _add(self._actual, step, sparsity)

    def add_metrics(self, step: int, logged: Mapping[str, Any], *, prefix: str) -> None:
        """Note what was logged since the last call.

        Args:
            step: Optimizer steps done.
            logged: ``trainer.callback_metrics``, whose values are new objects when they are logged anew.
            prefix: What the names of our own numbers begin with, which are left out.
        """
        for name, value in logged.items():
            is_half = name.endswith("_step") or f"{name}_epoch" in logged or len(name) > MOST_LETTERS
            if is_half or name.startswith(prefix) or self._last.get(name) is value:
                continue
            if name not in self._metrics and len(self._metrics) == MOST_METRICS:
                continue
            self._last[name] = value
            number = float(value)
            if math.isfinite(number):
                _add(self._metrics.setdefault(name, {}), step, number)

    def state_dict(self) -> dict[str, Any]:
        """Give the history as plain numbers and texts."""
        return {
            "planned": _plain(self.planned),
            "actual": _plain(self.actual),
            "metrics": {name: _plain(curve) for name, curve in self.metrics.items()},
            "configuration": self.configuration,
        }

    def load_state_dict(self, state: object) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            CheckpointError: The state is damaged.
        """
        if not isinstance(state, Mapping):
            raise CheckpointError(f"The history of the run is damaged: it must be a dict, got {shown(state)}.")
        metrics, configuration = state.get("metrics"), state.get("configuration")
        if not isinstance(metrics, Mapping) or len(metrics) > MOST_METRICS or not isinstance(configuration, str):
            raise CheckpointError("The history of the run is damaged: it must have metrics and a configuration.")
        if any(not isinstance(name, str) or len(name) > MOST_LETTERS for name in metrics):
            raise CheckpointError("The history of the run is damaged: the names of metrics must be short texts.")
        planned, actual = _read(state.get("planned")), _read(state.get("actual"))
        points = {name: _read(curve) for name, curve in metrics.items()}
        self.planned, self._actual, self._metrics, self._last = _curve(planned), actual, points, {}
        self.configuration = configuration[:MOST_CONFIGURATION]

    def describe(self, config: MagnitudePrunerConfig) -> None:
        """Note the configuration, unless it is long or has a schedule of the user's own, which YAML cannot write."""
        try:
            text = config.as_yaml()
        except Exception:  # what such a schedule raises is not known
            text = ""
        self.configuration = text if len(text) <= MOST_CONFIGURATION else ""


def _add(points: dict[int, float], step: int, value: float) -> None:
    """Add a point, the last of a curve; of a full curve, drop that whose neighbours are nearest to each other."""
    points[step] = value
    if len(points) > MOST_POINTS:
        steps = list(points)
        gap = [after - before for before, after in zip(steps, steps[2:], strict=False)]
        del points[steps[1 + gap.index(min(gap))]]


def _curve(points: Mapping[int, float]) -> Curve:
    return Curve(tuple(points), tuple(points.values()))


def _plain(curve: Curve) -> dict[str, list[Any]]:
    return {"steps": list(curve.steps), "values": list(curve.values)}


def _read(curve: object) -> dict[int, float]:
    """The points of a saved curve."""
    steps, values = (curve.get("steps"), curve.get("values")) if isinstance(curve, Mapping) else (None, None)
    if not isinstance(steps, list) or not isinstance(values, list) or not len(steps) == len(values) <= MOST_POINTS:
        raise CheckpointError(
            f"The history of the run is damaged: a curve must have at most {MOST_POINTS} steps and values."
        )
    is_step = all(type(step) is int and 0 <= step <= MOST_STEPS for step in steps)
    if not is_step or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        raise CheckpointError("The history of the run is damaged: it must hold numbers of optimizer steps that rise.")
    if not all(type(value) is float and math.isfinite(value) for value in values):
        raise CheckpointError("The history of the run is damaged: the values of a curve must be finite numbers.")
    return dict(zip(steps, values, strict=True))
