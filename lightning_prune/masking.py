"""How a mask acts on a module: the only file that touches the inside of modules and optimizers.

Two ways, one protocol (:class:`HeldMask`), bit-equal results:

* :class:`HookMask`: the module keeps ``weight_orig`` (trained) and ``weight_mask``; a forward pre-hook makes
  ``weight``.
* :class:`ResidentMask`: ``weight`` stays the Parameter and always is the pruned weight. What was pruned away lies in
  a stash beside it, and is put back only while an optimizer steps (:class:`OptimizerLink`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_prune.errors import ConfigError, LifecycleError
from lightning_prune.masks import mask_shape
from lightning_prune.plan import Owner, PrunedParameter
from lightning_prune.sharding import bit_sum, is_sharded, local_part

__all__ = [
    "HeldMask",
    "HookMask",
    "Masking",
    "OptimizerLink",
    "ResidentMask",
    "apply_mask",
    "attach_mask",
    "hooked_names",
    "remove_hooks",
]

Masking = Literal["hook", "resident"]

_CHUNK = 1 << 17  # elements worked on at once, so that a pass over several tensors stays in the processor's cache

# Optimizers whose step leaves a weight at zero where gradient and momentum are zero too, and what they call momentum.
_LEAVE_ZEROS = {
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax),
}
_MOMENTA = {"momentum_buffer", "exp_avg"}
_LOOK_AFTER = 32  # steps
_SAMPLE, _LOOKS = 4096, 64  # entries among which pruned ones are looked for, and how many of them are looked at


class HeldMask(ABC):
    """A mask that acts on one parameter.

    Attributes:
        mask: Bytes 0 and 1 (1 = keep) that broadcast over the weight, changed in place.
        parameter: The Parameter object that the optimizer knows; the same before, during and after pruning.
    """

    mask: Tensor
    parameter: nn.Parameter

    @abstractmethod
    def dense(self) -> Tensor:
        """Give this process's weights with what was pruned away put back; call :meth:`settle` afterwards."""

    @abstractmethod
    def settle(self) -> None:
        """Make the module agree with the mask, after :meth:`dense`, a change of the mask or of the dense values."""

    @abstractmethod
    def project(self) -> None:
        """Zero what is pruned and something else has written to, without taking it for a dense value."""

    @abstractmethod
    def project_if_written(self) -> None:
        """The same, only if PyTorch has counted a write to the parameter since it was last settled."""

    @abstractmethod
    def release(self) -> None:
        """Forget what was pruned away: the mask will not change any more."""

    @abstractmethod
    def detach(self) -> None:
        """Leave a plain module whose parameter is the pruned weight."""

    def undo(self) -> None:
        """Leave a plain module whose parameter is the dense weight, as far as that is known."""
        self.mask.fill_(1)
        self.settle()
        self.detach()

    @abstractmethod
    def pruned_values(self) -> Tensor | None:
        """Give what was pruned away, in the order of the zeros of the mask; None if it is forgotten or all zero."""

    @abstractmethod
    def restore(self, values: Tensor | None) -> None:
        """Put back what :meth:`pruned_values` gave, under the same mask and the same pruned weight."""

    def fingerprint(self) -> int:
        """A number that differs where the dense weights or the masks do; cheap, and the same in all processes."""
        return bit_sum(local_part(self.parameter)) * 31 + int(self.mask.count_nonzero())


def attach_mask(one: PrunedParameter, masking: Masking) -> HeldMask:
    """Put a mask of ones on a parameter.

    Raises:
        ConfigError: The module reads this parameter in a way that a forward hook cannot see.
    """
    return HookMask(one) if masking == "hook" else ResidentMask(one)


class HookMask(HeldMask):
    """``weight_orig`` is trained, a forward pre-hook sets ``weight = weight_orig * mask``."""

    def __init__(self, one: PrunedParameter) -> None:
        for owner in one.owners:
            _check_hookable(owner, one)
        self.parameter = one.parameter
        self._owners = one.owners
        self._name = one.name
        shape = mask_shape(one.shape, granularity=one.config.granularity)
        mask = _ones(self.parameter, shape)
        self._hooks = [_MaskedForward(owner.attribute) for owner in one.owners]
        self._last_mask = mask
        for owner, hook in zip(self._owners, self._hooks, strict=True):
            hook.attach(owner.module, mask)

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
            if buffer is not mask:  # a move to another device makes one buffer two
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
    def detach(self) -> None:
        apply_mask(self.parameter, self.mask)
        for owner, hook in zip(self._owners, self._hooks, strict=True):
            hook.detach(owner.module)

    @override
    def pruned_values(self) -> Tensor | None:
        return _select_pruned(self.parameter.detach(), self.mask)

    @override
    def restore(self, values: Tensor | None) -> None:
        with torch.no_grad():
            _put_pruned(self.parameter, self.mask, values)
        self.settle()


