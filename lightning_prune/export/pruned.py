"""What of a model is exported: its part, its example inputs, and which of its parameters are pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export.copies import plain_copy, plain_name
from lightning_prune.export.standalone import Standalone, submodule_inputs

__all__ = ["BREAK_EVEN", "examples_of", "expand_mask", "masks_of_zeros", "part_of", "pruned_copy"]

# Without masks, a weight counts as pruned from this fraction of zeros on: there, a bit for each value that says whether
# it is zero pays for itself, as a sixteenth of 16-bit values need not be stored.
BREAK_EVEN = 1 / 16


def pruned_copy(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    example_inputs: Any,
    *,
    export: str,
    submodule: str | None = None,
) -> tuple[Standalone, dict[str, Tensor]]:
    """The copy of a model to convert, and which of its parameters are pruned.

    Args:
        model: The finalized model. Not changed.
        masks: Keep-masks by parameter name, broadcastable to their parameter. None: the zeros of every weight of which
            at least :data:`BREAK_EVEN` is zero.
        example_inputs: Of a call of the model, or of the submodule. None: the model's ``example_input_array``, and what
            a call with it passes to the submodule.
        export: The class of the export, for advice.
        submodule: Dotted name of the part to export. None: the whole model.

    Returns:
        The copy, which was called once, and bool keep-masks by the parameter's name in the copy's ``model``, in the
        shape of their parameter. Vectors are left out: every format stores them densely.

    Raises:
        ExportError: The model cannot be copied or called, or a mask does not fit.
    """
    plain, renamed = plain_copy(model)
    prefix = ""
    examples = examples_of(model, example_inputs, export)
    if submodule is not None:
        prefix = plain_name(submodule) + "."
        if example_inputs is None:
            examples = submodule_inputs(plain, prefix[:-1], examples)
        plain = plain.get_submodule(prefix[:-1])
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    pruned = masks_of_zeros(parameters) if masks is None else {}
    for name, mask in (masks or {}).items():
        own = plain_name(renamed.get(name, name))
        if own.startswith(prefix):
            own = own.removeprefix(prefix)
            mask = expand_mask(name, mask, parameters.get(own))
            if mask.ndim > 1:
                pruned[own] = mask
    return Standalone(plain, examples), pruned


def masks_of_zeros(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep-masks of what counts as pruned where no masks are given: the zeros of weights that have enough of them."""
    masks = {name: weight.detach() != 0 for name, weight in parameters.items() if weight.ndim > 1}
    return {name: keep for name, keep in masks.items() if (~keep).sum() >= max(1, BREAK_EVEN * keep.numel())}


def expand_mask(name: str, mask: Tensor, parameter: Tensor | None) -> Tensor:
    """A mask as bools in the shape of its parameter, which must be zero where the mask prunes."""
    if parameter is None:
        raise ExportError(f"masks[{name!r}] must belong to a parameter of the model, but there is none of that name.")
    try:
        keep = (mask.detach().cpu() != 0).expand(parameter.shape)
    except RuntimeError as error:
        raise ExportError(
            f"masks[{name!r}] must be broadcastable to {tuple(parameter.shape)}, got {tuple(mask.shape)}."
        ) from error
    if alive := int(parameter[~keep].count_nonzero()):
        raise ExportError(f"masks[{name!r}] prunes {alive} values that are not zero in the model. Finalize it first.")
    return keep


def examples_of(model: nn.Module, example_inputs: Any, export: str) -> Any:
    """The example inputs, or the model's own ``example_input_array``.

    Args:
        model: The model.
        example_inputs: What the user gave.
        export: The class of the export, for advice.
    """
    examples = getattr(model, "example_input_array", None) if example_inputs is None else example_inputs
    if examples is None:
        raise ConfigError(
            f"export.example_inputs must be known, but {type(model).__name__} has no example_input_array. "
            f"Write {export}(path, example_inputs=torch.zeros(1, 3, 224, 224)) with the shape of one batch."
        )
    return examples


def part_of(model: nn.Module, submodule: str | None) -> nn.Module:
    """The part of a model to export."""
    try:
        return model.get_submodule(submodule or "")
    except AttributeError as error:
        names = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(
            f"export.submodule must name a part of {type(model).__name__}, got {submodule!r}. Its parts are: {names}."
        ) from error
