"""Models from text: ``package.module:Class``, its arguments, and the checkpoint that holds its weights."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightning_prune.analysis import read_checkpoint, read_tensors
from lightning_prune.basics import NotLoaded, uncompiled_name
from lightning_prune.errors import CheckpointError, ConfigError, did_you_mean, first_names, one_line, shown

__all__ = ["load_model"]


def load_model(
    spec: str, *, arguments: str | None = None, checkpoint: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Build a model from the text that names it.

    The module is imported, so its code runs; the checkpoint is data only (``weights_only=True``).

    Args:
        spec: ``"package.module:Class"``, or a function or a model in place of the class. Modules are also looked for in
            the current folder.
        arguments: JSON: an object of keyword arguments, or a list of positional ones. Default: the hyperparameters in
            the checkpoint that the class takes, if there are any.
        checkpoint: A Lightning checkpoint, state dict or ``.safetensors`` with the weights, which must fit strictly.

    Raises:
        ConfigError: There is no such module or class, or it cannot be built from the arguments.
        CheckpointError: The checkpoint cannot be read, or does not fit.

    Example:
        >>> load_model("torch.nn:Linear", arguments='{"in_features": 3, "out_features": 2}')
        Linear(in_features=3, out_features=2, bias=True)
    """
    factory = _find(spec)
    if not isinstance(factory, nn.Module):
        factory = _build(spec, factory, arguments, checkpoint)
    elif arguments is not None:
        raise ConfigError(f"--args has no use: {spec} is a model already, not a class.")
    if checkpoint is not None:
        _load_weights(factory, Path(checkpoint))
    return factory


def _find(spec: str) -> Any:
    """What ``module:name`` names."""
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"The model must be written as package.module:Class, got {shown(spec)}.")
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - entries of sys.path are texts
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything when it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"The module {shown(module_name)} of {shown(spec)} cannot be imported: {kind}{one_line(error)}."
        ) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in dir(found) if not key.startswith("_")]
            raise ConfigError(f"{shown(module_name)} has no {shown(name)}.{did_you_mean(part, known)}")
        found = getattr(found, part)
    return found


def _build(spec: str, factory: Any, arguments: str | None, checkpoint: str | os.PathLike[str] | None) -> nn.Module:
    args, kwargs = _parse_arguments(arguments)
    if arguments is None and checkpoint is not None:
        kwargs = _hyperparameters(factory, checkpoint)
    try:
        model = factory(*args, **kwargs)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"{spec} cannot be built: {type(error).__name__}: {one_line(error)}. Give its arguments by --args as JSON, "
            "for example --args '{\"hidden\": 64}'."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec} must give a torch.nn.Module, got {type(model).__name__}.")
    return model


def _parse_arguments(text: str | None) -> tuple[list[Any], dict[str, Any]]:
    if text is None:
        return [], {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--args must be JSON, got {shown(text)}: {one_line(error)}.") from error
    if isinstance(values, dict):
        return [], values
    if isinstance(values, list):
        return values, {}
    raise ConfigError(
        f"--args must be a JSON object of keyword arguments or a list of positional ones, got {shown(text)}."
    )


def _hyperparameters(factory: Any, checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Hyperparameters that Lightning saved beside the weights, as far as the class takes them."""
    if Path(checkpoint).suffix == ".safetensors":
        return {}
    content = read_checkpoint(checkpoint)
    saved = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    if not isinstance(saved, Mapping):
        _need_plain("hyper_parameters", saved)
        return {}
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    taken = {str(name): value for name, value in saved.items() if takes_all or name in names}
    for name, value in taken.items():
        _need_plain(f"the hyperparameter {shown(name)}", value)
    return taken


def _need_plain(name: str, value: Any) -> None:
    """Refuse a hyperparameter of a class that is not imported for a file."""
    due, seen = [value], set()
    while due:
        value = due.pop()
        if isinstance(value, NotLoaded):
            raise CheckpointError(
                f"In the checkpoint {name} holds {shown(value)}, for no code of a file is run here. Give the arguments "
                "of the model by --args as JSON."
            )
        if isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            due += [*value, *value.values()] if isinstance(value, Mapping) else value


def _load_weights(model: nn.Module, path: Path) -> None:
    tensors = {uncompiled_name(name): tensor for name, tensor in read_tensors(path)[1].items()}
    own = model.state_dict()
    missing, surplus = [name for name in own if name not in tensors], [name for name in tensors if name not in own]
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    problems = [
        f"{text} {first_names(names, most=4)}"
        for text, names in (
            ("it lacks", missing),
            ("it has, but the model has not,", surplus),
            ("other shapes have", other),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(tensors)
