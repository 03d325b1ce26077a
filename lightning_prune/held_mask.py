"""What every way to hold a mask has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_prune.sharding import bit_sum, local_part, place_sum

__all__ = ["HeldMask"]


class HeldMask(ABC):
    """A mask that acts on one parameter.

    Attributes:
        mask: Bytes 0 and 1 (1 = keep) that broadcast over the weight, changed in place.
        parameter: The Parameter object that the optimizer knows; the same before, during and after pruning.
    """

    mask: Tensor
    parameter: nn.Parameter

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

    @abstractmethod
    def detach(self) -> None:
        """Leave a plain module whose parameter is the pruned weight."""

    def undo(self) -> None:
        """Leave a plain module whose parameter is the dense weight, as far as that is known."""
        self.mask.fill_(1)
        self.settle()
        self.detach()

    @abstractmethod
    def pruned_values(self) -> Tensor | None:
        """Give what was pruned away, in the order of the zeros of the mask; None if it is forgotten or all zero."""

    @abstractmethod
    def restore(self, values: Tensor | None) -> None:
        """Put back what :meth:`pruned_values` gave, under the same mask and the same pruned weight."""

    def fingerprint(self) -> int:
        """A number that differs where the dense weights or the masks do; cheap, and the same in all processes."""
        return bit_sum(local_part(self.parameter)) * 31 + place_sum(self.mask)
