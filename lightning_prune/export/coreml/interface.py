"""What a package takes, gives and keeps, checked against the model before anything is converted."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_prune.errors import ConfigError, ExportError, did_you_mean
from lightning_prune.export.copies import plain_name
from lightning_prune.export.coreml.inputs import is_image
from lightning_prune.export.coreml.mil import Package
from lightning_prune.export.declared import same_number
from lightning_prune.export.standalone import Standalone

__all__ = [
    "check_inputs",
    "check_labels",
    "check_names",
    "check_outputs",
    "check_states",
    "refuse_states_that_are_not_zero",
    "refuse_states_that_were_not_asked_for",
    "state_notes",
    "state_types",
]

# Core ML's arrays have at least one dimension, and at most so many.
MOST_DIMS = 5
# What Standalone calls the model within itself, and so the converter its buffers.
PREFIX = "model."


def spelled(name: str) -> str:
    """A name as the converter spells it.

    Example:
        >>> spelled("class-probs"), spelled("2nd")
        ('class_probs', '_2nd')
    """
    plain = re.sub("[^a-zA-Z0-9_]", "_", name)
    return f"_{plain}" if plain[:1].isdigit() else plain


def check_names(argument: str, names: Sequence[str | None], taken: Sequence[str | None] = ()) -> None:
    """Raise if two inputs or outputs have the same name, or would have as the converter spells them.

    Args:
        argument: The argument that the names come from.
        names: One an input or output; None is left to the converter.
        taken: The names of the inputs, which outputs must not have.
    """
    counts = Counter(spelled(name) for name in names if name)
    again = [name for name in names if name and counts[spelled(name)] > 1]
    if again:
        alike = "" if len(set(again)) == 1 else f", which are both {spelled(again[0])!r} in a package"
        written = " and ".join(map(repr, again))
        raise ConfigError(f"export.{argument} must differ from each other, got {written}{alike}. Write another.")
    inputs = {spelled(name) for name in taken if name}
    for name in names:
        if name and spelled(name) in inputs:
            raise ConfigError(f"export.{argument} must not be names of inputs, got {name!r}. Write another.")


def check_inputs(names: Sequence[str], tensors: Sequence[Tensor], types: Sequence[Any] | None) -> None:
    """Raise if an input cannot be one of Core ML's, or the example is not of an allowed shape.

    Args:
        names: What the inputs are called.
        tensors: The example inputs.
        types: The user's ``coremltools`` type of each input.
    """
    for name, tensor in zip(names, tensors, strict=True):
        if not 1 <= tensor.ndim <= MOST_DIMS:
            write = f"Let forward take a tensor of shape (1,) as {name}" if tensor.ndim == 0 else "Flatten some of them"
            raise ConfigError(
                f"export.example_inputs must be tensors of 1 to {MOST_DIMS} dimensions, which is what Core ML takes, "
                f"but {name} has {tensor.ndim}. {write}."
            )
    if types is None:
        return
    same_number("inputs", types, tensors)
    for at, (item, tensor) in enumerate(zip(types, tensors, strict=True)):
        if is_image(item) and np.size(item.scale) != 1:
            raise ConfigError(f"export.inputs[{at}].scale must be one number, got {item.scale!r}.")
        if item.shape is not None and not allows(item.shape, tuple(tensor.shape)):
            raise ConfigError(
                f"export.inputs[{at}].shape must allow the shape of the example, {tuple(tensor.shape)}, got "
                f"{described(item.shape)}. Change either of them."
            )


def allows(shape: Any, example: tuple[int, ...]) -> bool:
    """Whether a ``coremltools`` shape allows the example's."""
    if hasattr(shape, "shapes"):
        return any(allows(fixed, example) for fixed in shape.shapes)
    sizes = getattr(shape, "shape", shape)
    return len(sizes) == len(example) and all(
        size.lower_bound <= given <= (size.upper_bound if size.upper_bound > 0 else math.inf)
        if hasattr(size, "upper_bound")
        else not isinstance(size, int | np.integer) or size == given
        for size, given in zip(sizes, example, strict=True)
    )


def described(shape: Any) -> str:
    """A ``coremltools`` shape in a few characters: ``(1, 3, 16..64)``."""
    if hasattr(shape, "shapes"):
        return " or ".join(described(fixed) for fixed in shape.shapes)
    sizes = [
        f"{size.lower_bound}..{size.upper_bound}" if hasattr(size, "upper_bound") else str(size)
        for size in getattr(shape, "shape", shape)
    ]
    return f"({', '.join(sizes)})"


def check_labels(labels: Sequence[str | int]) -> None:
    """Raise if class labels are of two kinds, or two of them are the same."""
    if isinstance(labels, str) or not labels or len({isinstance(label, str) for label in labels}) > 1:
        raise ConfigError(f"export.classifier_labels must be texts, or whole numbers, one a class, got {labels!r}.")
    again = [label for label, count in Counter(labels).items() if count > 1]
    if again:
        raise ConfigError(
            f"export.classifier_labels must differ from each other, got {', '.join(map(repr, again[:5]))} more than "
            "once."
        )


