"""The optimizers of resident masks: they see the dense weights, while they step and not a moment longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_prune.errors import ConfigError
from lightning_prune.masking.resident import ResidentMask
from lightning_prune.masking.resting import Resting
from lightning_prune.masking.straight_through import GradientDecay

__all__ = ["OptimizerLink"]


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
        self._resting = Resting(optimizer)
        self._decay = GradientDecay.of(optimizer, masks)
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
            self._unfold()

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        self._depth += 1
        if self._depth > 1:  # a subclass called the step of its base, which has the same hooks
            return None
        closures = [value for value in (*args, *kwargs.values()) if callable(value)]
        if not closures:
            self._fold()
            return None
        wrapped = {id(closure): self._wrap(closure) for closure in closures}
        return (
            tuple(wrapped.get(id(value), value) for value in args),
            {name: wrapped.get(id(value), value) for name, value in kwargs.items()},
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            if self._decay is not None:
                self._decay.take_back()
            self._resting.count_step()
            for mask in self:
                mask.unfold(is_zero=self._resting.left_zeros(mask))

    def _after_load(self, optimizer: Optimizer) -> None:
        self._resting.forget()

    def _fold(self) -> None:
        for mask in self:
            mask.mask_gradient()
            mask.fold()
        if self._decay is not None:
            self._decay.add(self)

    def _unfold(self) -> None:
        if self._decay is not None:
            self._decay.take_back()
        for mask in self:
            mask.unfold()

    def _wrap(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        if not self._calls_closure_first:
            self._fold()

        def closure_on_pruned_weights(*args: Any, **kwargs: Any) -> Any:
            self._unfold()
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
