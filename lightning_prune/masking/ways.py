"""How a mask acts on a module: in one of two ways, by one protocol (:class:`~lightning_prune.masking.held.HeldMask`).

* :class:`~lightning_prune.masking.hook.HookMask`: the module keeps ``weight_orig`` (trained) and ``weight_mask``; a
  forward pre-hook makes ``weight``.
* :class:`~lightning_prune.masking.resident.ResidentMask`: ``weight`` stays the Parameter and always is the pruned
  weight. What was pruned away lies in a stash beside it, and is put back only while an optimizer steps
  (:class:`~lightning_prune.masking.optimizers.OptimizerLink`). A weight behind a weight norm has two of them
  (:class:`~lightning_prune.masking.normed.NormedMask`); pruned weights may be trained on, straight through the mask
  (:class:`~lightning_prune.masking.straight_through.StraightThroughMask`).

Both train bit-equal networks. A way is an object that attaches masks, links optimizers and says what is amiss, so that
nobody else asks which of the two it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from torch import nn
from torch.optim import Optimizer

from lightning_prune.masking.held import HeldMask
from lightning_prune.masking.hook import HookMask, find_unused
from lightning_prune.masking.normed import NormedMask
from lightning_prune.masking.optimizers import OptimizerLink
from lightning_prune.masking.resident import ResidentMask
from lightning_prune.masking.straight_through import StraightThroughMask, is_straight_through
from lightning_prune.plan import PrunedParameter

__all__ = ["Masking", "MaskingWay", "way_of"]

Masking = Literal["hook", "resident"]


class MaskingWay(ABC):
    """How masks are held, for all parameters of a model.

    Attributes:
        shows_dense: Whether the parameters that an optimizer, or an average of a module, sees are the dense weights.
    """

    shows_dense: bool

    @abstractmethod
    def attach(self, planned: PrunedParameter) -> HeldMask:
        """Put a mask of ones on a parameter.

        Raises:
            ConfigError: The module reads this parameter in a way that this kind of mask cannot follow.
        """

    @abstractmethod
    def link(self, optimizer: Optimizer, masks: Sequence[HeldMask]) -> OptimizerLink | None:
        """Tell masks of an optimizer; None where they need none.

        Raises:
            ConfigError: It is not a :class:`torch.optim.Optimizer`.
        """

    @abstractmethod
    def find_unattached(self, masks: Mapping[str, HeldMask], links: Sequence[OptimizerLink]) -> list[str]:
        """Names of masks that need an optimizer, whose weight is not frozen and in none that is linked."""

    @abstractmethod
    def find_unused(self, masks: Mapping[str, HeldMask], model: nn.Module) -> list[str] | None:
        """Names of masks that the training so far has passed by; None where nothing was trained yet."""


class HookMasking(MaskingWay):
    """Masks held by forward pre-hooks."""

    shows_dense = True

    def attach(self, planned: PrunedParameter) -> HeldMask:
        """Give the module ``weight_orig`` and ``weight_mask``."""
        return HookMask(planned)

    def link(self, optimizer: Optimizer, masks: Sequence[HeldMask]) -> OptimizerLink | None:
        """None: the optimizer trains the dense weights."""
        return None

    def find_unattached(self, masks: Mapping[str, HeldMask], links: Sequence[OptimizerLink]) -> list[str]:
        """No names: an optimizer trains the dense weights by itself."""
        return []

    def find_unused(self, masks: Mapping[str, HeldMask], model: nn.Module) -> list[str] | None:
        """Those whose module ran no forward, though others did, and which got no gradient."""
        return find_unused(cast(Mapping[str, HookMask], masks), model)


class ResidentMasking(MaskingWay):
    """Masks that reside in the parameters."""

    shows_dense = False

    def attach(self, planned: PrunedParameter) -> HeldMask:
        """Change no name; behind a weight norm, mask both of its parameters."""
        if is_straight_through(planned):
            return StraightThroughMask(planned)
        return ResidentMask(planned) if planned.gain is None else NormedMask(planned, planned.gain)

    def link(self, optimizer: Optimizer, masks: Sequence[HeldMask]) -> OptimizerLink | None:
        """Show the optimizer the dense weights while it steps."""
        return OptimizerLink(optimizer, [cast(ResidentMask, part) for mask in masks for part in mask.parts()])

    def find_unattached(self, masks: Mapping[str, HeldMask], links: Sequence[OptimizerLink]) -> list[str]:
        """Those whose dense values nothing trains."""
        attached = {id(mask) for link in links for mask in link}
        return [
            name
            for name, mask in masks.items()
            if any(part.parameter.requires_grad and id(part) not in attached for part in mask.parts())
        ]

    def find_unused(self, masks: Mapping[str, HeldMask], model: nn.Module) -> list[str] | None:
        """No names: whoever reads the weight reads the pruned weight."""
        return []


_WAYS: dict[str, MaskingWay] = {"hook": HookMasking(), "resident": ResidentMasking()}


def way_of(masking: Masking) -> MaskingWay:
    """The object that stands for a way."""
    return _WAYS[masking]
