"""The rows of a plan: a parameter that is pruned, a module that stays dense, and both as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.config import ModuleMagnitudePrunerConfig, score_name
from lightning_prune.masks import Channels, Given, Structure, pruned_count
from lightning_prune.plan.weight_norm import normed_weight

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Cause", "Coupled", "Owner", "PrunedParameter", "PruningPlan", "SkippedModule"]

Cause = Literal["rule", "misfit", "tie", "name", "reach", "wait", "pinned"]


@dataclass(frozen=True)
class Owner:
    """A place where a parameter hangs: ``getattr(module, attribute)``."""

    module: nn.Module = field(repr=False)
    attribute: str


@dataclass(frozen=True)
class Coupled:
    """Which channels of a parameter go together with those of others.

    Attributes:
        group: The number of the set of parameters that it is one of.
        axis: The axis along which its channels lie.
        classes: The coupled channel that each of them is a part of, int64 of shape ``(C,)``; -1 for those that stay.
        units: For each coupled channel of the set, which of them are ranked together, int64 of shape ``(channels,)``.
    """

    group: int
    axis: int
    classes: Tensor
    units: Tensor

    @property
    def freedom(self) -> float:
        """Fraction of the parameter's channels that may go."""
        return float((self.classes >= 0).double().mean())


@dataclass(frozen=True)
class PrunedParameter:
    """One parameter that is pruned: where it is, and by which rule.

    Attributes:
        name: Its name in the state dict, such as ``"body.0.weight"``.
        label: What reports call it: the name of its module, or of the parameter where a module has several.
        owners: The places where it hangs; more than one for a tied parameter.
        config: What the rule says.
        rule: The path of the rule in the configuration.
        shape: Shape of the weight, ``(C_out, C_in, *K)``.
        is_named: Whether the rule is for this one module, by its whole name.
        gain: Where the ``g`` of a weight norm hangs, if the parameter is its ``v``.
        coupled: With which channels of other parameters its own go, if they do.
        given: Its mask, if that was not chosen here.
    """

    name: str
    label: str
    owners: tuple[Owner, ...]
    config: ModuleMagnitudePrunerConfig
    rule: str
    shape: tuple[int, ...]
    is_named: bool = False
    gain: Owner | None = None
    coupled: Coupled | None = field(default=None, compare=False, repr=False)
    given: Given | None = field(default=None, compare=False, repr=False)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself, as it hangs before masks are attached."""
        return getattr(self.owners[0].module, self.owners[0].attribute)  # type: ignore[no-any-return]

    @property
    def gain_parameter(self) -> nn.Parameter | None:
        """The ``g`` of a weight norm, whose ``v`` is the parameter."""
        return None if self.gain is None else getattr(self.gain.module, self.gain.attribute)

    @property
    def gain_name(self) -> str:
        """The name of ``g`` in the state dict; empty where there is none."""
        return "" if self.gain is None else ".".join([*self.name.split(".")[:-1], self.gain.attribute])

    @property
    def weight(self) -> Tensor:
        """What is ranked: the parameter, or the weight that a weight norm computes from it."""
        gain = self.gain_parameter
        return self.parameter if gain is None else normed_weight(self.parameter, gain)

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def target_zeros(self) -> int:
        """Weights that are zero at the target; the most there can be where blocks do not divide the channels."""
        if self.coupled is None:
            return self.layout.zeros(self.shape, self.config.target_sparsity)
        present = sorted({number for number in self.coupled.classes.tolist() if number >= 0})
        counts = torch.bincount(self.coupled.units[present])
        pruned = sum(pruned_count(count, self.config.target_sparsity) for count in counts.tolist())
        return pruned * self.layout.weights_per_choice(self.shape)

    @property
    def structure(self) -> str:
        """The structure of its zeros, in words; what ranks and what trains them, where that is said."""
        words = [str(self.layout)]
        if self.coupled is not None:
            words.append(f"set {self.coupled.group + 1}")
        elif self.config.score is not None:
            words.append(f"by {score_name(self.config.score)}")
        if self.config.pruned_gradient != "zero":
            words.append(self.config.pruned_gradient.replace("_", "-"))
        return ", ".join(words)

    @property
    def layout(self) -> Structure:
        """Which weights are zeroed together."""
        if self.given is not None:
            return self.given
        return self.config.structure if self.coupled is None else Channels(self.coupled.axis)


@dataclass(frozen=True)
class SkippedModule:
    """A module with parameters, or one parameter of a module that is pruned otherwise, that stays dense, and why.

    Attributes:
        name: Its name.
        kind: Class of the module, as ``module_type_configs`` knows it.
        reason: Why it stays dense.
        cause: Whether a rule leaves it dense with None (``"rule"``), does not fit it (``"misfit"``) or names other
            parameters and modules (``"name"``), it is tied to what is pruned (``"tie"``), no rule by name or type
            applies to it and ``global_config`` does not reach it (``"reach"``), it waits to be trained (``"wait"``), or
            its channels cannot go (``"pinned"``).
        weights: Number of weights that stay dense and could be pruned, by the name that each parameter of rank 2 and
            more has in its module.
    """

    name: str
    kind: str
    reason: str
    cause: Cause = field(default="reach", repr=False)
    weights: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True)
class PruningPlan:
    """What a configuration does to a model. Prints as a table; iterates over the pruned parameters.

    Attributes:
        parameters: What is pruned.
        skipped: Modules that stay dense, and parameters of rank 2 and more that do so in a module that is pruned; the
            table has one row for those that do so alike, :meth:`records` all.
        dense_weights: Number of weights of rank 2 and more that no rule prunes.
        notes: What else to know of it, in sentences.
    """

    parameters: tuple[PrunedParameter, ...]
    skipped: tuple[SkippedModule, ...]
    dense_weights: int = 0
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[PrunedParameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def records(self) -> list[dict[str, Any]]:
        """One dict of plain values a module, pruned modules first."""
        pruned = [
            {
                "module": planned.label,
                "rule": planned.rule,
                "shape": list(planned.shape),
                "structure": planned.structure,
                "target_sparsity": planned.config.target_sparsity,
                "zeros": planned.target_zeros,
                "weights": planned.numel,
                "reason": None,
            }
            for planned in self.parameters
        ]
        nothing = dict.fromkeys(("rule", "shape", "structure", "target_sparsity", "zeros", "weights"))
        return pruned + [{"module": row.name, **nothing, "reason": row.reason} for row in self.skipped]

    def without(self, parameters: Iterable[PrunedParameter], reason: str) -> PruningPlan:
        """The same plan with some parameters among what stays dense, for a reason."""
        left = {planned.name: planned for planned in parameters}
        skipped = [
            SkippedModule(planned.label, type(planned.owners[0].module).__name__, reason, "wait")
            for planned in left.values()
        ]
        return PruningPlan(
            tuple(planned for planned in self.parameters if planned.name not in left),
            (*self.skipped, *skipped),
            self.dense_weights + sum(planned.numel for planned in left.values() if len(planned.shape) > 1),
            self.notes,
        )

    def _skipped_alike(self) -> dict[tuple[str, str], list[str]]:
        """Names of the modules that stay dense, by their kind and the reason."""
        alike: dict[tuple[str, str], list[str]] = {}
        for row in self.skipped:
            alike.setdefault((row.kind, row.reason), []).append(row.name)
        return alike

    def __str__(self) -> str:
        from lightning_prune.basics import as_text

        return as_text(self.__rich__())

    def __rich__(self) -> Table:
        """Table for a terminal or a notebook; 80 columns are enough. What stays dense alike shares a row."""
        from lightning_prune.basics import DottedText, new_table

        table = new_table("Pruning plan")
        table.add_column("module")
        table.add_column("shape", no_wrap=True)
        table.add_column("structure", min_width=10)
        for heading in ("target", "zeros"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("rule, or why it stays dense")
        for planned in self.parameters:
            shape, target = "x".join(map(str, planned.shape)), f"{planned.config.target_sparsity:.1%}"
            label, rule = DottedText(planned.label or "(root)"), DottedText(planned.rule)
            table.add_row(label, shape, planned.structure, target, f"{planned.target_zeros:,}", rule)
        for (kind, reason), names in self._skipped_alike().items():
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            name, reason_text = (DottedText(text, "dim") for text in (f"{names[0] or '(root)'}{more}", reason))
            table.add_row(name, "", DottedText(kind, "dim"), "", "", reason_text)
        zeros, weights = sum(planned.target_zeros for planned in self), sum(planned.numel for planned in self)
        layers = "1 layer" if len(self) == 1 else f"{len(self)} layers"
        sentence = f"{zeros:,} of {weights:,} weights in {layers} will be zero ({zeros / weights:.1%})"
        if self.dense_weights:
            share = zeros / (weights + self.dense_weights)
            sentence += f", {share:.1%} with the weights of rank 2 and more that stay dense"
        table.caption = " ".join([f"{sentence}.", *self.notes])
        return table
