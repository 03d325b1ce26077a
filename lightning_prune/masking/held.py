"""What every way to hold a mask has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_prune.masking.fingerprints import bit_sum, place_sum
from lightning_prune.masking.products import apply_mask
from lightning_prune.sharding import local_part

__all__ = ["HeldMask", "watch_gradient"]


class HeldMask(ABC):
    """A mask that acts on one parameter.

    Attributes:
        mask: Bytes 0 and 1 (1 = keep) that broadcast over the weight, changed in place.
        parameter: The Parameter object that the optimizer knows; the same before, during and after pruning.
        got_gradient: Whether a gradient has come since this was last set to False.
    """

    mask: Tensor
    parameter: nn.Parameter
    got_gradient: bool = False

    def parts(self) -> tuple[HeldMask, ...]:
        """The masks that this mask is made of, each of a parameter that an optimizer updates; most often itself."""
        return (self,)

    @abstractmethod
    def dense(self) -> Tensor:
        """Give this process's weights with what was pruned away put back; call :meth:`settle` afterwards."""

    @abstractmethod
    def settle(self) -> None:
        """Make the module agree with the mask, after :meth:`dense`, a change of the mask or of the dense values."""

    @abstractmethod
    def project(self) -> None:
        """Zero what is pruned and something else has written to, without taking it for a dense value."""

    @abstractmethod
    def project_if_written(self) -> None:
        """The same, only if PyTorch has counted a write to the parameter since it was last settled."""

    @abstractmethod
    def release(self) -> None:
        """Forget what was pruned away: the mask will not change any more."""

    def forget(self) -> None:
        """Take zero for what is pruned away, after something else has written the weight; the mask may still change."""
        self.restore(None)

    @abstractmethod
    def detach(self) -> None:
        """Leave a plain module whose parameter is the pruned weight."""

    def undo(self) -> None:
        """Leave a plain module whose parameter is the dense weight, as far as that is known."""
        self.mask.fill_(1)
        self.settle()
        self.detach()

    @abstractmethod
    def guard_state_dict(self) -> None:
        """Let every state dict have the pruned weight under its plain name from now on, until the mask is detached."""

    @abstractmethod
    def take_writes(self) -> None:
        """Take what something has written to pruned weights for their dense values, and forget the old dense values."""

    @abstractmethod
    def pruned_values(self) -> Tensor | None:
        """Give what was pruned away, in the order of the zeros of the mask; None if it is forgotten or all zero."""

    @abstractmethod
    def restore(self, values: Tensor | None) -> None:
        """Put back what :meth:`pruned_values` gave, under the same mask and the same pruned weight."""

    def restore_dense(self, weight: Tensor) -> None:
        """Put back what is pruned here from a dense weight on the CPU, which another library had masked."""
        self.restore(weight[self.mask.expand(weight.shape).cpu() == 0])

    def mask_copy(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Apply the mask to a copy of the model, in place.

        Args:
            name: What the parameter is called there.
            parameters: All parameters of the copy by name.
        """
        if name in parameters:
            apply_mask(parameters[name], self.mask)

    def fingerprint(self) -> int:
        """A number that differs where the dense weights or the masks do; cheap, and the same in all processes."""
        return bit_sum(local_part(self.parameter)) * 31 + place_sum(self.mask)


def watch_gradient(parameter: nn.Parameter, *hooks: tuple[str, Callable[[Tensor], Any]]) -> list[Any]:
    """Register hooks of gradients on a parameter, by the names of the methods that do so; gives their handles."""
    is_trained = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen later
    handles = [getattr(parameter, method)(hook) for method, hook in hooks]
    parameter.requires_grad_(is_trained)
    return handles
