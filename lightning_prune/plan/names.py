"""Names of modules and parameters, as users and reports know them."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.utils import parametrize

__all__ = [
    "SUPPORTED_MODULES",
    "SUPPORTED_NAMES",
    "in_words",
    "inside",
    "is_inner",
    "is_parametrized",
    "type_key",
]

SUPPORTED_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What ``global_config`` and regular expressions prune; other modules are pruned where their type or name is given."""

SUPPORTED_NAMES = {cls.__name__ for cls in SUPPORTED_MODULES}


def inside(name: str) -> str:
    """A pattern that reaches the modules inside a module."""
    return f"{re.escape(name)}\\..*" if name else ".*"


def in_words(name: str, kind: str) -> str:
    """What an error calls a module."""
    return f'"{name}" ({kind})' if name else f"the model ({kind})"


def type_key(module: nn.Module) -> str:
    """The name of a class, with its package where a supported module has the same."""
    cls = type(module)
    is_clear = cls.__name__ not in SUPPORTED_NAMES or isinstance(module, SUPPORTED_MODULES)
    return cls.__name__ if is_clear else f"{cls.__module__}.{cls.__qualname__}"


def is_parametrized(module: nn.Module) -> bool:
    """Whether a module computes a weight from other parameters, in the newer style of torch."""
    return bool(parametrize.is_parametrized(module))


def is_inner(name: str) -> bool:
    """Whether a name is that of a module inside a parametrization."""
    return "parametrizations" in name.split(".")