def check_outputs(
    standalone: Standalone, labels: Sequence[str | int] | None, names: Sequence[str] | None, taken: Sequence[str | None]
) -> None:
    """Raise if class labels or names do not fit what the model gives.

    Args:
        standalone: The model, which was called with the example.
        labels: The class labels, if the package answers with one.
        names: The names of the outputs, if the user gave them.
        taken: The names of the inputs.
    """
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in standalone.outputs)
    if labels is not None:
        if len(standalone.outputs) > 1:
            raise ConfigError(
                f"export.classifier_labels must belong to the only tensor that the model gives, but it gives "
                f"{len(standalone.outputs)} ({shapes}). Export the part that classifies with submodule=, or leave the "
                "labels out."
            )
        if len(labels) != standalone.outputs[0].numel():
            raise ConfigError(
                f"export.classifier_labels must be one for each of the {standalone.outputs[0].numel()} numbers that "
                f"the model gives for one example (shape {shapes}), got {len(labels)} labels."
            )
    if names is not None:
        same_number("output_names", names, standalone.outputs)
        check_names("output_names", names, taken)


def check_states(states: Sequence[Any], part: nn.Module) -> None:
    """Raise if a state is not a buffer of the model, of its shape, in float16.

    Args:
        states: The user's ``coremltools.StateType`` objects. Not changed.
        part: The model, or the part of it that is exported.
    """
    buffers = {plain_name(name): buffer for name, buffer in part.named_buffers()}
    names = [buffer_of(state, buffers) for state in states]
    check_names("convert_kwargs['states']", names)
    for state, name in zip(states, names, strict=True):
        if name is None:
            raise ConfigError(
                f"export.convert_kwargs['states'] must name buffers of {type(part).__name__}, got "
                f"{getattr(state, 'name', state)!r}.{did_you_mean(str(getattr(state, 'name', '')), buffers)} Its "
                f"buffers are: {', '.join(buffers) or 'none'}."
            )
        if not allows(state.shape, tuple(buffers[name].shape)):
            raise ConfigError(
                f"export.convert_kwargs['states'] must have the shapes of the buffers, but {name} has "
                f"{tuple(buffers[name].shape)}, got {described(state.shape)}."
            )
        if state.dtype is not None and "16" not in state.dtype.__name__:
            raise ConfigError(
                f"export.convert_kwargs['states'] must be float16, which is what Core ML keeps, got "
                f"{state.dtype.__name__} for {name}. Write dtype=numpy.float16."
            )


def buffer_of(state: Any, buffers: Mapping[str, Tensor]) -> str | None:
    """The buffer that a state is to hold; its name may begin with ``model.``, as the converter has it."""
    name = str(getattr(state, "name", ""))
    return next((each for each in (name, name.removeprefix(PREFIX)) if each in buffers), None)


def state_types(ct: Any, states: Sequence[Any], model: nn.Module) -> list[Any]:
    """States for one conversion, which writes new names into them: the user's are not changed."""
    buffers = dict(model.named_buffers())
    found = [(buffer_of(state, buffers), state) for state in states]
    return [
        ct.StateType(ct.TensorType(shape=tuple(buffers[name].shape), dtype=np.float16), name=PREFIX + name)
        for name, _ in found
        if name is not None
    ]


def refuse_states_that_are_not_zero(states: Sequence[Any], model: nn.Module) -> None:
    """Raise if a buffer that becomes a state holds anything but zeros, with which Core ML begins every state."""
    buffers = dict(model.named_buffers())
    names = [buffer_of(state, buffers) for state in states]
    if held := [name for name in names if name is not None and bool(buffers[name].count_nonzero())]:
        raise ExportError(
            f"Core ML begins every state with zeros, but {', '.join(held)} of the model holds other values. Fill the "
            "buffer with zeros before the export, and in the app write its values into the state before the first call."
        )


def refuse_states_that_were_not_asked_for(standalone: Standalone) -> None:
    """Raise where the converter would make states of buffers by itself."""
    if names := standalone.changed_buffers:
        raise ExportError(
            f"forward changes {', '.join(names)} in eval mode. From iOS18 on the converter makes a state of what "
            "torch.export shows it to change, and no state was asked for. Ask for it with convert_kwargs="
            f'{{"states": [coremltools.StateType(coremltools.TensorType(shape=...), name={names[0]!r}), ...]}}, or '
            'write frontend="trace" for a package that computes with what the buffer holds now.'
        )


def state_notes(standalone: Standalone, package: Package) -> list[str]:
    """What must be said of a model that changes while it is used: what a package keeps, and what it does not."""
    notes = []
    if package.states:
        notes.append(
            f"the package keeps {', '.join(package.states)} from one call to the next, from zeros on: give each call "
            "the state that make_state() made"
        )
    first, *others = [name for name in standalone.changed_buffers if spelled(PREFIX + name) not in package.states] or [
        ""
    ]
    if first:
        more = f" and {len(others)} more" if others else ""
        what = "no state of it" if package.states else "no state"
        notes.append(
            f"forward changes {first}{more} in eval mode: the package has {what}, and computes with what it holds now"
        )
    return notes
