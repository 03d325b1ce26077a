"""A copy of a model on the CPU, in float32 and eval mode, without what wraps, reparametrizes or trains it.

A trained model may sit on a GPU in bfloat16, be wrapped by ``torch.compile``, call ``self.log`` in ``forward``, or keep
a graph in an attribute. The copy is free of all that and shares no memory with the model, which is not changed.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_prune.basics import copy_untrained, is_a, uncompiled_name
from lightning_prune.errors import ExportError

__all__ = ["plain_copy", "plain_name", "refuse_unfinished", "to_cpu"]


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
    try:
        plain, memo = copy_untrained(model, to_cpu)
    except Exception as error:
        raise ExportError(
            f"The model must be copied before it is exported, but copy.deepcopy failed: {error}. "
            "Give its class a __deepcopy__, or keep what cannot be copied outside of the module."
        ) from error
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    plain.eval()  # before parametrizations are computed: some move in training mode
    renamed: dict[str, str] = {}
    for name, module in plain.named_modules():
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
