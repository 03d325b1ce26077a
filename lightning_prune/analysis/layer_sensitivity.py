"""Sensitivity: how much each layer suffers from pruning, found by pruning one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn

from lightning_prune.analysis.allocation import module_patterns, need_magnitudes
from lightning_prune.basics import DottedText, as_fraction, as_text, new_table, plain_list, plain_number
from lightning_prune.config import MagnitudePrunerConfig, ModuleMagnitudePrunerConfig, load_config
from lightning_prune.errors import ConfigError
from lightning_prune.masks import count_zeros
from lightning_prune.plan import PrunedParameter, plan_pruning
from lightning_prune.schedules import PruningScheduler

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from lightning_prune.plan import prune_normed

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

_NAMES = 24  # columns that names of layers get at least, if they need them


@dataclass(frozen=True)
class LayerSensitivity:
    """What happened when one layer was pruned, and no other.

    Attributes:
        name: What the layer is called.
        weights: Number of weights.
        scores: Score by the sparsity that was asked, a fraction in [0, 1].
        sparsities: Sparsity that the mask reached, by the sparsity that was asked.
        config: The rule of the layer.
        patterns: Keys of ``module_name_configs`` that match it.
    """

    name: str
    weights: int
    scores: Mapping[float, float]
    sparsities: Mapping[float, float]
    config: ModuleMagnitudePrunerConfig
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Scores of a model with one layer pruned at a time. Prints as a table.

    Attributes:
        baseline: Score of the model as it is.
        layers: One entry a layer.
        higher_is_better: Whether a higher score is better.
    """

    baseline: float
    layers: tuple[LayerSensitivity, ...]
    higher_is_better: bool = True

    def losses(self) -> dict[str, dict[float, float]]:
        """How much worse than the baseline the score is, by layer and sparsity; negative is better."""
        sign = 1.0 if self.higher_is_better else -1.0
        return {
            layer.name: {asked: sign * (self.baseline - score) for asked, score in layer.scores.items()}
            for layer in self.layers
        }

    def tolerated(self, loss: float) -> dict[str, float]:
        """The largest tested sparsity of each layer that costs no more than some loss.

        Args:
            loss: How much worse than the baseline the score may be, in its own units: 0.01 is one point of an accuracy
                in [0, 1].

        Returns:
            Sparsity by layer: at it, and at all smaller sparsities that were tested, the loss is tolerated. 0 where
            already the smallest costs more.

        Raises:
            ConfigError: ``loss`` is not a number of at least 0.
        """
        number = plain_number(loss)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
            raise ConfigError(
                f"loss must be a number of at least 0, got {loss!r}. Write 0.01 for one point of accuracy."
            )
        found = {}
        for name, losses in self.losses().items():
            found[name] = 0.0
            for asked in sorted(losses):
                if not losses[asked] <= loss:  # a score of NaN is not tolerated
                    break
                found[name] = asked
        return found

    def config(
        self, loss: float, *, scheduler: PruningScheduler | Mapping[str, Any] | None = None
    ) -> MagnitudePrunerConfig:
        """Write a configuration that prunes each layer as far as it tolerates alone.

        The losses of layers that are pruned together add up, or worse: choose a small loss, and train afterwards.

        Args:
            loss: As in :meth:`tolerated`.
            scheduler: When and how; default: the schedule of the layer's rule.

        Returns:
            One rule by name for each layer; layers that tolerate nothing stay dense.

        Raises:
            ConfigError: No layer tolerates any pruning within ``loss``.
        """
        tolerated = self.tolerated(loss)
        targets: dict[str, float] = {}
        for layer in self.layers:
            for pattern in layer.patterns:  # one rule holds for all parameters of a module
                targets[pattern] = min(targets.get(pattern, 1.0), tolerated[layer.name])
        rules = {
            pattern: _rule(layer.config, targets[pattern], layer.config.scheduler if scheduler is None else scheduler)
            for layer in self.layers
            for pattern in layer.patterns
        }
        if not any(rules.values()):
            cheapest = min(min(losses.values()) for losses in self.losses().values())
            raise ConfigError(
                f"loss={loss} is less than any layer costs at the sparsities that were tested: "
                f"the least is {cheapest:.4g}. Tolerate more, or test lower sparsities."
            )
        return MagnitudePrunerConfig(module_name_configs=rules)

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values for each layer and sparsity."""
        return [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "asked_sparsity": asked,
                "sparsity": layer.sparsities[asked],
                "score": score,
                "loss": self.losses()[layer.name][asked],
            }
            for layer in self.layers
            for asked, score in layer.scores.items()
        ]

    def plot(self, *, metric: str = "score") -> Figure:
        """Draw the scores; see :func:`~lightning_prune.analysis.plots.plot_sensitivity`."""
        from lightning_prune.analysis.plots import plot_sensitivity

        scores = {layer.name: list(layer.scores.values()) for layer in self.layers}
        return plot_sensitivity(self._asked, scores, baseline=self.baseline, metric=metric)

    @property
    def _asked(self) -> list[float]:
        return list(self.layers[0].scores)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Table for a terminal or a notebook: the change of the score, layer by layer.

        Sparsities that do not fit beside each other go on in a further table below: a number that is cut is another.
        """
        changes = [[f"{score - self.baseline:+.4g}" for score in layer.scores.values()] for layer in self.layers]
        headings = [f"{100 * asked:g}%" for asked in self._asked]
        weights = [f"{layer.weights:,}" for layer in self.layers]
        widest = 2 + max(len(cell) for row in (headings, *changes) for cell in row)
        names = min(_NAMES, max(len(layer.name) for layer in self.layers))
        room = options.max_width - names - max(map(len, ("weights", *weights))) - 4
        tables = -(-len(headings) // max(1, room // widest))
        size = -(-len(headings) // tables)
        for start in range(0, len(headings), size):
            table = new_table("Change of the score, one layer pruned" if start == 0 else "")
            table.add_column("layer")
            table.add_column("weights", justify="right", no_wrap=True)
            for heading in headings[start : start + size]:
                table.add_column(heading, justify="right", no_wrap=True)
            for layer, count, row in zip(self.layers, weights, changes, strict=True):
                table.add_row(DottedText(layer.name or "(root)"), count, *row[start : start + size])
            yield table
        better = "Higher" if self.higher_is_better else "Lower"
        yield Text(f"The score without pruning is {self.baseline:.6g}.\n{better} is better.", style="table.caption")


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float | Tensor],
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    *,
    config: object = None,
    higher_is_better: bool = True,
    progress: bool = True,
    console: Console | None = None,
) -> Sensitivity:
    """Prune one layer at a time and see what it costs, to learn which layers can be pruned far.

    Each layer is pruned in place, by the same masks as in training, evaluated and put back bit for bit: weights,
    buffers and train or eval modes, also when ``evaluate`` raises. A model is evaluated ``1 + layers * sparsities``
    times, without gradients.

    Args:
        model: A trained model. Comes back as it was.
        evaluate: Gives the score of the model; puts it in eval mode itself, if that is wanted.
        sparsities: What to test, fractions in [0, 1]. For a rule with ``n_m_ratio`` they are rounded down to whole
            zeros of m.
        config: Which layers, and which granularity or blocks; in any form that
            :func:`~lightning_prune.config.load_config` reads. Targets and schedules do not matter here.
        higher_is_better: Whether a higher score is better; False for a loss.
        progress: Show a bar in a terminal.
        console: Where the bar is shown. Default: standard error.

    Returns:
        Scores by layer and sparsity, with a table, a plot, and a configuration from a tolerated loss.

    Raises:
        ConfigError: ``sparsities`` cannot work, or the configuration does not fit the model.

    References:
        Li et al., "Pruning filters for efficient convnets", 2017, section 3.2, https://arxiv.org/abs/1608.08710

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> inputs = torch.eye(8)
        >>> found = sensitivity(model, lambda model: float(model(inputs).std()), [0.5, 0.9], progress=False)
        >>> [layer.name for layer in found.layers], list(found.layers[0].sparsities.values())
        (['0', '1'], [0.5, 0.890625])
    """
    given = plain_list(sparsities)
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise ConfigError(f"sparsities must be fractions in [0, 1], at least one, got {given!r}. Write [0.5, 0.9].")
    asked = sorted({as_fraction("each of sparsities", sparsity) for sparsity in given})
    if not asked:
        raise ConfigError(f"sparsities must be fractions in [0, 1], at least one, got {given!r}. Write [0.5, 0.9].")
    plan = plan_pruning(model, load_config(config))
    need_magnitudes(plan, "sensitivity")
    console = Console(stderr=True) if console is None else console
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    is_shown = progress and console.is_terminal
    layers = []
    with bar if is_shown else nullcontext(), _kept(model) as restore:
        task = bar.add_task("unpruned", total=1 + len(plan) * len(asked))

        def score() -> float:
            with torch.no_grad():
                value = evaluate(model)
            restore()
            bar.advance(task)
            try:
                return float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"evaluate must give a number, got a {type(value).__name__}: {error}.") from error

        baseline = score()
        for layer in plan:
            scores, reached = {}, {}
            for sparsity in asked:
                bar.update(task, description=f"{layer.label or '(root)'} at {sparsity:.0%}")
                with _pruned(layer, sparsity) as reached[sparsity]:
                    scores[sparsity] = score()
            patterns = tuple(module_patterns(model, layer))
            layers.append(LayerSensitivity(layer.label, layer.numel, scores, reached, layer.config, patterns))
    if math.isnan(baseline):
        raise ConfigError("evaluate must give a number for the unpruned model, got NaN.")
    return Sensitivity(baseline, tuple(layers), higher_is_better)


def _rule(
    rule: ModuleMagnitudePrunerConfig, target: float, scheduler: PruningScheduler | Mapping[str, Any]
) -> ModuleMagnitudePrunerConfig | None:
    """The rule with another target and schedule; None, which is dense, where that prunes nothing."""
    found = rule.with_target(target)
    return None if found is None else replace(found, scheduler=scheduler)


@contextmanager
def _pruned(layer: PrunedParameter, sparsity: float) -> Iterator[float]:
    """One parameter pruned for a while; gives the sparsity that its mask reaches."""
    rule, gain = layer.config, layer.gain_parameter
    trained = [part.detach() for part in (layer.parameter, gain) if part is not None]
    before = [part.clone() for part in trained]
    mask = rule.structure.mask(layer.weight, sparsity)
    try:
        if gain is None:
            trained[0].masked_fill_(~mask, 0.0)
        else:
            prune_normed(trained[0], trained[1], mask)
        yield count_zeros(mask, shape=layer.shape) / layer.numel
    finally:
        for part, kept in zip(trained, before, strict=True):
            part.copy_(kept)


@contextmanager
def _kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Buffers and modes of a model, put back by the function that is given, and at the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    try:
        yield restore
    finally:
        restore()
