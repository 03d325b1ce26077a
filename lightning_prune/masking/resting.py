"""Released weights that an optimizer leaves at zero by itself, so that no pass over them is needed after each step."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from lightning_prune.masking.resident import ResidentMask
from lightning_prune.masks import GOLDEN
from lightning_prune.sharding import local_part

__all__ = ["Resting"]

# Optimizers whose step leaves a weight at zero where gradient and momentum are zero too, and what they call momentum.
_LEAVE_ZEROS = {
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax),
}
_MOMENTA = {"momentum_buffer", "exp_avg"}
_LOOK_AFTER = 32  # steps
_SAMPLE, _LOOKS = 4096, 64  # entries among which pruned ones are looked for, and how many of them are looked at


class _Rest(NamedTuple):
    """What holds for a weight since its momentum was last zeroed."""

    choices: int  # of the mask, when it was
    places: tuple[Tensor, ...]  # indices of some pruned entries


class Resting:
    """Tells of each released weight whether the last step of one optimizer has left it at zero where it is pruned.

    It did if weights, gradients and momentum were zero there. The first step after the release makes them so, and
    whatever writes to them later is noticed: by the count that PyTorch keeps of writes to the weight, by a look at
    some of the weights after each step, and where it escapes both, by a pass that is made now and then.

    The count alone would not do: ``.data``, a loaded or edited momentum and a hook that adds to gradients before the
    step all move pruned weights without a write that it counts, and the very next forward must see zeros. A pass after
    each step in place of all this would be simpler, but makes the step of a multilayer perceptron a fifth longer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._rests: dict[int, _Rest] = {}
        self._steps = 0

    def count_step(self) -> None:
        """Count a step of the optimizer, before :meth:`left_zeros` is asked about it."""
        self._steps += 1

    def forget(self) -> None:
        """Trust no momentum any more."""
        self._rests.clear()

    def left_zeros(self, mask: ResidentMask) -> bool:
        """Whether pruned weights are zero after the step; where it is not known, their momentum is zeroed.

        On the CPU alone, since to look at a weight on another device takes longer than a pass over it.
        """
        is_on_cpu = mask.parameter.device.type == "cpu"
        if not mask.is_released or not is_on_cpu or type(self._optimizer) not in _LEAVE_ZEROS:
            self._rests.pop(id(mask), None)
            return False
        weight, rest = local_part(mask.parameter), self._rests.get(id(mask))
        if rest is None or rest.choices != mask.choices:
            rest = self._rests[id(mask)] = _Rest(mask.choices, _pruned_places(mask.mask, tuple(weight.shape)))
        elif self._steps % _LOOK_AFTER and not mask.was_written and not bool(weight[rest.places].any()):
            return True
        for name, value in self._optimizer.state.get(mask.parameter, {}).items():
            if name in _MOMENTA and value is not None:
                mask.apply_to(value)
        return False


def _pruned_places(mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Indices of some pruned entries from all over a mask that broadcasts over ``shape``; none if few are pruned."""
    numel = prod(shape)
    sample = torch.arange(min(numel, _SAMPLE), device=mask.device) * GOLDEN % numel
    places = torch.unravel_index(sample, shape)
    pruned = (mask.expand(shape)[places] == 0).nonzero().view(-1)
    pruned = pruned[:: max(1, len(pruned) // _LOOKS)]
    return tuple(place[pruned] for place in places)
