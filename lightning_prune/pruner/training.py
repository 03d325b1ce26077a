"""What trains the pruned weights: optimizers, and which weights none of them trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.masking import HeldMask, MaskingWay, OptimizerLink
from lightning_prune.pruner.layer import Layer

__all__ = ["Training"]

_LOOKS = 3  # steps, at most, at which weights are looked for that nothing uses


class Training:
    """The optimizers of a model whose masks are attached.

    Args:
        way: How the masks are held.
        optimizers: What trains the model, to be attached; None if it is not known.

    Attributes:
        optimizers: Those that are known, in order.
        may_wait: Whether a weight that none of them trains is left out of updates.
    """

    def __init__(self, way: MaskingWay, optimizers: Iterable[Optimizer] | None = None) -> None:
        self.optimizers = list(optimizers or ())
        self.may_wait = optimizers is not None
        self._way = way
        self._links: list[OptimizerLink] = []
        self._unattached: list[HeldMask] | None = None  # not looked for yet
        self._looks = 0  # for weights that nothing uses

    def attach(self, optimizers: Sequence[Optimizer], layers: Sequence[Layer]) -> None:
        """Link the masks of all layers with optimizers, where they need it."""
        self.optimizers += [
            optimizer for optimizer in optimizers if not any(optimizer is known for known in self.optimizers)
        ]
        linked = {id(link.optimizer) for link in self._links}
        new = [optimizer for optimizer in optimizers if id(optimizer) not in linked]
        links = [self._way.link(optimizer, [layer.held for layer in layers]) for optimizer in new]
        self._links += [link for link in links if link is not None]
        self._unattached = None if new else self._unattached

    def find_unattached(self, layers: Sequence[Layer]) -> list[str]:
        """Find the names of parameters that no attached optimizer updates now."""
        held = _held_by_name(layers)
        names = self._way.find_unattached(held, self._links)
        self._unattached = [held[name] for name in names]
        return names

    def after_step(self, layers: Sequence[Layer], model: nn.Module) -> None:
        """See to it that weights are pruned after a step of the optimizers; warn, once, of what they cannot train.

        This runs at every step, and takes as long for many layers as for few.
        """
        if self._unattached is None:
            self._warn_of_unattached(layers)
        if self._looks < _LOOKS:
            self._warn_of_unused(layers, model)
        for held in self._unattached or ():
            held.project_if_written()
        for link in self._links:
            link.reset()

    def trained_among(self, layers: Sequence[Layer]) -> list[Layer]:
        """Layers that an optimizer trains, of those that are due; the others wait, and are noted."""
        if not self.may_wait:
            return list(layers)
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        known = {id(parameter) for group in groups for parameter in group["params"]}
        for layer in layers:
            held = layer.held
            is_trained = held.parameter.requires_grad or held.got_gradient  # some are frozen for a part of each batch
            layer.is_behind = not (layer.plan.is_named or (is_trained and id(held.parameter) in known))
            held.got_gradient = False
        waiting = {layer.plan.coupled.group for layer in layers if layer.is_behind and layer.plan.coupled is not None}
        for layer in layers:  # channels that can only go together wait together
            layer.is_behind |= layer.plan.coupled is not None and layer.plan.coupled.group in waiting
        return [layer for layer in layers if not layer.is_behind]

    def reset(self) -> None:
        """Take the dense weights away from an optimizer whose step raised and was caught."""
        for link in self._links:
            link.reset()

    def mask_gradients(self, optimizer: Optimizer | None) -> None:
        """Zero the gradients of pruned weights; of one optimizer's, or of all of them."""
        for link in self._links:
            if optimizer is None or link.optimizer is optimizer:
                for mask in link:
                    mask.mask_gradient()

    def removals(self) -> list[Callable[[], None]]:
        """Give what takes the links off the optimizers, to be called once."""
        links, self._links = self._links, []
        return [link.remove for link in links]

    def __getstate__(self) -> dict[str, Any]:
        """A copy is linked with no optimizer: it is not its parameters that these update."""
        return {**self.__dict__, "_links": [], "_unattached": None}

    def _warn_of_unattached(self, layers: Sequence[Layer]) -> None:
        names = self.find_unattached(layers)
        if names and not self._links:
            warnings.warn(
                'step() with masking="resident" knows no optimizer. That is right where a network is pruned without '
                "training. If it is trained, what was pruned away is not trained with it: call "
                "pruner.attach_optimizers(optimizer) after prepare().",
                stacklevel=5,
            )
        elif names:
            warnings.warn(
                f"Pruned, but updated by no attached optimizer: {', '.join(names)}. They stay pruned, but what was "
                "pruned away is not trained. Give their optimizer to attach_optimizers(); one that was made before "
                "prepare() copied the model trains the original.",
                stacklevel=5,
            )

    def _warn_of_unused(self, layers: Sequence[Layer], model: nn.Module) -> None:
        names = self._way.find_unused(_held_by_name(layers), model)
        self._looks = self._looks + 1 if names is None else _LOOKS
        if names:
            warnings.warn(
                f'No gradient at the first optimizer step: {", ".join(names)}. With masking="hook" a weight is trained '
                "only through the forward of its own module. If another module or a function reads it, use "
                'masking="resident".',
                stacklevel=5,
            )


def _held_by_name(layers: Sequence[Layer]) -> Mapping[str, HeldMask]:
    return {layer.plan.name: layer.held for layer in layers}
