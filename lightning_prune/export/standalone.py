"""A model that stands on its own: a row of plain tensors in, a row of plain tensors out.

Exporters want a function of plain tensors. A trained model is more than that: it may take and give dicts, and change
its buffers. What is made here calls a copy of the model (:mod:`lightning_prune.export.copies`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.errors import ExportError
from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.copies import to_cpu
from lightning_prune.export.structures import call_arguments, fill, place, take_apart, unique

__all__ = ["Standalone", "submodule_inputs"]


class Standalone(nn.Module):
    """Calls a model with a flat row of tensors and gives a flat tuple of tensors.

    Args:
        model: A copy made by :func:`plain_copy`.
        example_inputs: A tensor, a sequence of positional arguments or a dict of keyword arguments; each may hold
            nested lists, tuples and dicts of tensors. What is not a tensor is passed on as it is.

    Attributes:
        input_names: Of each tensor that goes in, a name that every format accepts.
        output_names: Of each that comes out.
        given_names: The names of both as the model has them.
        changed_buffers: Names of the model's buffers that a call changes although it is in eval mode.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.args, self.kwargs, leaves = take_apart(model, example_inputs)
        if not leaves:
            raise ExportError(
                "example_inputs must hold at least one tensor. Pass the arguments of one call of the model."
            )
        self.input_names = unique(given := tuple(name for name, _ in leaves))
        self.inputs = tuple(to_cpu(tensor) for _, tensor in leaves)
        self.eval()
        with torch.no_grad(), kept_buffers(model) as changed:
            outputs: list[tuple[str, Tensor]] = []
            place(self.call(*self.inputs), "", outputs)
        self.changed_buffers = tuple(changed)
        if not outputs:
            raise ExportError("The model's forward must return at least one tensor, but gave none.")
        self.given_names = given, tuple(name or "output" for name, _ in outputs)
        self.output_names = unique(self.given_names[1], taken=self.input_names)
        self.outputs = tuple(tensor for _, tensor in outputs)

    def call(self, *tensors: Tensor) -> Any:
        """The model's own result."""
        row = iter(tensors)
        args = [fill(value, row) for value in self.args]
        kwargs = {name: fill(value, row) for name, value in self.kwargs.items()}
        try:
            return self.model(*args, **kwargs)
        except AttributeError as error:
            reread(error)
            raise

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the model's result, in order; booleans as 0 and 1, which every format can return."""
        outputs: list[tuple[str, Tensor]] = []
        place(self.call(*tensors), "", outputs)
        given = {id(tensor) for tensor in tensors}
        results = (tensor.to(torch.int32) if tensor.dtype == torch.bool else tensor for _, tensor in outputs)
        # A converter cannot always pass an input on as it is, and takes out whatever it sees to do nothing.
        return tuple(torch.maximum(tensor, tensor) if id(tensor) in given else tensor for tensor in results)


def reread(error: AttributeError) -> None:
    """Raise what a property of a module raised: an AttributeError in it leaves only that there is no such attribute."""
    found = inspect.getattr_static(type(error.obj), error.name or "", None)
    if isinstance(error.obj, nn.Module) and isinstance(found, property) and found.fget:
        found.fget(error.obj)


def submodule_inputs(model: nn.Module, name: str, example_inputs: Any) -> Any:
    """What a call of the model passes to one of its submodules: the arguments of the first call.

    Raises:
        ExportError: The submodule was not called.
    """
    seen: list[Any] = []

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and kwargs:
            bound = inspect.signature(model.get_submodule(name).forward).bind(*args, **kwargs)
            args, kwargs = (), dict(bound.arguments)
        seen.append(kwargs or args)

    handle = model.get_submodule(name).register_forward_pre_hook(remember, with_kwargs=True)
    leaves: list[tuple[str, Tensor]] = []
    structure = place(example_inputs, "", leaves)
    row = (to_cpu(tensor) for _, tensor in leaves)
    args, kwargs = call_arguments(fill(structure, row))
    try:
        with torch.no_grad(), kept_buffers(model):
            model(*args, **kwargs)
    finally:
        handle.remove()
    if not seen:
        raise ExportError(
            f"submodule={name!r} must be called by the model's forward for its inputs to be known, but is not. "
            "Pass its own example_inputs."
        )
    return seen[0]