def _mask_buffer(owner: Owner) -> Tensor | None:
    """The mask that a module holds; None once something has taken it off."""
    return owner.module._buffers.get(f"{owner.attribute}_mask")


class _MaskedForward(prune.BasePruningMethod):
    """The hook pair of one module: mask the weight before a forward, cut its graph off afterwards.

    It knows no pruner and no mask, only the name of the parameter, so a module that carries it can be copied and saved.
    """

    PRUNING_TYPE = "unstructured"

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
        module.register_forward_hook(_CutGraph(name))
        module.pruning_method = self  # type: ignore[assignment]  # where scripts for Core ML Tools look for it

    def detach(self, module: nn.Module) -> None:
        """Take them off again, and give the parameter its name back; as far as nothing else has done so."""
        name = self._tensor_name
        _drop_hooks(module._forward_pre_hooks, name)
        _drop_hooks(module._forward_hooks, name)
        module.__dict__.pop(name, None)
        module._parameters = _renamed(module._parameters, f"{name}_orig", name)
        module._buffers.pop(f"{name}_mask", None)
        module.__dict__.pop("pruning_method", None)

    @override
    def remove(self, module: nn.Module) -> None:
        """Finalize one module for ``torch.nn.utils.prune.remove``, which then drops this hook itself."""
        name = self._tensor_name
        apply_mask(getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask"))
        hooks = module._forward_pre_hooks
        module._forward_pre_hooks = type(hooks)()
        self.detach(module)
        module._forward_pre_hooks = hooks


def _drop_hooks(hooks: dict[int, Any], name: str) -> None:
    """Delete the hooks that serve one parameter, whose name the hooks of this file hold."""
    for key in [key for key, hook in hooks.items() if getattr(hook, "_tensor_name", None) == name]:
        del hooks[key]


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
    """Finalize every module that carries a hook of :class:`HookMask`, also in a copy of a prepared model."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _MaskedForward):
                name = hook._tensor_name
                parameter, mask = module._parameters.get(f"{name}_orig"), module._buffers.get(f"{name}_mask")
                if parameter is not None and mask is not None:
                    apply_mask(parameter, mask)
                hook.detach(module)


class ResidentMask(HeldMask):
    """The parameter is the pruned weight; a stash keeps what was pruned away, zero elsewhere.

    The stash is made when the first weight is pruned and dropped by :meth:`release`. Between two folds
    ``dense = parameter + stash`` holds exactly, since where one is not zero the other is.

    Attributes:
        was_written: Whether PyTorch had counted a write to the parameter between the last fold and the one before.
    """

    def __init__(self, one: PrunedParameter) -> None:
        self.parameter = one.parameter
        shape = mask_shape(tuple(local_part(self.parameter).shape), granularity=one.config.granularity)
        self.mask = _ones(self.parameter, shape)
        self._stash: Tensor | None = None
        self._keeps_stash = True
        self._is_folded = False
        self._is_masking = False
        self._mask_is_new = False
        self._version = self.parameter._version
        self.was_written = False
        self._probe: tuple[Tensor, ...] | None = None
        self._masked_gradient: tuple[int, int] | None = None
        self._gradient_hook = self._watch_gradient(one)

    def _watch_gradient(self, one: PrunedParameter) -> Any:
        parameter = self.parameter
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if isinstance(getattr(hook, "__self__", None), ResidentMask):
                raise ConfigError(
                    f"{one.rule}: {one.name} is pruned already, by another pruner. One parameter can have one pruner: "
                    "finalize the other one, or leave this module out with None."
                )
        is_trained = parameter.requires_grad
        parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen later
        handle = parameter.register_post_accumulate_grad_hook(self._mask_gradient_of)  # type: ignore[no-untyped-call]
        parameter.requires_grad_(is_trained)
        return handle

    @property
    def may_rest(self) -> bool:
        """Whether steps that leave pruned weights at zero may leave out the pass over the weights.

        So once the mask will not change any more; on the CPU alone, since to look at a weight on another device takes
        longer than the pass.
        """
        return not self._keeps_stash and not self._mask_is_new and self.parameter.device.type == "cpu"

    def looks_zero(self) -> bool:
        """Whether some of the pruned weights, from all over the tensor, are zero: a quick look, no proof."""
        weight = local_part(self.parameter)
        if self._probe is None:
            self._probe = _pruned_places(self.mask, tuple(weight.shape))
        return not bool(weight[self._probe].any())

    def apply_to(self, tensor: Tensor) -> None:
        """Zero a tensor of the shape of the parameter where the parameter is pruned."""
        self._follow_device()
        with torch.no_grad():
            _apply_in_place(local_part(tensor), self.mask)

    def fold(self) -> None:
        """Put what was pruned away back into the parameter."""
        if self._is_folded:
            return
        self.was_written = self.parameter._version != self._version
        if self._stash is not None:
            self._follow_device()
            with torch.no_grad():
                local_part(self.parameter).add_(self._stash)
        self._is_folded = True

    def unfold(self, *, is_zero: bool = False) -> None:
        """Take it out again, by the mask as it is now; ``is_zero`` says that there is nothing to take out."""
        self._masked_gradient = None
        if not self._is_folded:
            return
        self._is_folded = False
        if not is_zero:
            self._unfold()
        self._version = self.parameter._version

    def _unfold(self) -> None:
        if self._mask_is_new:  # looked at only after an update: it costs a pass, and a device a wait
            self._is_masking, self._mask_is_new = self._is_masking or not bool(self.mask.all()), False
        if not self._is_masking:
            return
        self._follow_device()
        with torch.no_grad():
            weight = local_part(self.parameter)
            if self._keeps_stash:
                if self._stash is None:
                    with torch.inference_mode(False):
                        self._stash = torch.zeros_like(weight)
                _split(weight, self.mask, self._stash)
            else:
                _apply_in_place(weight, self.mask)

    @override
    def dense(self) -> Tensor:
        self._mask_is_new, self._probe = True, None
        self.fold()
        return local_part(self.parameter)

    @override
    def settle(self) -> None:
        self.fold()
        self.unfold()

    @override
    def project(self) -> None:
        if self._is_folded:
            self.unfold()
        elif self._is_masking:
            self.apply_to(self.parameter)

    @override
    def project_if_written(self) -> None:
        if self.parameter._version != self._version:
            self.project()
            self._version = self.parameter._version

    @override
    def release(self) -> None:
        self.unfold()
        self._keeps_stash, self._stash = False, None

    @override
    def detach(self) -> None:
        self.release()
        apply_mask(self.parameter, self.mask)
        self._gradient_hook.remove()

    @override
    def pruned_values(self) -> Tensor | None:
        return None if self._stash is None else _select_pruned(self._stash, self.mask)

    @override
    def fingerprint(self) -> int:
        return super().fingerprint() + (0 if self._stash is None else bit_sum(self._stash) * 31)

    @override
    def restore(self, values: Tensor | None) -> None:
        if self.parameter._version == self._version:  # the weight was there before this mask pruned it
            self.fold()
        self._is_folded, self._keeps_stash, self._probe = False, True, None
        self._is_masking = not bool(self.mask.all())
        with torch.no_grad():
            if values is None:
                self._stash = None
            else:
                self._stash = torch.zeros_like(local_part(self.parameter))
                _put_pruned(self._stash, self.mask, values)
            if self._is_masking:
                _apply_in_place(local_part(self.parameter), self.mask)

    def mask_gradient(self) -> None:
        """Zero the gradient where the weight is pruned, as the product rule does in ``weight_orig * mask``."""
        gradient = self.parameter.grad
        if gradient is None or not self._is_masking:
            return
        if self._masked_gradient == (id(gradient), gradient._version) and not is_sharded(gradient):
            return  # masked as it was accumulated, and not written since
        self._follow_device()
        with torch.no_grad():
            _apply_in_place(local_part(gradient), self.mask, zero_is_positive=False)
        self._masked_gradient = (id(gradient), gradient._version)

    def _mask_gradient_of(self, parameter: Tensor) -> None:
        self.mask_gradient()

    def _follow_device(self) -> None:
        """Follow a model that was moved or cast after it was prepared."""
        weight = local_part(self.parameter)
        if self.mask.device != weight.device:
            self.mask = self.mask.to(weight.device)
        if self._stash is not None and (self._stash.device != weight.device or self._stash.dtype != weight.dtype):
            self._stash = self._stash.to(weight)


class OptimizerLink:
    """Shows the dense weights of resident masks to one optimizer, while it steps and not a moment longer.

    The optimizer's closure, if it has one, runs forward and backward inside ``step``: there the pruned weights are put
    back in place for as long as it runs, each time that it is called.

    Raises:
        ConfigError: The optimizer is not a :class:`torch.optim.Optimizer`.
    """

    def __init__(self, optimizer: Optimizer, masks: Sequence[ResidentMask]) -> None:
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        self._masks = {id(mask.parameter): mask for mask in masks}
        # torch's own optimizers call the closure before they look at a parameter; of others that is not known
        self._calls_closure_first = type(optimizer).__module__.startswith("torch.optim")
        self._resting: set[int] = set()
        self._steps = 0
        self._depth = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    def __iter__(self) -> Iterator[ResidentMask]:
        """The masks whose parameters the optimizer updates now; groups may change during training."""
        known = [self._masks.get(id(p)) for group in self.optimizer.param_groups for p in group["params"]]
        return iter([mask for mask in known if mask is not None])

    def reset(self) -> None:
        """Take the dense weights away after a step that raised, and never came to its end."""
        if self._depth:
            self._depth = 0
            for mask in self:
                mask.unfold()

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        self._depth += 1
        if self._depth > 1:  # a subclass called the step of its base, which has the same hooks
            return None
        closures = [one for one in (*args, *kwargs.values()) if callable(one)]
        if not closures:
            self._fold()
            return None
        wrapped = {id(one): self._wrap(one) for one in closures}
        return (
            tuple(wrapped.get(id(one), one) for one in args),
            {name: wrapped.get(id(one), one) for name, one in kwargs.items()},
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._steps += 1
            for mask in self:
                mask.unfold(is_zero=self._left_zeros(mask))

    def _after_load(self, optimizer: Optimizer) -> None:
        self._resting.clear()

    def _left_zeros(self, mask: ResidentMask) -> bool:
        """Whether a step left at zero what is pruned for good, so that no pass over the weights is needed.

        It did if weights, gradients and momentum were zero there. The first step after the release makes them so, and
        whatever writes to them later is noticed: by the count that PyTorch keeps of writes to the weight, by a look at
        some of the weights after each step, and where it escapes both, by a pass that is made now and then.
        """
        if not mask.may_rest or type(self.optimizer) not in _LEAVE_ZEROS:
            self._resting.discard(id(mask))
            return False
        is_due = self._steps % _LOOK_AFTER == 0
        if id(mask) in self._resting and not is_due and not mask.was_written and mask.looks_zero():
            return True
        for name, value in self.optimizer.state.get(mask.parameter, {}).items():
            if name in _MOMENTA and value is not None:
                mask.apply_to(value)
        self._resting.add(id(mask))
        return False

    def _fold(self) -> None:
        for mask in self:
            mask.mask_gradient()
            mask.fold()

    def _wrap(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        if not self._calls_closure_first:
            self._fold()

        def closure_on_pruned_weights(*args: Any, **kwargs: Any) -> Any:
            for mask in self:
                mask.unfold()
            result = closure(*args, **kwargs)
            self._fold()
            return result

        return closure_on_pruned_weights


def _check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that cannot say when it steps, or that moves weights at other times too."""
    kind = type(optimizer).__name__
    needed = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_load_state_dict_post_hooks")
    if not isinstance(optimizer, Optimizer) or not all(hasattr(optimizer, name) for name in needed):
        raise ConfigError(
            f"An optimizer must be a torch.optim.Optimizer that was initialised as one, got {kind}. Give the optimizer "
            'that it wraps, or use masking="hook", which needs none.'
        )
    # how the family of schedule-free optimizers notes which of their two sets of weights the parameters hold
    if any("train_mode" in group and group.get("use_schedulefree", True) for group in optimizer.param_groups):
        raise ConfigError(
            f"{kind} swaps the weights in its train() and eval(), outside of its step, which would bring back what is "
            'pruned. Use masking="hook" with it.'
        )


def _check_hookable(owner: Owner, one: PrunedParameter) -> None:
    """Refuse what would read the weight without running the module's forward, or run it on an unmasked one."""
    module, name = owner.module, owner.attribute
    if is_sharded(one.parameter):
        raise ConfigError(
            f'{one.rule}: masking="hook" cannot prune {one.name}, which is sharded over processes (DTensor). '
            'Write masking="resident".'
        )
    advice = 'Write masking="resident", or leave the module out with None.'
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ConfigError(
            f'{one.rule}: masking="hook" cannot prune {one.name}: nn.MultiheadAttention reads it without a forward. '
            + advice
        )
    is_computed_from = name.endswith("_v") and f"{name[:-2]}_g" in module._parameters  # weight_norm
    is_computed_from |= any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    if is_computed_from or isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.ModuleList)):
        raise ConfigError(
            f'{one.rule}: masking="hook" cannot prune {one.name}: {type(module).__name__} holds its parameters in a '
            f"way that a hook cannot follow. {advice}"
        )
    for taken in (f"{name}_orig", f"{name}_mask"):
        if hasattr(module, taken):
            raise ConfigError(
                f'{one.rule}: masking="hook" needs the name {taken}, which the module uses itself. {advice}'
            )


