"""A copy of a model that stands on its own: on the CPU, in float32, in eval mode, tensors in and tensors out.

Exporters want a function of plain tensors. A trained model is more than that: it may sit on a GPU in bfloat16, be
wrapped by ``torch.compile``, call ``self.log`` in ``forward``, keep a graph in an attribute, take and give dicts. The
copy made here is free of all that and shares no memory with the model it was made from, which is not changed.
"""

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import TypeIs

from lightning_prune.basics import is_a
from lightning_prune.errors import ExportError
from lightning_prune.plan import uncompiled_name

__all__ = [
    "Standalone",
    "call_arguments",
    "kept_buffers",
    "plain_copy",
    "plain_name",
    "submodule_inputs",
    "take_apart",
    "unique",
]


def plain_name(name: str) -> str:
    """A parameter's name as :func:`plain_copy` has it: without compile wrappers and parametrizations.

    Example:
        >>> plain_name("net._orig_mod.conv.parametrizations.weight.original1")
        'net.conv.weight'
    """
    parts = uncompiled_name(name).split(".")
    if "parametrizations" in parts:
        at = parts.index("parametrizations")
        parts = [*parts[:at], parts[at + 1]]
    return ".".join(parts)


def plain_copy(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Copy a model to the CPU in float32 and eval mode, without compile wrappers, reparametrizations and trainer.

    Parameters tied to each other stay tied. Nothing of the model is changed, and no copy is made on its device.

    Returns:
        The copy, and new names of parameters by old ones where undoing a weight norm in the old style renamed them.

    Raises:
        ExportError: Pruning was not finalized, or an attribute of the model cannot be copied.
    """
    refuse_unfinished(model)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(to_cpu(parameter), requires_grad=parameter.is_floating_point())
    for buffer in model.buffers():
        memo[id(buffer)] = to_cpu(buffer)
    for module in model.modules():
        if is_a(module, "LightningModule"):  # what trains it stays behind
            memo |= {id(vars(module).get(name)): None for name in ("_trainer", "_fabric")}
        # A tensor kept with its graph (a loss or an attention map, kept for logging) cannot be deep-copied.
        for tensor in tensors_in(list(vars(module).values())):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = to_cpu(tensor)
    try:
        plain = copy.deepcopy(model, memo)
    except Exception as error:
        raise ExportError(
            f"The model must be copied before it is exported, but copy.deepcopy failed: {error}. "
            "Give its class a __deepcopy__, or keep what cannot be copied outside of the module."
        ) from error
    plain = unwrap(plain).eval()  # before parametrizations are computed: some move in training mode
    renamed: dict[str, str] = {}
    for name, module in plain.named_modules():
        # What compile() left is bound to the module that was copied: a call would run that one, as it stands.
        module.__dict__.pop("_compiled_call_impl", None)
        quieten(module)
        renamed |= undo_reparametrizations(name, module)
    for module in model.modules():
        keep_progress(module, memo.get(id(module)))
    return plain, renamed


def refuse_unfinished(model: nn.Module) -> None:
    """Raise if a parameter is still held apart from its mask."""
    for name, _ in model.named_parameters():
        parent, _, own = name.rpartition(".")
        if own.endswith("_orig") and hasattr(model.get_submodule(parent), own.removesuffix("_orig") + "_mask"):
            raise ExportError(
                f"The model must be finalized before it is exported, but {name} is still held apart from its mask. "
                "Call finalize() on the pruner first, or torch.nn.utils.prune.remove(module, name)."
            )


def undo_reparametrizations(name: str, module: nn.Module) -> dict[str, str]:
    """Make plain parameters of weights that are computed from others, in both of torch's styles."""
    if parametrize.is_parametrized(module):
        # Not by remove_parametrizations: it takes the property off the class, which a copy shares with its original.
        values = {key: getattr(module, key).detach() for key in cast(nn.ModuleDict, module.parametrizations)}
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
        for key, value in values.items():
            module.register_parameter(key, nn.Parameter(value))
    renamed = {}
    for at, hook in list(module._forward_pre_hooks.items()):
        if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
            plain = str(hook.name)  # type: ignore[attr-defined]
            hook.remove(module)  # type: ignore[attr-defined]
            del module._forward_pre_hooks[at]
            for suffix in ("_v", "_orig"):
                renamed[f"{name}.{plain}{suffix}".lstrip(".")] = f"{name}.{plain}".lstrip(".")
    return renamed


def to_cpu(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU; floating point numbers become float32."""
    if hasattr(tensor, "full_tensor"):
        raise ExportError(
            "The model must be whole on one process to be exported, but its parameters are sharded (DTensor). Load a "
            "checkpoint of it into a model that is not."
        )
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where ``torch.compile`` wrapped it, and so for all its children."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    for name, child in module.named_children():
        if (plain := unwrap(child)) is not child:
            setattr(module, name, plain)
    return module


def quieten(module: nn.Module) -> None:
    """Turn the logging of a copied LightningModule into no-ops: its trainer stayed behind."""
    if is_a(module, "LightningModule"):
        for method in ("log", "log_dict", "print"):
            object.__setattr__(module, method, ignore)


def keep_progress(module: nn.Module, plain: nn.Module | None) -> None:
    """Let the copy of a LightningModule say how far training is; without a trainer it would compute with 0."""
    if plain is None or not is_a(module, "LightningModule"):
        return
    progress = Progress()
    for name in ("current_epoch", "global_step"):
        with contextlib.suppress(Exception):  # what stands in for a trainer need not know
            setattr(progress, name, int(getattr(module, name)))
    if progress.current_epoch or progress.global_step:
        plain.__dict__["_trainer"] = progress


class NoTrainerError(AttributeError, RuntimeError):
    """What a trainer would know was asked of the copy of a module, which has none.

    An AttributeError, so that ``hasattr`` and ``getattr`` with a default work; and the RuntimeError that a
    LightningModule without a trainer raises, which ``forward`` may expect.
    """


class Progress:
    """Stands in for the trainer of a copy: knows how far training is, and refuses all else as if it were not there."""

    current_epoch = global_step = global_rank = local_rank = 0
    logger = None
    loggers = ()

    def __getattr__(self, name: str) -> Any:
        raise NoTrainerError(f"The copy of a LightningModule that is exported has no trainer, and no trainer.{name}.")


def ignore(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: a tensor, a sequence of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


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


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[list[str]]:
    """Put buffers back to what they were, whatever calls of the model do to them.

    Yields:
        A list that is empty within, and afterwards holds the names of those that had changed.
    """
    before = [(name, module, dict(module._buffers)) for name, module in model.named_modules()]
    values = [{own: held.clone() if is_plain(held) else held for own, held in row.items()} for _, _, row in before]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for (name, module, row), kept in zip(before, values, strict=True):
            for own, held in row.items():
                if not same(module._buffers.get(own), kept[own]):
                    changed.append(f"{name}.{own}".lstrip("."))
                    if is_plain(held):
                        held.data = cast(Tensor, kept[own])
            module._buffers.clear()
            module._buffers.update(row)


def is_plain(tensor: Tensor | None) -> TypeIs[Tensor]:
    """Whether it is a tensor whose values can be copied and compared: not sparse, quantized or nested."""
    return tensor is not None and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors hold the same values, NaN in the same places."""
    if one is other or not (is_plain(one) and is_plain(other)):
        return one is other
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


class Standalone(nn.Module):
    """Calls a model with a flat row of tensors and gives a flat tuple of tensors.

    Args:
        model: A copy made by :func:`plain_copy`.
        example_inputs: A tensor, a sequence of positional arguments or a dict of keyword arguments; each may hold
            nested lists, tuples and dicts of tensors. What is not a tensor is passed on as it is.

    Attributes:
        input_names: Of each tensor that goes in, a name that Core ML accepts.
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
        """The tensors of the model's result, in order; booleans as 0 and 1, which Core ML can return."""
        outputs: list[tuple[str, Tensor]] = []
        place(self.call(*tensors), "", outputs)
        given = {id(tensor) for tensor in tensors}
        results = (tensor.to(torch.int32) if tensor.dtype == torch.bool else tensor for _, tensor in outputs)
        # The converter cannot pass an input on as it is, and takes out whatever it sees to do nothing.
        return tuple(torch.maximum(tensor, tensor) if id(tensor) in given else tensor for tensor in results)


def reread(error: AttributeError) -> None:
    """Raise what a property of a module raised: an AttributeError in it leaves only that there is no such attribute."""
    found = inspect.getattr_static(type(error.obj), error.name or "", None)
    if isinstance(error.obj, nn.Module) and isinstance(found, property) and found.fget:
        found.fget(error.obj)


class Slot:
    """Where a tensor was taken out of a structure; there is but one, in copies of a structure too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slot":
        return self


SLOT = Slot()


def take_apart(
    model: nn.Module, example_inputs: Any
) -> tuple[tuple[Any, ...], dict[str, Any], list[tuple[str, Tensor]]]:
    """The arguments of a call with a slot for each tensor, and the tensors, named as ``forward`` names them."""
    while isinstance(inner := model._modules.get("_orig_mod"), nn.Module):  # a wrapper of torch.compile
        model = inner
    args, kwargs = call_arguments(example_inputs)
    leaves: list[tuple[str, Tensor]] = []
    names = list(inspect.signature(model.forward).parameters)
    names += [f"input_{index}" for index in range(len(names), len(args))]
    row = tuple(place(value, name, leaves) for value, name in zip(args, names, strict=False))
    return row, {name: place(value, name, leaves) for name, value in kwargs.items()}, leaves


def place(value: Any, name: str, leaves: list[tuple[str, Tensor]]) -> Any:
    """The structure with a slot for each tensor; the tensors go to ``leaves``, named by where they were."""
    if isinstance(value, Tensor):
        leaves.append((name, value))
        return SLOT

    def below(key: Any) -> str:
        return f"{name}_{key}" if name else str(key) if isinstance(key, str) else f"output_{key}"

    if isinstance(value, Mapping):
        return {key: place(item, below(key), leaves) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(place(item, below(key), leaves) for key, item in zip(value._fields, value, strict=True)))
    if isinstance(value, list | tuple):
        items = [place(item, name if len(value) == 1 else below(index), leaves) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            place(getattr(value, item.name), below(item.name), leaves)
    return value


def fill(value: Any, row: Iterator[Tensor]) -> Any:
    """The inverse of :func:`place`: each slot takes the next tensor."""
    if value is SLOT:
        return next(row)
    if isinstance(value, Mapping):
        return {key: fill(item, row) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(fill(item, row) for item in value))
    if isinstance(value, list | tuple):
        items = [fill(item, row) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def unique(names: Iterable[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that Core ML accepts, each once: letters, digits and ``_``, not beginning with a digit."""
    result: list[str] = []
    for name in names:
        plain = "".join(char if char.isalnum() and char.isascii() else "_" for char in name)
        plain = f"_{plain}" if plain[:1].isdigit() else plain
        candidate = plain = f"{plain}_out" if plain in taken else plain
        number = 2
        while candidate in result:
            candidate, number = f"{plain}_{number}", number + 1
        result.append(candidate)
    return tuple(result)
