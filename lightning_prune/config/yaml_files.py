"""Configurations as YAML: read so that what YAML 1.1 would misread reaches the checks as it was written."""

from __future__ import annotations

import os
from typing import IO, Any

from lightning_prune.errors import ConfigError

__all__ = ["read_yaml"]


def read_yaml(source: str | os.PathLike[str] | IO[str]) -> Any:
    """Read YAML from a path, a text or an open file.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    from lightning_prune.basics import load_yaml  # loads yaml, which most programs do not need

    values = load_yaml(source)
    if values is None:
        raise ConfigError("The YAML configuration is empty. Write {} to prune every supported module by half.")
    return values
