"""A weight that a hook makes, and torch.ao.quantization: refused with advice instead of a TypeError of torch.

Torch's quantization builds another module around the weight, and a weight that a hook makes is no Parameter. It first
looks for a configuration of the module's own, in the attribute ``qconfig``: there it meets what refuses.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_prune.errors import LifecycleError

__all__ = ["allow_quantization", "refuse_quantization"]


class Refusal:
    """Stands where torch looks for the configuration of a module's quantization, and refuses whatever it asks of it.

    It holds no module, so a module that carries it can be copied and saved.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copying and saving
            raise AttributeError(name)
        raise LifecycleError(
            'A module whose weight is masked by a hook (masking="hook") cannot be quantized, or prepared for it: the '
            'weight that a hook makes is no Parameter. Write masking="resident", call finalize() first, or prepare the '
            "network for quantization before it is pruned."
        )


def refuse_quantization(module: nn.Module) -> None:
    """Let preparations for quantization raise at this module; one that is prepared already stays as it is."""
    if not hasattr(module, "qconfig"):
        module.__dict__["qconfig"] = Refusal()


def allow_quantization(module: nn.Module) -> None:
    """The inverse of :func:`refuse_quantization`."""
    if isinstance(module.__dict__.get("qconfig"), Refusal):
        del module.__dict__["qconfig"]
