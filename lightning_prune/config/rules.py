"""One rule: how the weights that it matches are pruned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import IO, Any, TypeVar, cast, get_args

from lightning_prune.basics import as_fraction, check_lock, plain_number, plain_text, unlocked_state, yaml_hint
from lightning_prune.config.gradients import PrunedGradient, check_gradient
from lightning_prune.config.keys import check_keys, check_name_pattern
from lightning_prune.config.ratios import parse_ratio
from lightning_prune.config.schedulers import build_scheduler, describe_scheduler
from lightning_prune.config.scores import check_score, score_name
from lightning_prune.config.yaml_files import read_yaml
from lightning_prune.errors import ConfigError, did_you_mean, shown
from lightning_prune.masks import Granularity, Structure, pruned_count, structure_of
from lightning_prune.schedules import ConstantSparsityScheduler, PruningScheduler

__all__ = ["DEFAULT_TARGET", "ModuleMagnitudePrunerConfig"]

DEFAULT_TARGET = 0.5
_Rule = TypeVar("_Rule", bound="ModuleMagnitudePrunerConfig")


@dataclass
class ModuleMagnitudePrunerConfig:
    """How the weights that one rule matches are pruned.

    Args:
        scheduler: When and how far. A :class:`~lightning_prune.schedules.PruningScheduler`, or a dict of its arguments:
            ``{"update_steps": [3, 5, 7], "power": 3}``, ``{"begin": 0.1, "end": 0.6}``,
            ``{"begin_step": 100}``, ``{"begin_step": 1, "frequency": 1}``,
            ``{"class_path": "my.Schedule", "init_args": {...}}``. A ``class_path`` that is not one of
            :mod:`lightning_prune.schedules` is imported before anything is known of it: trust a configuration as you
            trust code.
        initial_sparsity: Fraction of zeros in [0, 1] that holds from ``prepare`` on.
        target_sparsity: Fraction of zeros in [0, 1] at the end of the schedule. With ``n_m_ratio`` it is ``n / m``.
        granularity: What is zeroed as one: ``"per_scalar"``, ``"per_kernel"`` (rank 3 and more: one input channel of
            one output channel) or ``"per_channel"`` (rank 2 and more: one output channel, which is a row of Linear).
        block_size: Consecutive output channels zeroed together; at most half of them. 1 is no blocks.
        n_m_ratio: ``(n, m)``: of every ``m`` weights along ``dim``, **n are zero**. Excludes blocks, other
            granularities and an initial sparsity.
        dim: Dimension of the groups of ``m``: 1 (input channels) or 0 (output channels).
        param_name: The parameter of the module that is pruned; a regular expression may match several whole names
            (``"weight_.*"`` of an LSTM, ``"weight|bias"``).
        pruned_gradient: What trains a weight ``w`` while its mask ``m`` prunes it. ``"zero"``: nothing but the momentum
            and the weight decay of the optimizer. ``"straight_through"``: the gradient ``g`` that the loss has at the
            pruned weight ``w * m``, so that weights are trained as long as masks are chosen anew. Needs
            ``masking="resident"``, and a schedule with more than one update.
        decay: With ``"straight_through"``, draws pruned weights to zero: the optimizer steps with the gradient
            ``g + decay * (1 - m) * w``. At least 0; the authors' code has 0.0002.
        score: Ranks weights in place of their magnitude: a function ``score(weight, parameter)``, see
            :class:`~lightning_prune.config.Score`. A configuration that has it is not written to files.

    Raises:
        ConfigError: A value, or two values together, cannot work. Raised by a later assignment too.

    References:
        Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021,
        https://arxiv.org/abs/2102.04010, for ``"straight_through"`` with ``decay`` (SR-STE).

    Example:
        >>> config = ModuleMagnitudePrunerConfig({"update_steps": "range(100, 500, 100)"}, target_sparsity=0.75)
        >>> config.scheduler.update_steps
        (100, 200, 300, 400)

        SR-STE, 2:4 from scratch: masks are chosen anew at every step.

        >>> every_step = {"begin_step": 1, "frequency": 1}
        >>> config = ModuleMagnitudePrunerConfig(
        ...     every_step, n_m_ratio=(2, 4), pruned_gradient="straight_through", decay=2e-4
        ... )
        >>> import torch
        >>> from lightning_prune import MagnitudePruner
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> pruner = MagnitudePruner(layer, config, masking="resident")
        >>> layer = pruner.prepare(inplace=True)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> pruner.attach_optimizers(optimizer)
        >>> pruner.step()
        >>> layer.weight.tolist()
        [[4.0, 3.0, 0.0, 0.0]]
        >>> layer(torch.tensor([0.0, 2.5, -1.5, 0.0])).sum().backward()
        >>> optimizer.step(); pruner.step()  # the dense weights are 4.0, 0.5, 3.4996 and 0.9998 now
        >>> [round(weight, 4) for weight in layer.weight[0].tolist()]
        [4.0, 0.0, 3.4996, 0.0]
    """

    scheduler: PruningScheduler | Mapping[str, Any] = field(default_factory=lambda: ConstantSparsityScheduler(0))
    initial_sparsity: float = 0.0
    target_sparsity: float = 0.5
    granularity: Granularity = "per_scalar"
    block_size: int = 1
    n_m_ratio: tuple[int, int] | None = None
    dim: int = 1
    param_name: str = "weight"
    pruned_gradient: PrunedGradient = "zero"
    decay: float = 0.0
    score: Any = None  # a Score or None; of that type, LightningCLI would import what a file names

    def __post_init__(self) -> None:
        """Turn the values into plain values of Python and check them; from then on each assignment is checked."""
        values = self.__dict__
        if isinstance(self.scheduler, Mapping):
            values["scheduler"] = build_scheduler(self.scheduler)
        if self.n_m_ratio is not None:
            values["n_m_ratio"] = parse_ratio(self.n_m_ratio)
        for name in ("initial_sparsity", "target_sparsity"):
            values[name] = as_fraction(name, getattr(self, name))
        for name in ("block_size", "dim", "decay"):
            values[name] = plain_number(getattr(self, name))
        for name in ("granularity", "param_name", "pruned_gradient"):
            values[name] = plain_text(getattr(self, name))
        self._check_values()
        self._check_together()
        check_score(self.score, self.initial_sparsity)
        check_gradient(self.pruned_gradient, self.decay, self.schedule, self.initial_sparsity)
        values["decay"] = float(self.decay)
        if self.n_m_ratio is not None:
            values["target_sparsity"] = self.n_m_ratio[0] / self.n_m_ratio[1]
        values["_is_checked"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        check_lock(self, name)
        if self.__dict__.get("_is_checked"):
            if name not in self.__dataclass_fields__:
                raise ConfigError(f"{name} is not a setting.{did_you_mean(name, self.__dataclass_fields__)}")
            changed = {name: value}
            if name == "n_m_ratio" and self.n_m_ratio is not None:
                changed["target_sparsity"] = DEFAULT_TARGET  # the target that the old ratio gave is not the user's
            self.__dict__.update(vars(replace(self, **changed)))  # the constructor checks, and derives the target
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return unlocked_state(self)

    def _check_values(self) -> None:
        if not isinstance(self.scheduler, PruningScheduler):
            raise ConfigError(
                f"scheduler must be a PruningScheduler or a dict of its arguments, got {shown(self.scheduler)}. "
                "Write PolynomialDecayScheduler(update_steps=[...])."
            )
        allowed = get_args(Granularity)
        if self.granularity not in allowed:
            raise ConfigError(f"granularity must be one of {', '.join(allowed)}, got {shown(self.granularity)}.")
        if type(self.block_size) is not int or self.block_size < 1:
            raise ConfigError(
                f"block_size must be a whole number of output channels of at least 1, got {shown(self.block_size)}. "
                f"Write 1 for no blocks.{yaml_hint(self.block_size)}"
            )
        if type(self.dim) is not int or self.dim not in (0, 1):
            raise ConfigError(
                f"dim must be 0 (output channels) or 1 (input channels), a whole number, got {shown(self.dim)}."
                f"{yaml_hint(self.dim)}"
            )
        check_name_pattern(self.param_name, 'param_name must be the name of a parameter such as "weight"')

    def _check_together(self) -> None:
        if self.n_m_ratio is None:
            return
        ratio = f"n_m_ratio={self.n_m_ratio}"
        if self.block_size > 1:
            raise ConfigError(f"block_size must be 1 with {ratio}, got {self.block_size}. Leave one of the two out.")
        if self.granularity != "per_scalar":
            raise ConfigError(f'granularity must be "per_scalar" with {ratio}, got {shown(self.granularity)}.')
        if self.initial_sparsity != 0.0:
            raise ConfigError(f"initial_sparsity must be 0.0 with {ratio}, got {self.initial_sparsity}.")
        n, m = self.n_m_ratio
        if self.target_sparsity not in (DEFAULT_TARGET, n / m):
            raise ConfigError(
                f"target_sparsity is {n / m:g} by {ratio}, got {self.target_sparsity}. Leave one of the two out."
            )

    @property
    def structure(self) -> Structure:
        """What is zeroed together, as one value: ``granularity`` and ``block_size``, or ``n_m_ratio`` and ``dim``."""
        return structure_of(
            granularity=self.granularity, block_size=self.block_size, n_m_ratio=self.n_m_ratio, dim=self.dim
        )

    def with_target(self: _Rule, target: float) -> _Rule | None:
        """The same rule with another target; None, which is dense, where that prunes nothing.

        Example:
            >>> ModuleMagnitudePrunerConfig(n_m_ratio=(2, 4)).with_target(0.8).n_m_ratio
            (3, 4)
        """
        if self.n_m_ratio is None:
            initial = min(self.initial_sparsity, target)
            return replace(self, target_sparsity=target, initial_sparsity=initial) if target else None
        group_size = self.n_m_ratio[1]
        num_zeros = min(pruned_count(group_size, target), group_size - 1)
        ratio = (num_zeros, group_size)
        return replace(self, n_m_ratio=ratio, target_sparsity=num_zeros / group_size) if num_zeros else None

    @property
    def schedule(self) -> PruningScheduler:
        """The scheduler, by its type: a dict was turned into a scheduler when the configuration was built."""
        return cast(PruningScheduler, self.scheduler)

    @classmethod
    def from_dict(cls: type[_Rule], data_dict: Mapping[str, Any]) -> _Rule:
        """Build from plain values; an unknown key is a ConfigError."""
        if not isinstance(data_dict, Mapping):
            raise ConfigError(f"A rule must be a dict of its values, got {shown(data_dict)}.")
        check_keys(data_dict, (entry.name for entry in fields(cls)))
        return cls(**data_dict)

    @classmethod
    def from_yaml(cls: type[_Rule], yml: str | os.PathLike[str] | IO[str]) -> _Rule:
        """Build from YAML: a path, a text, or an open file."""
        return cls.from_dict(read_yaml(yml))

    def as_dict(self) -> dict[str, Any]:
        """Give plain numbers, texts, lists and dicts, from which :meth:`from_dict` builds an equal one.

        ``pruned_gradient`` and ``decay`` are left out where they are the defaults, as Core ML Tools, which reads the
        rest too, does not know them: it refuses a rule that has them.

        Raises:
            ConfigError: It has a score, which is a function and no plain value.
        """
        if self.score is not None:
            raise ConfigError(
                f"score is the function {score_name(self.score)}, which is no plain value. Write the rule without it, "
                "and set rule.score in Python."
            )
        return self.described()

    def described(self) -> dict[str, Any]:
        """The same as :meth:`as_dict`, with a score by its name, which :meth:`from_dict` does not take."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["score"] = None if self.score is None else score_name(self.score)
        for name in ("pruned_gradient", "decay", "score"):
            if values[name] == self.__dataclass_fields__[name].default:
                del values[name]
        values["scheduler"] = describe_scheduler(self.schedule)
        if self.n_m_ratio is not None:
            values["n_m_ratio"] = list(self.n_m_ratio)
        return values
