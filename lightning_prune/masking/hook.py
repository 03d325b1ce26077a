"""Masks held by hooks: the module keeps ``weight_orig``, which is trained, and a forward pre-hook makes ``weight``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from typing_extensions import override

from lightning_prune.basics import is_compiled
from lightning_prune.errors import ConfigError, LifecycleError
from lightning_prune.masking.guards import PlainNames, drop_guards
from lightning_prune.masking.held import HeldMask, watch_gradient
from lightning_prune.masking.products import apply_mask, ones, put_pruned, select_pruned
from lightning_prune.masking.quantizing import allow_quantization, refuse_quantization
from lightning_prune.plan import Owner, PrunedParameter
from lightning_prune.sharding import is_sharded

__all__ = ["HookMask", "find_unused", "hooked_names", "remove_hooks"]


class HookMask(HeldMask):
    """``weight_orig`` is trained, a forward pre-hook sets ``weight = weight_orig * mask``."""

    def __init__(self, planned: PrunedParameter) -> None:
        for owner in planned.owners:
            _check_hookable(owner, planned)
        self.parameter = planned.parameter
        self._owners = planned.owners
        self._name = planned.name
        shape = planned.layout.mask_shape(planned.shape)
        mask = ones(self.parameter, shape)
        self._hooks = [_MaskedForward(owner.attribute) for owner in planned.owners]
        self._last_mask = mask
        for owner, hook in zip(self._owners, self._hooks, strict=True):
            hook.attach(owner.module, mask)
        self._gradient_hooks = watch_gradient(
            self.parameter, ("register_post_accumulate_grad_hook", self._note_gradient)
        )

    def _note_gradient(self, parameter: Tensor) -> None:
        self.got_gradient = True

    @property
    def was_used(self) -> bool:
        """Whether a forward has made the pruned weight for training, as far as it can be seen, or it has a gradient."""
        return self.parameter.grad is not None or any(hook.has_run for hook in self._hooks)

    @property
    def mask(self) -> Tensor:  # type: ignore[override]
        """The buffer of the (first) module; the last there was, once something has taken it off the module."""
        buffer = _mask_buffer(self._owners[0])
        if buffer is not None:
            self._last_mask = buffer
        return self._last_mask

    @override
    def dense(self) -> Tensor:
        if any(_mask_buffer(owner) is None for owner in self._owners):
            raise LifecycleError(
                f"{self._name} has lost its mask: something else, such as torch.nn.utils.prune.remove, has "
                "finalized it. It cannot be pruned any further."
            )
        return self.parameter.detach()

    @override
    def settle(self) -> None:
        mask = self.mask
        for owner, hook in zip(self._owners, self._hooks, strict=True):
            buffer = _mask_buffer(owner)
            if buffer is None:  # something else has finalized it
                continue
            if buffer is not mask:  # a move to another device parts a buffer that modules share
                buffer.copy_(mask)
            hook.show(owner.module)

    @override
    def project(self) -> None:
        """Nothing to do: every forward makes the weight anew."""

    @override
    def project_if_written(self) -> None:
        """Nothing to do, likewise."""

    @override
    def release(self) -> None:
        """Nothing to do: the dense weights are the parameter itself."""

    @override
    def forget(self) -> None:
        apply_mask(self.parameter, self.mask)
        self.settle()

    @override
    def detach(self) -> None:
        apply_mask(self.parameter, self.mask)
        for handle in self._gradient_hooks:
            handle.remove()
        for owner, hook in zip(self._owners, self._hooks, strict=True):
            hook.detach(owner.module)

    @override
    def guard_state_dict(self) -> None:
        for owner in self._owners:
            PlainNames(owner.attribute).attach(owner.module)

    @override
    def take_writes(self) -> None:
        """Nothing to do: the dense weights are the parameter itself."""

    @override
    def pruned_values(self) -> Tensor | None:
        return select_pruned(self.parameter.detach(), self.mask)

    @override
    def restore(self, values: Tensor | None) -> None:
        with torch.no_grad():
            put_pruned(self.parameter, self.mask, values)
        self.settle()


def _mask_buffer(owner: Owner) -> Tensor | None:
    """The mask that a module holds; None once something has taken it off."""
    return owner.module._buffers.get(f"{owner.attribute}_mask")


def _check_hookable(owner: Owner, planned: PrunedParameter) -> None:
    """Refuse what would read the weight without running the module's forward, or run it on an unmasked one."""
    module, name = owner.module, owner.attribute
    refused = f'{planned.rule}: masking="hook" cannot prune {planned.name}'
    if is_sharded(planned.parameter):
        raise ConfigError(f'{refused}, which is sharded over processes (DTensor). Write masking="resident".')
    advice = 'Write masking="resident", or leave the module out with None.'
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ConfigError(f"{refused}: nn.MultiheadAttention reads it without a forward. " + advice)
    if planned.gain is not None:
        raise ConfigError(
            f"{refused}: it is one of two parameters that a weight norm makes "
            f"the weight of, and a hook masks one. {advice}"
        )
    if not _has_forward(module):
        raise ConfigError(
            f"{refused}: {type(module).__name__} has no forward of its own, in which a hook could mask it. {advice}"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise ConfigError(f"{refused}: its forward writes to the weight, to keep max_norm. " + advice)
    is_computed_from = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    if is_computed_from or isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.ModuleList)):
        raise ConfigError(
            f"{refused}: {type(module).__name__} holds its parameters in a way that a hook cannot follow. {advice}"
        )
    for taken in (f"{name}_orig", f"{name}_mask"):
        if hasattr(module, taken):
            raise ConfigError(
                f'{planned.rule}: masking="hook" needs the name {taken}, which the module uses itself. {advice}'
            )


