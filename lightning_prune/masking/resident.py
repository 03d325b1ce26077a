"""Masks that reside in the parameter: ``weight`` stays the Parameter, and always is the pruned weight."""

from __future__ import annotations

from math import prod
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
from lightning_prune.masks import GOLDEN
from lightning_prune.plan import PrunedParameter
from lightning_prune.sharding import is_sharded, local_part

__all__ = ["ResidentMask"]

_SAMPLE, _LOOKS = 4096, 64  # entries among which pruned ones are looked for, and how many of them are looked at


class ResidentMask(HeldMask):
    """The parameter is the pruned weight; a stash keeps what was pruned away, zero elsewhere.

    The stash is made when the first weight is pruned and dropped by :meth:`release`. Between two folds
    ``dense = parameter + stash`` holds exactly, since where one is not zero the other is.

    Attributes:
        was_written: Whether PyTorch had counted a write to the parameter between the last fold and the one before.
    """

    def __init__(self, one: PrunedParameter) -> None:
        self.parameter = one.parameter
        self._owners = one.owners
        shape = one.config.structure.mask_shape(tuple(local_part(self.parameter).shape))
        self.mask = ones(self.parameter, shape)
        self._stash: Tensor | None = None
        self._keeps_stash = True
        self._is_folded = False
        self._is_masking = False
        self._mask_is_new = False
        self._version = self.parameter._version
        self.was_written = False
        self._probe: tuple[Tensor, ...] | None = None
        self._masked_gradient: tuple[int, int] | None = None
        self._gradient_hooks = self._watch_gradient(one)

    def _watch_gradient(self, one: PrunedParameter) -> list[Any]:
        parameter = self.parameter
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if isinstance(getattr(hook, "__self__", None), ResidentMask):
                raise ConfigError(
                    f"{one.rule}: {one.name} is pruned already, by another pruner. One parameter can have one pruner: "
                    "finalize the other one, or leave this module out with None."
                )
        return watch_gradient(
            parameter,
            ("register_post_accumulate_grad_hook", self._mask_gradient_of),
            ("register_hook", self._mask_graph_of),
        )

    @property
    def may_rest(self) -> bool:
        """Whether steps that leave pruned weights at zero may leave out the pass over the weights.

        So once the mask will not change any more; on the CPU alone, since to look at a weight on another device takes
        longer than the pass.
        """
        return not self._keeps_stash and not self._mask_is_new and self.parameter.device.type == "cpu"

    def looks_zero(self) -> bool:
        """Whether some of the pruned weights, from all over the tensor, are zero: a quick look, no proof."""
        weight = local_part(self.parameter)
        if self._probe is None:
            self._probe = _pruned_places(self.mask, tuple(weight.shape))
        return not bool(weight[self._probe].any())

    def apply_to(self, tensor: Tensor) -> None:
        """Zero a tensor of the shape of the parameter where the parameter is pruned."""
        self._follow_device()
        with torch.no_grad():
            keep_in_place(local_part(tensor), self.mask)

    def fold(self) -> None:
        """Put what was pruned away back into the parameter."""
        if self._is_folded:
            return
        self.was_written = self.parameter._version != self._version
        if self._stash is not None:
            self._follow_device()
            with torch.no_grad():
                local_part(self.parameter).add_(self._stash)
        self._is_folded = True

    def unfold(self, *, is_zero: bool = False) -> None:
        """Take it out again, by the mask as it is now; ``is_zero`` says that there is nothing to take out."""
        self._masked_gradient = None
        if not self._is_folded:
            return
        self._is_folded = False
        if not is_zero:
            self._unfold()
        self._version = self.parameter._version

    def _unfold(self) -> None:
        if self._mask_is_new:  # looked at only after an update: it costs a pass, and a device a wait
            self._is_masking, self._mask_is_new = self._is_masking or not bool(self.mask.all()), False
        if not self._is_masking:
            return
        self._follow_device()
        with torch.no_grad():
            weight = local_part(self.parameter)
            if self._keeps_stash:
                if self._stash is None:
                    with torch.inference_mode(False):
                        self._stash = torch.zeros_like(weight)
                split(weight, self.mask, self._stash)
            else:
                keep_in_place(weight, self.mask)

    @override
    def dense(self) -> Tensor:
        self._mask_is_new, self._probe = True, None
        self.fold()
        return local_part(self.parameter)

    @override
    def settle(self) -> None:
        self.fold()
        self.unfold()

    @override
    def project(self) -> None:
        if self._is_folded:
            self.unfold()
        elif self._is_masking:
            self.apply_to(self.parameter)

    @override
    def project_if_written(self) -> None:
        if self.parameter._version != self._version:
            self.project()
            self._version = self.parameter._version

    @override
    def release(self) -> None:
        self.unfold()
        self._keeps_stash, self._stash = False, None

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
        self._is_folded, self._keeps_stash, self._probe = False, True, None
        self._is_masking = not bool(self.mask.all())
        with torch.no_grad():
            if values is None:
                self._stash = None
            else:
                self._stash = torch.zeros_like(local_part(self.parameter))
                put_pruned(self._stash, self.mask, values)
            if self._is_masking:
                keep_in_place(local_part(self.parameter), self.mask)

    def _is_untouched(self, stash: Tensor) -> bool:
        """Whether nothing has written to the weight since it was masked; some writes PyTorch does not count."""
        return self.parameter._version == self._version and not bool(local_part(self.parameter)[stash != 0].any())

    def mask_gradient(self) -> None:
        """Zero the gradient where the weight is pruned, as the product rule does in ``weight_orig * mask``."""
        gradient = self.parameter.grad
        if gradient is None or not self._is_masking:
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
        if not torch.is_grad_enabled() or not self._is_masking or is_sharded(gradient):
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


def _pruned_places(mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Indices of some pruned entries from all over a mask that broadcasts over ``shape``; none if few are pruned."""
    numel = prod(shape)
    sample = torch.arange(min(numel, _SAMPLE), device=mask.device) * GOLDEN % numel
    places = torch.unravel_index(sample, shape)
    pruned = (mask.expand(shape)[places] == 0).nonzero().view(-1)
    pruned = pruned[:: max(1, len(pruned) // _LOOKS)]
    return tuple(place[pruned] for place in places)