def _renamed(parameters: dict[str, nn.Parameter | None], old: str, new: str) -> dict[str, nn.Parameter | None]:
    """The same parameters in the same order, one under another name."""
    return {new if name == old else name: parameter for name, parameter in parameters.items()}


def _ones(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Mask bytes of 1, laid out in memory as the weight where the shapes are the same."""
    weight = local_part(parameter)
    if shape == tuple(weight.shape):
        return torch.ones_like(weight, dtype=torch.uint8)
    return torch.ones(shape, dtype=torch.uint8, device=weight.device)


def apply_mask(parameter: Tensor, mask: Tensor) -> None:
    """Zero a parameter in place where its mask is 0 or False, whatever it holds there: a product would keep NaN."""
    with torch.no_grad():
        local_part(parameter).masked_fill_(mask == 0, 0.0)


def _select_pruned(dense: Tensor, mask: Tensor) -> Tensor | None:
    pruned = mask.expand(dense.shape) == 0
    return dense[pruned] if bool(pruned.any()) else None


def _put_pruned(dense: Tensor, mask: Tensor, values: Tensor | None) -> None:
    if values is not None:
        dense[mask.expand(dense.shape) == 0] = values.to(dense)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]] | None:
    """Matching flat pieces of tensors of one layout, in memory order; None where they have no common flat view."""
    first = tensors[0]
    if first.device.type != "cpu" or any(one.shape != first.shape or one.stride() != first.stride() for one in tensors):
        return None
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    flat = [one.permute(order) for one in tensors]
    if not flat[0].is_contiguous():
        return None
    return zip(*(torch.split(one.view(-1), _CHUNK) for one in flat), strict=True)


def _passes(mask: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The mask as numbers of the tensors' dtype, and the tensors: piece by piece, or whole where no piece fits all.

    One conversion and a product of floats are three times as fast as a product of floats and bytes.
    """
    dtype = tensors[0].dtype
    chunks = _chunks(mask, *tensors)
    if chunks is None:
        yield (mask.to(dtype), *tensors)
        return
    scratch = torch.empty(min(_CHUNK, mask.numel()), dtype=dtype, device=mask.device)
    for keep, *pieces in chunks:
        yield (scratch[: keep.numel()].copy_(keep), *pieces)


def _split(dense: Tensor, mask: Tensor, stash: Tensor) -> None:
    """Split ``dense`` in place into what the mask keeps (stays in ``dense``) and what it prunes (goes to ``stash``).

    ``dense - dense * mask`` is exactly the pruned part, and taking that off ``dense`` leaves +0.0, never -0.0.
    """
    for factor, weight, pruned in _passes(mask, dense, stash):
        torch.addcmul(weight, weight, factor, value=-1, out=pruned)
        weight.sub_(pruned)


def _apply_in_place(tensor: Tensor, mask: Tensor, *, zero_is_positive: bool = True) -> None:
    """``tensor *= mask``; adds +0.0 where a weight is written, so that no zero is -0.0."""
    for factor, piece in _passes(mask, tensor):
        piece.mul_(factor)
        if zero_is_positive:
            piece.add_(0.0)


def _pruned_places(mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Indices of some pruned entries from all over a mask that broadcasts over ``shape``; none if few are pruned."""
    numel = prod(shape)
    # multiples of the golden ratio, modulo the size, never fall in step with rows or groups
    sample = torch.arange(min(numel, _SAMPLE), device=mask.device) * 0x9E37_79B1 % numel
    places = torch.unravel_index(sample, shape)
    pruned = (mask.expand(shape)[places] == 0).nonzero().view(-1)
    pruned = pruned[:: max(1, len(pruned) // _LOOKS)]
    return tuple(place[pruned] for place in places)
