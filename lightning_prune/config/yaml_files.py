"""Configurations as YAML: read so that what YAML 1.1 would misread reaches the checks as it was written."""

from __future__ import annotations

import os
import re
from typing import IO, Any

import yaml

from lightning_prune.basics import load_yaml
from lightning_prune.errors import ConfigError

__all__ = ["read_yaml"]


class _Loader(yaml.SafeLoader):
    """Leaves texts of what YAML 1.1 takes for octal numbers (``0100``) and numbers in base 60 (``2:4``)."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        """A decimal number, or the text of one in another base that does not say so, for the check that follows."""
        text = str(self.construct_scalar(node))
        is_meant = ":" not in text and not re.match(r"[-+]?0[0-9_]", text)
        return self.construct_yaml_int(node) if is_meant else text


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_yaml(source: str | os.PathLike[str] | IO[str]) -> Any:
    """Read YAML from a path, a text or an open file.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    values = load_yaml(source, loader=_Loader)
    if values is None:
        raise ConfigError("The YAML configuration is empty. Write {} to prune every supported module by half.")
    return values
