"""The buffers by which Core ML Tools recognises a pruned model, written without Core ML Tools.

``coremltools.convert`` looks in a model's ``state_dict`` for names that begin with ``_COREML_/`` and, where it finds
them, encodes those weights as sparse by itself. :class:`~lightning_prune.export.CoreMLExport` neither needs nor writes
them; they are for those who convert by hand. What that path does to a model was measured with Core ML Tools 9.0:

* It zeroes every weight with ``|w| <= 2**-10`` (9.77e-4), whatever the compute precision. In networks trained with
  weight decay that was 0.5 to 8.5 % of the weights that pruning had kept; a layer with no weight above that bound comes
  out all zero.
* It keeps batch norms from being folded into convolutions (a ResNet-50 keeps all 53), which costs speed and size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

__all__ = ["register_coreml_metadata"]

VERSION_BUFFER = "_COREML_/metadata_version"
PRUNED = 1  # Core ML Tools' number for pruning; 2 is palettization, 3 quantization


def register_coreml_metadata(model: nn.Module, pruned: Mapping[str, str | Sequence[str]]) -> None:
    """Add the buffers that mark parameters as pruned for ``coremltools.convert``; the model is changed in place.

    The root gets ``_COREML_/metadata_version`` (scalar 1), each pruned module one
    ``_COREML_/<parameter>/compression_type`` (``[1]``, before what other compression has registered there). They become
    part of ``state_dict()``. Calling it again changes nothing. Read what such a conversion does to small weights in
    this module's text before choosing it.

    Args:
        model: A finalized model; the buffers are made on the device of each parameter.
        pruned: The pruned parameters, by the name of their module (``""`` for the model itself).

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> register_coreml_metadata(model, {"0": "weight"})
        >>> sorted(name for name, _ in model.named_buffers())
        ['0._COREML_/weight/compression_type', '_COREML_/metadata_version']
    """
    model.register_buffer(VERSION_BUFFER, torch.tensor(1))
    for module_name, parameters in pruned.items():
        for parameter in [parameters] if isinstance(parameters, str) else parameters:
            module = _holder(model.get_submodule(module_name), parameter)
            name = f"_COREML_/{parameter}/compression_type"
            known = module._buffers.get(name)
            kinds = [PRUNED] if known is None else [PRUNED, *(kind for kind in known.tolist() if kind != PRUNED)]
            module.register_buffer(name, torch.tensor(kinds, device=module.get_parameter(parameter).device))


def _holder(module: nn.Module, parameter: str) -> nn.Module:
    """The module itself, or the first module in it where quantization has fused it with its activation."""
    return next((holder for holder in module.modules() if parameter in holder._parameters), module)
