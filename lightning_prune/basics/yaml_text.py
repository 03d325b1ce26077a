"""Configurations as YAML text: read and built within bounds, whatever the text is."""

from __future__ import annotations

import os
import re
from typing import IO, Any

import yaml

from lightning_prune.basics.paths import home
from lightning_prune.errors import ConfigError, one_line, shown

__all__ = ["load_yaml"]

_MOST_BYTES = 2**20
_MOST_VALUES = 10**6  # with every alias written out
_MOST_LEVELS = 100


class _Loader(yaml.SafeLoader):
    """Leaves texts of what YAML 1.1 takes for octal numbers (``0100``) and numbers in base 60 (``2:4``)."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        """A decimal number, or the text of one in another base that does not say so, for the check that follows."""
        text = str(self.construct_scalar(node))
        is_meant = ":" not in text and not re.match(r"[-+]?0[0-9_]", text)
        return self.construct_yaml_int(node) if is_meant else text


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def load_yaml(source: str | os.PathLike[str] | IO[Any]) -> Any:
    """Build plain values from YAML; no tag in it runs code.

    Args:
        source: A path, a text, or an open file.

    Raises:
        ConfigError: The file cannot be read or is none of text, is longer than a configuration can be, or is no valid
            YAML; or its aliases stand for more than a million values.
    """
    text = _text(source)
    if len(text) > _MOST_BYTES:
        raise ConfigError(
            f"The configuration must be a text of at most {_MOST_BYTES:,} bytes; this is longer. Is it the right file?"
        )
    reader = None
    try:
        reader = _Loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return reader.construct_document(node)
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"The configuration must have at most {_MOST_LEVELS} levels, but has more.") from error
    except Exception as error:  # a tag on a value that does not fit it raises whatever the value's type raises
        raise ConfigError(f"The configuration is not valid YAML: {_said(error)}") from error
    finally:
        if reader is not None:
            reader.dispose()


def _text(source: str | os.PathLike[str] | IO[Any]) -> str | bytes:
    if not isinstance(source, (str, os.PathLike)):
        return source.read(_MOST_BYTES + 1)  # type: ignore[no-any-return]
    if isinstance(source, str) and any(sign in source for sign in ("\n", ": ", "{")):
        return source
    try:
        with home(source).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"The configuration file {shown(os.fspath(source))} cannot be read: {why}.") from error
    except ValueError as error:  # a NUL
        raise ConfigError(f"The configuration file {shown(os.fspath(source))} cannot be read: {error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) > _MOST_BYTES and error.end == len(data):
            return data  # cut within a letter; too long in any case
        raise ConfigError(
            f"The configuration file {shown(os.fspath(source))} must be YAML, a text in UTF-8, but byte "
            f"{error.start:,} is none of a text. Is it a checkpoint?"
        ) from error


def _check_size(root: yaml.Node) -> None:
    """Refuse a document whose aliases would make it large, deep, or endless."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            raise ConfigError("The configuration has an alias (*) to what it lies in itself. Write out what is meant.")
        if id(node) not in sizes:
            above.add(id(node))
            if len(above) > _MOST_LEVELS:
                raise ConfigError(f"The configuration must have at most {_MOST_LEVELS} levels, but has more.")
            sizes[id(node)] = 1 + sum(map(size, _parts(node)))
            above.discard(id(node))
        return sizes[id(node)]

    if size(root) > _MOST_VALUES:
        raise ConfigError(
            f"The configuration must have at most {_MOST_VALUES:,} values with every alias (*) written out, but this "
            "one has more. Alias less, or write long lists of steps as a range."
        )


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _said(error: Exception) -> str:
    """What is wrong, and where, on one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return one_line(error if isinstance(error, (yaml.YAMLError, ValueError)) else f"{type(error).__name__} {error}")
    problem = one_line(getattr(error, "problem", None) or error)
    return f"{problem}, at line {mark.line + 1}, column {mark.column + 1}."
