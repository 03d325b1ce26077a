"""A slim network as a file: its tensors, and which channels of the whole network they are.

A freshly made network of the same class and sizes becomes the slim one: no class is stored, and no code runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.basics import (
    check_claims,
    home,
    is_plain,
    load_tensors,
    put_in_place,
    read_safetensors,
    write_safetensors,
    writing_to,
)
from lightning_prune.errors import CheckpointError, SlimError, first_names, one_line
from lightning_prune.slim.cutting import Cut, apply_cut, first_of
from lightning_prune.slim.names import states_of

__all__ = ["Recipe", "load_slim", "save_recipe"]

FORMAT = "lightning_prune.slim"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """What was cut of which network.

    Attributes:
        shapes: The shape of every parameter and buffer of the whole network, by name.
        kept: The indices that stay, by tensor and axis.
        new_biases: Biases that were not there, and the module of each.
        features: How many channels norms have that have no tensors, by module.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, Tensor]]
    new_biases: Mapping[str, str]
    features: Mapping[str, int]

    @classmethod
    def of(cls, whole: nn.Module, cut: Cut) -> Recipe:
        """The recipe of a cut."""
        shapes = {name: tuple(tensor.shape) for name, tensor in states_of(whole).items()}
        return cls(shapes, cut.kept, cut.new_biases, cut.features)


def save_recipe(recipe: Recipe, slimmed: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a recipe and the tensors of the slim network.

    Args:
        recipe: What was cut.
        slimmed: The slim network.
        path: Where to.

    Raises:
        SlimError: Something else lies there, or it cannot be written.
    """
    target = home(path)
    if target.is_symlink() or target.exists():
        try:
            _read(target)
        except SlimError as error:
            raise SlimError(
                f"path must be free or hold a recipe, but {target} is something else. Choose another path."
            ) from error
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in states_of(slimmed).items()}
    text = json.dumps(
        {
            "version": VERSION,
            "shapes": {name: list(shape) for name, shape in recipe.shapes.items()},
            "kept": {name: sorted(axes) for name, axes in recipe.kept.items()},
            "new_biases": dict(recipe.new_biases),
            "features": dict(recipe.features),
        }
    )
    tensors = {f"state/{name}": tensor.clone() for name, tensor in state.items()}
    for name, axes in recipe.kept.items():
        tensors |= {f"kept/{axis}/{name}": indices.clone() for axis, indices in axes.items()}
    try:
        with writing_to(target) as place:
            if target.suffix == ".safetensors":
                write_safetensors(tensors, place, {"format": FORMAT, "recipe": text})
            else:
                torch.save({"format": FORMAT, "recipe": text, "tensors": tensors}, place)
            put_in_place(place, target)
    except ImportError as error:
        raise SlimError(str(error)) from error
    except (OSError, RuntimeError) as error:  # torch has errors of its own for a full disk
        raise SlimError(f"The recipe could not be written to {target}: {one_line(error)}.") from error
    return target


def load_slim(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Make a freshly built network slim, with the weights of a recipe.

    Args:
        model: Of the class and sizes of the whole network that was made slim. Its layers are cut in place, and its
            weights become those of the file, in their dtype.
        path: A file that :meth:`SlimResult.save` wrote.

    Returns:
        The model.

    Raises:
        SlimError: The file is no recipe, is damaged, or belongs to a network of other names or sizes. Nothing was
            changed.
    """
    file = home(path)
    recipe, state = _read(file)
    states = states_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in states.items()}
    if shapes != dict(recipe.shapes):
        raise SlimError(f"{file} must belong to {type(model).__name__}: {_unlike(shapes, recipe.shapes)}")
    _check_tensors(recipe, state, model, file)
    device = next(iter(states.values())).device if states else torch.device("cpu")
    kept = {name: axes for name, axes in recipe.kept.items() if name not in recipe.new_biases}
    apply_cut(model, Cut(kept, {}, {}, recipe.features), {name: tensor.to(device) for name, tensor in state.items()})
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in recipe.new_biases.items():
        trained = modules[module].get_parameter("weight").requires_grad
        modules[module].bias = nn.Parameter(state[name].to(device), requires_grad=trained)
    return model


