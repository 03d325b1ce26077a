"""Resident masks whose pruned weights are trained: straight through the mask, and drawn to zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_prune.errors import ConfigError
from lightning_prune.masking.resident import ResidentMask
from lightning_prune.plan import PrunedParameter
from lightning_prune.sharding import local_part

__all__ = ["GradientDecay", "StraightThroughMask", "is_straight_through"]


def is_straight_through(planned: PrunedParameter) -> bool:
    """Whether a rule asks for straight-through gradients."""
    return planned.config.pruned_gradient == "straight_through"


class StraightThroughMask(ResidentMask):
    """A resident mask that leaves the gradient of the pruned weight as it is, until what was pruned away is forgotten.

    The forward and the gradient are those of the pruned weight ``w * m``, since that is the parameter. The optimizer
    steps the dense weight ``w``, as with every resident mask.

    Attributes:
        decay: Factor of the dense value of what is pruned, in the gradient that the optimizer steps with.
    """

    def __init__(self, planned: PrunedParameter) -> None:
        if planned.gain is not None:
            raise ConfigError(
                f'{planned.rule}.pruned_gradient must be "zero" for {planned.name}, which a weight norm divides by the '
                "norm of its rows: a gradient of the pruned weight is none of the parameter. Write "
                'pruned_gradient="zero" and decay=0.0 in a rule of its own, or take the weight norm off first.'
            )
        super().__init__(planned)
        self.decay = planned.config.decay

    @override
    def mask_gradient(self) -> None:
        """Zero the gradient where the weight is pruned for good, as that of any released weight."""
        if self.is_released:
            super().mask_gradient()

    @override
    def _mask_graph_of(self, gradient: Tensor) -> Tensor | None:
        return super()._mask_graph_of(gradient) if self.is_released else None

    def decayed(self, scale: Tensor | None = None) -> Tensor | None:
        """Give ``gradient + decay * pruned``, a new tensor; None without a gradient, or where nothing was pruned away.

        Args:
            scale: What the gradient is multiplied by, where a scaler of losses leaves it to the optimizer to divide.
        """
        gradient = self.parameter.grad
        if gradient is None or self._stash is None or not self.decay:
            return None
        pull = self._stash * self.decay
        if scale is not None:
            pull *= scale.to(pull.device)
        decayed = gradient.detach().clone()
        local_part(decayed).add_(pull)
        return decayed


class GradientDecay:
    """Adds the decay of pruned weights to gradients while one optimizer steps, as torch adds a weight decay in a step.

    So it is added once for each step, whatever was accumulated; after gradients were clipped, and to what a scaler has
    unscaled. Each gradient is the loss's own again when the step is over.
    """

    def __init__(self, optimizer: Optimizer, masks: Iterable[StraightThroughMask]) -> None:
        self._optimizer = optimizer
        self._masks = {id(mask) for mask in masks}
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []  # a parameter, its own gradient, the gradient of the step

    @classmethod
    def of(cls, optimizer: Optimizer, masks: Sequence[ResidentMask]) -> GradientDecay | None:
        """Make the decay of those masks that have any; None if none has."""
        decaying = [mask for mask in masks if isinstance(mask, StraightThroughMask) and mask.decay]
        return cls(optimizer, decaying) if decaying else None

    def add(self, masks: Iterable[ResidentMask]) -> None:
        """Let the optimizer see decayed gradients of those of the masks that have a decay."""
        self.take_back()
        scale = getattr(self._optimizer, "grad_scale", None)  # GradScaler sets it for fused optimizers while they step
        for mask in masks:
            if id(mask) in self._masks and isinstance(mask, StraightThroughMask):
                gradient, decayed = mask.parameter.grad, mask.decayed(scale)
                if gradient is not None and decayed is not None:
                    mask.parameter.grad = decayed
                    self._own.append((mask.parameter, gradient, decayed))

    def take_back(self) -> None:
        """Give parameters their own gradients again, but for those that something has replaced since."""
        for parameter, gradient, decayed in self._own:
            if parameter.grad is decayed:
                parameter.grad = gradient
        self._own = []
