"""Masks that reside in the parameter: ``weight`` stays the Parameter, and always is the pruned weight."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_prune.errors import ConfigError
from lightning_prune.masking.fingerprints import bit_sum
from lightning_prune.masking.guards import ProjectFirst, drop_guards
from lightning_prune.masking.held import HeldMask, watch_gradient
from lightning_prune.masking.products import (
    apply_mask,
    keep_in_place,
    multiply_in_place,
    ones,
    put_pruned,
    select_pruned,
    split,
)
from lightning_prune.plan import PrunedParameter
from lightning_prune.sharding import is_sharded, local_part

__all__ = ["ResidentMask"]


class _State(Enum):
    """What the parameter of a resident mask holds, and what the stash beside it holds.

    ============ ==================================== =============================================
    state        the parameter                        the stash
    ============ ==================================== =============================================
    ``PRUNED``   the pruned weight                    what was pruned away, zero elsewhere; None if
                                                      nothing was, or nothing but zeros
    ``DENSE``    the dense weight                     of no use: what it held is in the parameter
    ``RELEASED`` the pruned weight                    None: what was pruned away is forgotten
    ``OPEN``     what an optimizer makes of the       None
                 pruned weight
    ============ ==================================== =============================================

    :meth:`ResidentMask.fold` leads from ``PRUNED`` to ``DENSE`` and from ``RELEASED`` to ``OPEN``, and
    :meth:`ResidentMask.unfold` back. :meth:`ResidentMask.release` leads to ``RELEASED`` and
    :meth:`ResidentMask.restore` to ``PRUNED``, from wherever it is.
    """

    PRUNED = auto()
    DENSE = auto()
    RELEASED = auto()
    OPEN = auto()


class ResidentMask(HeldMask):
    """The parameter is the pruned weight; a stash keeps what was pruned away, zero elsewhere.

    The stash is made when the first weight is pruned and dropped by :meth:`release`. While the parameter is the pruned
    weight, ``dense = parameter + stash`` holds exactly, since where one is not zero the other is.

    Attributes:
        was_written: Whether PyTorch had counted a write to the parameter between the last fold and the unfold before.
        choices: How often its zeros may have been chosen anew.
    """

    def __init__(self, planned: PrunedParameter) -> None:
        self.parameter = planned.parameter
        self._owners = planned.owners
        shape = planned.layout.mask_shape(tuple(local_part(self.parameter).shape))
        self.mask = ones(self.parameter, shape)
        self._state = _State.PRUNED
        self._stash: Tensor | None = None
        self._prunes: bool | None = False  # whether the mask has, or had, a zero; None: it may have got its first
        self._version = self.parameter._version  # as the last unfold or projection has left it
        self.was_written = False
        self.choices = 0
        self._masked_gradient: tuple[int, int] | None = None
        self._gradient_hooks = self._watch_gradient(planned)

    def _watch_gradient(self, planned: PrunedParameter) -> list[Any]:
        parameter = self.parameter
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if isinstance(getattr(hook, "__self__", None), ResidentMask):
                raise ConfigError(
                    f"{planned.rule}: {planned.name} is pruned already, by another pruner. One parameter can have one "
                    "pruner: finalize the other one, or leave this module out with None."
                )
        return watch_gradient(
            parameter,
            ("register_post_accumulate_grad_hook", self._mask_gradient_of),
            ("register_hook", self._mask_graph_of),
        )

    @property
    def is_folded(self) -> bool:
        """Whether :meth:`unfold` is still to take out what is pruned."""
        return self._state is _State.DENSE or self._state is _State.OPEN

    @property
    def is_released(self) -> bool:
        """Whether what was pruned away is forgotten."""
        return self._state is _State.RELEASED or self._state is _State.OPEN

    def apply_to(self, tensor: Tensor) -> None:
        """Zero a tensor of the shape of the parameter where the parameter is pruned."""
        self._follow_device()
        with torch.no_grad():
            keep_in_place(local_part(tensor), self.mask)

    def fold(self) -> None:
        """Put what was pruned away back into the parameter."""
        if self.is_folded:
            return
        self.was_written = self.parameter._version != self._version
        if self._stash is not None:
            self._follow_device()
            with torch.no_grad():
                local_part(self.parameter).add_(self._stash)
        self._state = _State.DENSE if self._state is _State.PRUNED else _State.OPEN

    def unfold(self, *, is_zero: bool = False) -> None:
        """Take it out again, by the mask as it is now; ``is_zero`` says that a released weight is zero there anyway."""
        self._masked_gradient = None
        if self._state is _State.DENSE:
            self._state = _State.PRUNED
            self._split()
        elif self._state is _State.OPEN:
            self._state = _State.RELEASED
            if not is_zero and self._has_pruned():
                self.apply_to(self.parameter)
        else:
            return
        self._version = self.parameter._version

    def _has_pruned(self) -> bool:
        """Whether the mask has a zero, or had; looked at only after an update: it costs a pass, and a device a wait."""
        if self._prunes is None:
            self._prunes = not bool(self.mask.all())
        return self._prunes

    def _split(self) -> None:
        if not self._has_pruned():
            return
        self._follow_device()
        with torch.no_grad():
            weight = local_part(self.parameter)
            if self._stash is None:
                with torch.inference_mode(False):
                    self._stash = torch.zeros_like(weight)
            split(weight, self.mask, self._stash)

    @override
    def dense(self) -> Tensor:
        self._prunes = self._prunes or None  # the caller may write zeros to the mask
        self.choices += 1
        self.fold()
        return local_part(self.parameter)

    @override
    def settle(self) -> None:
        self.fold()
        self.unfold()

    @override
    def project(self) -> None:
        if self.is_folded:
            self.unfold()
        elif self._prunes:
            self.apply_to(self.parameter)

    @override
    def project_if_written(self) -> None:
        if self.parameter._version != self._version:
            self.project()
            self._version = self.parameter._version

    @override
    def release(self) -> None:
        self.unfold()
        self._state, self._stash = _State.RELEASED, None

    @override
    def detach(self) -> None:
        self.release()
        apply_mask(self.parameter, self.mask)
        for handle in self._gradient_hooks:
            handle.remove()
        for owner in self._owners:
            drop_guards(owner.module, owner.attribute)

    @override
    def guard_state_dict(self) -> None:
        for owner in self._owners:
            ProjectFirst(owner.attribute, self.project).attach(owner.module)

    @override
    def take_writes(self) -> None:
        if self._stash is not None and bool(local_part(self.parameter)[self._stash != 0].any()):
            self._stash = None

    @override
    def pruned_values(self) -> Tensor | None:
        return None if self._stash is None else select_pruned(self._stash, self.mask)

    @override
    def fingerprint(self) -> int:
        return super().fingerprint() + (0 if self._stash is None else bit_sum(self._stash) * 31)

    @override
    def restore(self, values: Tensor | None) -> None:
        if self._stash is not None and self._is_untouched(self._stash):
            self.fold()  # the weight was there before this mask pruned it
        self._state, self.choices = _State.PRUNED, self.choices + 1
        self._prunes = not bool(self.mask.all())
        with torch.no_grad():
            if values is None:
                self._stash = None
            else:
                self._stash = torch.zeros_like(local_part(self.parameter))
                put_pruned(self._stash, self.mask, values)
            if self._prunes:
                keep_in_place(local_part(self.parameter), self.mask)

    def _is_untouched(self, stash: Tensor) -> bool:
        """Whether nothing has written to the weight since it was masked; some writes PyTorch does not count."""
        return self.parameter._version == self._version and not bool(local_part(self.parameter)[stash != 0].any())

    def mask_gradient(self) -> None:
        """Zero the gradient where the weight is pruned, as the product rule does in ``weight_orig * mask``."""
        gradient = self.parameter.grad
        if gradient is None or not self._prunes:
            return
        if self._masked_gradient == (id(gradient), gradient._version) and not is_sharded(gradient):
            return  # masked as it was accumulated, and not written since
        self._follow_device()
        with torch.no_grad():
            multiply_in_place(local_part(gradient), self.mask)
        self._masked_gradient = (id(gradient), gradient._version)

    def _mask_gradient_of(self, parameter: Tensor) -> None:
        self.got_gradient, gradient = True, self.parameter.grad
        if gradient is not None and gradient.requires_grad:  # masked by the next method, and part of a graph
            self._masked_gradient = (id(gradient), gradient._version)
        self.mask_gradient()

    def _mask_graph_of(self, gradient: Tensor) -> Tensor | None:
        """Mask a gradient that will be differentiated itself, with its graph: ``backward(create_graph=True)``."""
        if not torch.is_grad_enabled() or not self._prunes or is_sharded(gradient):
            return None
        self._follow_device()
        return gradient * self.mask.to(gradient.dtype)

    def _follow_device(self) -> None:
        """Follow a model that was moved or cast after it was prepared."""
        weight = local_part(self.parameter)
        if self.mask.device != weight.device:
            self.mask = self.mask.to(weight.device)
        if self._stash is not None and (self._stash.device != weight.device or self._stash.dtype != weight.dtype):
            self._stash = self._stash.to(weight)