def _has_forward(module: nn.Module) -> bool:
    """Whether a module defines what it computes; containers and a LightningModule without a forward do not."""
    if "forward" in vars(module):
        return True
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return owner is not nn.Module and owner.__name__ != "LightningModule"


def find_unused(hooks: Mapping[str, HookMask], model: nn.Module) -> list[str] | None:
    """Find hook masks whose weights no forward has used in training, though others were, and no gradient came.

    Args:
        hooks: Masks by parameter name.
        model: The whole model.

    Returns:
        Their names; None where nothing at all was trained yet, as far as can be seen.
    """
    has_gradients = any(parameter.grad is not None for parameter in model.parameters())
    has_run = any(mask.was_used for mask in hooks.values())
    if not has_gradients and (not has_run or any(map(is_compiled, model.modules()))):
        return None
    return [name for name, mask in hooks.items() if mask.parameter.requires_grad and not mask.was_used]


def _renamed(parameters: dict[str, nn.Parameter | None], old: str, new: str) -> dict[str, nn.Parameter | None]:
    """The same parameters in the same order, one under another name."""
    return {new if name == old else name: parameter for name, parameter in parameters.items()}


class _MaskedForward(prune.BasePruningMethod):
    """The hook pair of one module: mask the weight before a forward, cut its graph off afterwards.

    It knows no pruner and no mask, only the name of the parameter, so a module that carries it can be copied and saved.
    """

    PRUNING_TYPE = "unstructured"
    has_run = False  # in a forward that is trained; under a compiler it cannot be seen

    def __init__(self, name: str) -> None:
        self._tensor_name = name
        self._converted: tuple[Tensor, int, Tensor] | None = None  # a mask, its version, and the mask as a factor

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensor_name": self._tensor_name, "_converted": None}

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Make the pruned weight for one forward."""
        setattr(module, self._tensor_name, self.apply_mask(module))

    @override
    def apply_mask(self, module: nn.Module) -> Tensor:
        orig: Tensor = getattr(module, f"{self._tensor_name}_orig")
        mask: Tensor = getattr(module, f"{self._tensor_name}_mask")
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not is_traced and not self.has_run:
            self.has_run = torch.is_grad_enabled()
        if not is_traced and self._converted is not None:
            known, version, factor = self._converted
            is_same = known is mask and version == mask._version
            if is_same and factor.dtype == orig.dtype and factor.device == orig.device:
                return orig * factor
        return orig * mask.to(orig.dtype)

    @override
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return default_mask

    def show(self, module: nn.Module) -> None:
        """Set the pruned weight for readers; outside a forward it carries no graph, so the module can be copied."""
        name = self._tensor_name
        orig, mask = getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask")
        # In the dtype of the weight it is kept from here to the next change of the mask: backward needs it anyway. No
        # forward writes it: under a tracer or in inference mode it would make a tensor that no other may use.
        with torch.inference_mode(False), torch.no_grad():
            factor = mask.to(orig.dtype)
            setattr(module, name, orig * factor)
        self._converted = None if mask.is_inference() else (mask, mask._version, factor)

    def attach(self, module: nn.Module, mask: Tensor) -> None:
        """Put the hooks and the mask on a module."""
        name = self._tensor_name
        module._parameters = _renamed(module._parameters, name, f"{name}_orig")
        module.register_buffer(f"{name}_mask", mask)
        self.show(module)
        module.register_forward_pre_hook(self)
        # also after a forward that raised: torch.utils.checkpoint ends those that it repeats by an exception
        module.register_forward_hook(_CutGraph(name), always_call=True)
        module.pruning_method = self  # type: ignore[assignment]  # where scripts for Core ML Tools look for it
        refuse_quantization(module)

    def detach(self, module: nn.Module) -> None:
        """Take them off again, and give the parameter its name back; as far as nothing else has done so."""
        name = self._tensor_name
        _drop_hooks(module._forward_pre_hooks, name)
        for key in _drop_hooks(module._forward_hooks, name):
            module._forward_hooks_always_called.pop(key, None)
        drop_guards(module, name)
        module.__dict__.pop(name, None)
        module._parameters = _renamed(module._parameters, f"{name}_orig", name)
        module._buffers.pop(f"{name}_mask", None)
        module.__dict__.pop("pruning_method", None)
        allow_quantization(module)

    @override
    def remove(self, module: nn.Module) -> None:
        """Finalize one module for ``torch.nn.utils.prune.remove``, which then drops this hook itself."""
        name = self._tensor_name
        apply_mask(getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask"))
        hooks = module._forward_pre_hooks
        module._forward_pre_hooks = type(hooks)()
        self.detach(module)
        module._forward_pre_hooks = hooks


def _drop_hooks(hooks: dict[int, Any], name: str) -> list[int]:
    """Delete the hooks that serve one parameter, whose name the hooks of this file hold; give their keys."""
    keys = [key for key, hook in hooks.items() if getattr(hook, "_tensor_name", None) == name]
    for key in keys:
        del hooks[key]
    return keys


class _CutGraph:
    """Forward hook that leaves ``weight`` as a plain tensor: one with a graph cannot be deep-copied."""

    def __init__(self, name: str) -> None:
        self._tensor_name = name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        setattr(module, self._tensor_name, getattr(module, self._tensor_name).detach())


def hooked_names(model: nn.Module) -> set[str]:
    """Names in the state dict of all parameters that a hook of :class:`HookMask` holds apart from their masks."""
    return {
        ".".join(filter(None, (name, f"{hook._tensor_name}_orig")))
        for name, module in model.named_modules(remove_duplicate=False)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, _MaskedForward)
    }


def remove_hooks(model: nn.Module) -> None:
    """Finalize every module that carries hooks of a mask, also in a copy of a prepared model."""
    for module in model.modules():
        drop_guards(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _MaskedForward):
                name = hook._tensor_name
                parameter, mask = module._parameters.get(f"{name}_orig"), module._buffers.get(f"{name}_mask")
                if parameter is not None and mask is not None:
                    apply_mask(parameter, mask)
                hook.detach(module)
