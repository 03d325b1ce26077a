"""The optimizers of resident masks: they see the dense weights, while they step and not a moment longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import optim
from torch.optim import Optimizer

from lightning_prune.errors import ConfigError
from lightning_prune.masking.resident import ResidentMask

__all__ = ["OptimizerLink"]

# Optimizers whose step leaves a weight at zero where gradient and momentum are zero too, and what they call momentum.
_LEAVE_ZEROS = {
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam),
    *(optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax),
}
_MOMENTA = {"momentum_buffer", "exp_avg"}
_LOOK_AFTER = 32  # steps


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
