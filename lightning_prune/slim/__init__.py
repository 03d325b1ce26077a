"""Cut out the channels that training made dead, with proof: a network that is really smaller and faster.

Most programs only name the settings; what looks into a network needs ``torch.export``, and is loaded when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_prune.basics import lazy_names
from lightning_prune.slim.settings import Slim

if TYPE_CHECKING:
    from lightning_prune.slim.coupling import CoupledMember, CoupledSet, Coupling, find_coupling
    from lightning_prune.slim.recipe import load_slim
    from lightning_prune.slim.result import SlimLayer, SlimResult
    from lightning_prune.slim.slimming import slim

__all__ = [
    "CoupledMember",
    "CoupledSet",
    "Coupling",
    "Slim",
    "SlimLayer",
    "SlimResult",
    "find_coupling",
    "load_slim",
    "slim",
]

_LAZY = {
    **dict.fromkeys(("CoupledMember", "CoupledSet", "Coupling", "find_coupling"), "lightning_prune.slim.coupling"),
    "load_slim": "lightning_prune.slim.recipe",
    **dict.fromkeys(("SlimLayer", "SlimResult"), "lightning_prune.slim.result"),
    "slim": "lightning_prune.slim.slimming",
}

__getattr__ = lazy_names(globals(), _LAZY)
