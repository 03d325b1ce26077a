"""Which values of a parameter meet the inputs of a model, and which meet only what it holds itself.

A layer whose input is a parameter or a buffer (learned queries, a table of positions) gives the same at every call, and
a converter stores what it gives instead of its weight. Whether a layer is of that kind is watched here, operation by
operation, in one call of the model: what depends on an input is marked, and the mark goes on to all that is made of it.
A weight that ``forward`` computes from another, to use it on the inputs, is no layer of that kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.standalone import Standalone

__all__ = ["FOLDED", "Meetings", "watch"]

# Of what a converter computes once and for all.
FOLDED = (
    "meets only parameters and buffers, no input: what is computed from that is folded into a constant, and the zeros "
    "are folded away"
)

aten = torch.ops.aten
# Operations that give the same values in another place.
MOVES = {
    *(aten.t, aten.transpose, aten.permute, aten.view, aten._unsafe_view, aten.reshape, aten.expand, aten.unsqueeze),
    *(aten.squeeze, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.clone, aten.detach),
    *(aten.alias, aten.repeat, aten.flip, aten.as_strided, aten.unsafe_split, aten.unsafe_chunk, aten.view_copy),
}
# Operations in which the weight of a layer meets what the layer is given.
LAYERS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addbmm, aten.mv, aten.addmv, aten.dot, aten.linear),
    *(aten.convolution, aten._convolution, aten.embedding, aten.index_select, aten.index, aten.gather, aten.lstm),
    *(aten.gru, aten.rnn_tanh, aten.rnn_relu, aten.mkldnn_rnn_layer, aten._embedding_bag, aten._trilinear),
}
# Layers whose parameters are matrices to multiply with, and no tables.
MATRICES = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention, nn.modules.conv._ConvNd)
# Operations that look at shapes only.
SHAPES = {
    aten.zeros_like,
    aten.ones_like,
    aten.empty_like,
    aten.full_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
}


class Meetings:
    """What the values of one parameter met; the tensors are bool, in the parameter's shape.

    Attributes:
        inputs: Values that met something which depends on the model's inputs.
        constants: Values that were the weight, or the input, of a layer in which nothing depends on the model's inputs.
        computed: Whether something that was computed from the parameter, but by no layer, met the model's inputs: a
            weight that is scaled before a layer takes it.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.inputs, self.constants = (torch.zeros(parameter.shape, dtype=torch.bool) for _ in range(2))
        self.computed = False

    @property
    def live(self) -> Tensor:
        """The rows that a call with other inputs needs: bool, ``(C_out,)``. The others make a constant, or nothing."""
        if self.computed or not self.constants.any():
            return torch.ones(len(self.inputs), dtype=torch.bool)
        return self.inputs.flatten(1).any(1)


