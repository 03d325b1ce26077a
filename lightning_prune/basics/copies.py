"""A copy of a model without what wraps or trains it, which shares no memory with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_prune.basics.class_names import is_a
from lightning_prune.basics.compiled import unwrap

__all__ = ["copy_untrained", "tensors_in"]


def copy_untrained(model: nn.Module, moved: Callable[[Tensor], Tensor]) -> tuple[nn.Module, dict[int, Any]]:
    """Copy a model without its Trainer and the wrappers of ``torch.compile``; parameters that are tied stay tied.

    Args:
        model: Not changed.
        moved: Gives a copy of a parameter or buffer where it is to be, detached; no other copy of it is made.

    Returns:
        The copy, and what stands in it for each object of the model, by ``id``.

    Raises:
        Exception: Whatever ``copy.deepcopy`` raises of an attribute that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(moved(parameter), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = moved(buffer)
    for module in model.modules():
        if is_a(module, "LightningModule"):  # what trains it stays behind
            memo |= {id(vars(module).get(name)): None for name in ("_trainer", "_fabric")}
        # A tensor kept with its graph (a loss or an attention map, kept for logging) cannot be deep-copied.
        for tensor in tensors_in(list(vars(module).values())):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = moved(tensor)
    plain = unwrap(copy.deepcopy(model, memo))
    for module in plain.modules():
        # What compile() left is bound to the module that was copied: a call would run that module, as it stands.
        module.__dict__.pop("_compiled_call_impl", None)
    return plain, memo


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
