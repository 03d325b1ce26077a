"""Cut slots out of parameters and buffers, and let the layers' own numbers follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_prune.basics import is_a
from lightning_prune.slim.choosing import Choice
from lightning_prune.slim.flow import Flow, Reader
from lightning_prune.slim.names import standing_names, states_of

__all__ = ["Cut", "apply_cut", "cut_of", "first_of"]

_Conv = nn.modules.conv._ConvNd
_ConvTranspose = nn.modules.conv._ConvTransposeNd


@dataclass(frozen=True)
class Cut:
    """What is cut out of a model.

    Attributes:
        kept: The indices that stay, int64, by tensor and axis; axes that stay whole are not named.
        shifts: What is added to biases before they are cut, float64; of a layer without a bias, its new bias.
        new_biases: The modules that get a bias, by its name.
        features: How many channels norms have then, by module.
    """

    kept: Mapping[str, Mapping[int, Tensor]]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    new_biases: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, int] = field(default_factory=dict)


@torch.no_grad()
def cut_of(flow: Flow, choice: Choice) -> Cut:
    """What to cut for a choice of classes."""
    kept: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (name, axis), ids in sorted(flow.slots.items()):
        stays = choice.stays(ids)
        if not bool(stays.all()):
            kept[name][axis] = stays.nonzero().flatten()
    shifts: dict[str, Tensor] = {}
    new_biases: dict[str, str] = {}
    for reader in flow.readers:
        shift = _shift(flow, reader, choice)
        if shift is None:
            continue
        if reader.bias is not None:
            shifts[reader.bias] = shift
        elif reader.module is not None:
            bias = f"{reader.module}.bias" if reader.module else "bias"
            shifts[bias], new_biases[bias] = shift, reader.module
            rows = choice.stays(flow.slots_of(reader.weight, reader.out_axis))
            if not bool(rows.all()):
                kept[bias][0] = rows.nonzero().flatten()
    features = {
        name: int(choice.stays(ids).sum()) for name, ids in flow.features.items() if not bool(choice.stays(ids).all())
    }
    return Cut(dict(kept), shifts, new_biases, features)


def _shift(flow: Flow, reader: Reader, choice: Choice) -> Tensor | None:
    """What the channels that go add to each output, float64 of shape ``(C_out,)``; None if they add nothing."""
    going = ~choice.stays(reader.ids) & ~reader.constants.isnan() & (reader.constants != 0)
    rows = choice.stays(flow.slots_of(reader.weight, reader.out_axis))
    weight = flow.tensors[reader.weight].detach().movedim((reader.out_axis, reader.axis), (0, 1))[:, going].double()
    summed = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    shift = summed @ reader.constants[going]
    return shift if bool((shift[rows] != 0).any()) else None


@torch.no_grad()
def apply_cut(model: nn.Module, cut: Cut, values: Mapping[str, Tensor] | None = None) -> None:
    """Cut a model in place.

    Args:
        model: The network, or another of its class and sizes.
        cut: What to cut.
        values: All parameters and buffers as they are to be, in the sizes after the cut. Default: those of the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for bias, name in cut.new_biases.items():
        weight = modules[name].weight
        shift = cut.shifts[bias].to(weight)
        for axis, indices in cut.kept.get(bias, {}).items():
            shift = shift.index_select(axis, indices.to(shift.device))
        modules[name].bias = nn.Parameter(shift, requires_grad=weight.requires_grad)
    tensors = states_of(model)
    changed = {name: tensor for name, tensor in (values or {}).items() if name in tensors}
    for name in {*cut.kept, *cut.shifts} - {*cut.new_biases, *changed}:
        tensor = tensors[name].detach()
        if name in cut.shifts:
            tensor = (tensor.double() + cut.shifts[name].to(tensor.device)).to(tensor.dtype)
        for axis, indices in cut.kept.get(name, {}).items():
            tensor = tensor.index_select(axis, indices.to(tensor.device))
        changed[name] = tensor
    _replace_states(model, changed)
    for name, count in cut.features.items():
        if hasattr(modules[name], "num_features"):
            modules[name].num_features = count


def first_of(model: nn.Module, name: str) -> str:
    """The name that stands for a parameter or buffer."""
    return standing_names(model)[name]


def _replace_states(model: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Put other tensors in place of parameters and buffers, under all of their names, and let layers' sizes follow.

    Args:
        model: The network.
        changed: New values, by the names that stand.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[str, Tensor] = {}
    touched: dict[str, tuple[int, ...]] = {}
    for name, first in standing_names(model).items():
        if first not in changed:
            continue
        owner, _, own = name.rpartition(".")
        module = modules[owner]
        old = module._parameters.get(own) if own in module._parameters else module._buffers[own]
        if old is None:
            continue
        if own == "weight":
            touched.setdefault(owner, tuple(old.shape))
        if first not in made:
            fresh = changed[first].contiguous(memory_format=_format(old, changed[first]))
            made[first] = nn.Parameter(fresh, requires_grad=old.requires_grad) if own in module._parameters else fresh
        if own in module._parameters:
            module._parameters[own] = made[first]
        else:
            module._buffers[own] = made[first]
    sized: set[int] = set()
    for owner, shape in touched.items():
        if id(modules[owner]) not in sized:
            sized.add(id(modules[owner]))
            _follow(modules[owner], shape)


def _format(old: Tensor, new: Tensor) -> torch.memory_format:
    for dim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.dim() == dim and old.is_contiguous(memory_format=layout) and not old.is_contiguous():
            return layout
    return torch.contiguous_format


def _follow(module: nn.Module, before: tuple[int, ...]) -> None:
    """Let the numbers of a layer say what its weight is now.

    Args:
        module: The layer.
        before: The shape of its weight before it was cut.
    """
    first, second = (*module.get_parameter("weight").shape, 1)[:2]
    if isinstance(module, _Conv):
        if module.groups > 1:  # whole groups went, and with them rows of the weight
            module.groups = module.groups * first // before[0]
        transposed = isinstance(module, _ConvTranspose)
        inputs, outputs = (first, second * module.groups) if transposed else (second * module.groups, first)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = first, second
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.embedding_dim = second
    elif isinstance(module, nn.PReLU):
        module.num_parameters = first
    elif is_a(module, "Conv1D") and hasattr(module, "nf"):  # of transformers: a Linear whose weight is transposed
        module.nf = second
        if hasattr(module, "nx"):  # not in all its versions
            module.nx = first