def watch(standalone: Standalone, parameters: Mapping[str, Tensor]) -> dict[str, Meetings]:
    """Call the model with its example and watch some of its parameters, of rank 1 and more."""
    watcher = Watcher(standalone, parameters)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer hides what meets what
    try:
        with torch.no_grad(), kept_buffers(standalone), watcher:
            standalone(*standalone.inputs)
    finally:
        watcher.remove_hooks()
        torch.backends.mha.set_fastpath_enabled(fast)
    return watcher.meetings


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Marks what depends on inputs, and follows the values of parameters through views, copies and arithmetic."""

    def __init__(self, standalone: Standalone, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[Running] = []
        self.hooks = [
            hook
            for module in standalone.modules()
            for hook in (
                module.register_forward_pre_hook(self.enter, with_kwargs=True),
                module.register_forward_hook(self.leave, always_call=True),
            )
        ]
        # What is remembered of tensors keeps them alive, so that no other gets their place.
        self.dependent: dict[int, Any] = {}
        self.followed: dict[int, tuple[Tensor, Followed]] = {}
        self.all_depends = False
        for tensor in standalone.inputs:
            self.mark(tensor)
        for parameter in parameters.values():
            owners = [
                module
                for module in standalone.modules()
                if any(parameter is own for own in module._parameters.values())
            ]
            at = torch.arange(parameter.numel()).view(parameter.shape)
            self.followed[id(parameter)] = parameter, Followed(Meetings(parameter), at, tuple(owners))
        self.meetings = {name: self.followed[id(parameter)][1].meetings for name, parameter in parameters.items()}

    def remove_hooks(self) -> None:
        """Leave the modules as they were."""
        for hook in self.hooks:
            hook.remove()

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Remember which module runs, and whether what it is given depends on an input."""
        depends = self.all_depends or any(self.depends(tensor) for tensor in tensors_of((args, kwargs)))
        self.running.append(Running(module, depends))

    def leave(self, *_: Any) -> None:
        """The module that was entered last is done."""
        self.running.pop()

    def mark(self, tensor: Tensor) -> None:
        """Remember that a tensor, and whatever shares its memory, depends on an input."""
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            self.dependent[storage._cdata] = storage

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on an input; one that cannot be known does."""
        return tensor.layout is not torch.strided or tensor.untyped_storage()._cdata in self.dependent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and see what it does to what."""
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        result = func(*args, **kwargs)
        if func.overloadpacket in SHAPES and not self.all_depends:
            return result
        made = [*tensors_of(result), *tensors_of(changed(func, args))]
        depends = self.all_depends or any(self.depends(tensor) for tensor in given)
        for tensor in given:
            if id(tensor) in self.followed:
                known = self.followed[id(tensor)][1]
                after = known.after(func, tensor, args, kwargs, self.running[-1], depends=depends)
                self.followed |= {id(other): (other, each) for other, each in zip(made, after, strict=False)}
        if depends:
            for tensor in made:
                self.mark(tensor)
            # A number that Python may do anything with.
            self.all_depends |= torch.Tag.data_dependent_output in func.tags
        return result


@dataclass(frozen=True)
class Running:
    """A module whose forward runs, and whether what it was given depends on an input of the model."""

    module: nn.Module
    depends: bool

    def is_layer_of(self, owners: Sequence[nn.Module]) -> bool:
        """Whether it uses what these modules own as a layer does, and not to compute a weight from it.

        One of torch's own layers, or one that sees constants only, which holds the parameter; or the parameter is a
        table, that layers may be given too.
        """
        if self.depends and not type(self.module).__module__.startswith("torch.nn.modules."):
            return False
        held = list(self.module.modules())
        return any(owner in held for owner in owners) or not any(isinstance(owner, MATRICES) for owner in owners)


@dataclass(frozen=True)
class Followed:
    """What a tensor holds: values of a parameter, and their places there; without places, what is computed of it."""

    meetings: Meetings
    at: Tensor | None
    owners: tuple[nn.Module, ...]

    def after(
        self, func: Any, tensor: Tensor, args: Any, kwargs: Any, running: Running, *, depends: bool
    ) -> Iterable[Followed]:
        """Note what an operation does to the values; gives what is known of its results, in order."""
        kind, at, meetings = func.overloadpacket, self.at, self.meetings
        if at is not None and kind in MOVES:
            places = func(*[at if item is tensor else item for item in args], **kwargs)
            return [replace(self, at=place) for place in tensors_of(places)]
        if depends:
            if at is None:
                meetings.computed = True
            else:
                meetings.inputs.view(-1)[at.reshape(-1)] = True
            return ()
        if kind in LAYERS and running.is_layer_of(self.owners):
            meetings.constants.view(-1)[slice(None) if at is None else at.reshape(-1)] = True
            return ()
        return repeat(replace(self, at=None))


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [item for item in tree_leaves(values) if isinstance(item, Tensor)]


def changed(func: Any, args: Sequence[Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    kinds = zip(args, func._schema.arguments, strict=False)
    return [item for item, kind in kinds if kind.alias_info is not None and kind.alias_info.is_write]
