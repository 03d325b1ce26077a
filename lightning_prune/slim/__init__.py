"""Cut out the channels that training made dead, with proof: a network that is really smaller and faster.

Most programs only name the settings; what looks into a network needs ``torch.export``, and is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
