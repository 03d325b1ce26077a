"""How a mask acts on a module: in one of two ways, by one protocol (:class:`~lightning_prune.masking.held.HeldMask`).

* :class:`~lightning_prune.masking.hook.HookMask`: the module keeps ``weight_orig`` (trained) and ``weight_mask``; a
  forward pre-hook makes ``weight``.
* :class:`~lightning_prune.masking.ResidentMask`: ``weight`` stays the Parameter and always is the pruned weight.
  What was pruned away lies in a stash beside it, and is put back only while an optimizer steps
  (:class:`~lightning_prune.masking.optimizers.OptimizerLink`). A weight behind a weight norm has two of them
  (:class:`~lightning_prune.masking.normed.NormedMask`).

Both train bit-equal networks. These are the only files that touch the inside of modules and optimizers.
"""

from __future__ import annotations

from typing import Literal

from lightning_prune.masking.held import HeldMask
from lightning_prune.masking.hook import HookMask
from lightning_prune.masking.normed import NormedMask
from lightning_prune.masking.resident import ResidentMask
from lightning_prune.plan import PrunedParameter

__all__ = ["Masking", "attach_mask"]

Masking = Literal["hook", "resident"]


def attach_mask(one: PrunedParameter, masking: Masking) -> HeldMask:
    """Put a mask of ones on a parameter.

    Raises:
        ConfigError: The module reads this parameter in a way that a forward hook cannot see.
    """
    if masking == "hook":
        return HookMask(one)
    return ResidentMask(one) if one.gain is None else NormedMask(one, one.gain)