def _unlike(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> str:
    """The first differences between two networks, in words."""
    if missing := sorted({*theirs} - {*ours}):
        return f"it has no {first_names(missing)}."
    if further := sorted({*ours} - {*theirs}):
        return f"the file has no {first_names(further)}."
    name = next(name for name in ours if ours[name] != tuple(theirs[name]))
    return (
        f"its {name} has shape {ours[name]}, that of the whole network had {tuple(theirs[name])}. Build the model with "
        "the sizes that it had before it was made slim."
    )


def _check_tensors(recipe: Recipe, state: Mapping[str, Tensor], model: nn.Module, file: Path) -> None:
    """Raise unless indices and tensors fit the shapes and the modules of the model."""
    wanted = {name: list(shape) for name, shape in recipe.shapes.items()}
    for name, axes in recipe.kept.items():
        if name in recipe.new_biases:
            continue
        for axis, indices in axes.items():
            size = wanted[name][axis] if name in wanted and 0 <= axis < len(wanted[name]) else 0
            ordered = indices.dtype is torch.int64 and indices.dim() == 1 and bool((indices.diff() > 0).all())
            if not ordered or not len(indices) or int(indices[0]) < 0 or int(indices[-1]) >= size:
                raise SlimError(f"{file} is damaged: the indices kept of {name} are not those of its axis {axis}.")
            wanted[name][axis] = len(indices)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, owner in recipe.new_biases.items():
        module = modules.get(owner)
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or module.bias is not None:
            raise SlimError(f"{file} must belong to {type(model).__name__}: its {owner!r} is no layer without a bias.")
        if name != (f"{owner}.bias" if owner else "bias"):
            raise SlimError(f"{file} is damaged: {name} is not the bias of {owner!r}.")
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        shape = wanted[first_of(model, f"{owner}.weight" if owner else "weight")]
        wanted[name] = [shape[1] * module.groups if transposed else shape[0]]
    if wanted.keys() != state.keys():
        raise SlimError(f"{file} is damaged: it does not have the tensors that it names.")
    ours = states_of(model)
    for name, shape in wanted.items():
        if list(state[name].shape) != shape:
            raise SlimError(
                f"{file} is damaged: {name} has shape {tuple(state[name].shape)} instead of {tuple(shape)}."
            )
        floats = ours[name].is_floating_point() if name in ours else True
        if state[name].is_floating_point() != floats or not (floats or state[name].dtype is ours[name].dtype):
            raise SlimError(f"{file} is damaged: {name} is of type {state[name].dtype}.")
    for name, count in recipe.features.items():
        _check_features(modules.get(name), name, count, wanted, file)


def _check_features(
    module: nn.Module | None, name: str, count: int, wanted: Mapping[str, list[int]], file: Path
) -> None:
    """Raise unless a norm can have so many channels."""
    if not isinstance(most := getattr(module, "num_features", None), int):
        raise SlimError(f"{file} must belong to another model: {name!r} is no norm of channels.")
    own = {wanted[f"{name}.{state}"][0] for state in ("weight", "running_mean") if f"{name}.{state}" in wanted}
    if not 0 < count <= most or own - {count}:
        raise SlimError(f"{file} is damaged: the norm {name!r} cannot have {count} channels.")


def _read(file: Path) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and its tensors, as data alone."""
    metadata: Mapping[str, Any]
    try:
        if file.suffix == ".safetensors":
            metadata, tensors = read_safetensors(file)
        else:
            content = load_tensors(file)
            metadata = content if isinstance(content, dict) else {}
            tensors = metadata.get("tensors", {})
            check_claims(tensors.values(), file)
        if metadata.get("format") != FORMAT:
            raise ValueError("it is no recipe of a slim network")
        return _parsed(json.loads(metadata["recipe"]), tensors)
    except ImportError as error:
        raise SlimError(str(error)) from error
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SlimError(f"{file} cannot be read as a recipe: {one_line(error) or type(error).__name__}.") from error


def _parsed(recipe: Any, tensors: Any) -> tuple[Recipe, dict[str, Tensor]]:
    if recipe["version"] != VERSION:
        raise ValueError(f"its version is {recipe['version']!r}, this library reads {VERSION}")
    if not all(isinstance(name, str) and is_plain(tensor) for name, tensor in tensors.items()):
        raise ValueError("it holds more than plain tensors")
    kept = {
        name: {int(axis): tensors[f"kept/{int(axis)}/{name}"] for axis in axes} for name, axes in recipe["kept"].items()
    }
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in recipe["shapes"].items()}
    biases = {str(name): str(module) for name, module in recipe["new_biases"].items()}
    features = {str(name): int(count) for name, count in recipe["features"].items()}
    state = {name.removeprefix("state/"): tensor for name, tensor in tensors.items() if name.startswith("state/")}
    return Recipe(shapes, kept, biases, features), state
