"""Does a saved file hold the pruned weights, as bit masks and values?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lightning_prune.errors import ExportError
from lightning_prune.export.coreai.asset import Asset
from lightning_prune.export.coreai.constants import fingerprint
from lightning_prune.export.coreai.storage import SparseWeight
from lightning_prune.export.findings import Findings
from lightning_prune.export.result import ExportedLayer

__all__ = ["prove_weights", "weight_fingerprint"]


def weight_fingerprint(weight: SparseWeight) -> str:
    """The fingerprint that the weight has in a file."""
    return fingerprint(weight.mask.numpy(), weight.values.numpy().tobytes())


def prove_weights(
    asset: Asset | None,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    weights: Mapping[str, SparseWeight],
    written: Collection[str],
    findings: Findings,
    *,
    dtype: torch.dtype,
) -> None:
    """Find every pruned parameter among the constants of a file; what was found goes to ``findings``.

    Args:
        asset: As read from disk; None if it cannot be read: then nothing is looked for.
        model: The model it was made of.
        masks: Keep-masks by parameter name, in the shape of the parameters.
        weights: By parameter name, those that had to be stored sparse.
        written: The names of those that the captured program reads.
        findings: Is added to.
        dtype: What values are stored in.

    Raises:
        ExportError: A weight that had to be stored sparse is not in the file with the mask's zeros and the model's
            values.
    """
    held = {constant.fingerprint for constant in asset.sparse} if asset is not None else set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {id(parameters[name]) for name in written}
    missing = []
    for name, mask in masks.items():
        if id(parameters[name]) not in names and name in weights:
            findings.notes.append(f"unused: {name} has no influence on the outputs and is not in the asset")
            continue
        if asset is not None and name in weights and weight_fingerprint(weights[name]) not in held:
            missing.append(name)
        findings.layers.append(layer_of(name, parameters[name].detach(), mask, weights.get(name), dtype))
    if missing:
        raise ExportError(
            f"The asset does not hold the pruned weights: {', '.join(missing)} must be stored as bit mask and values, "
            "with the mask's zeros and the model's values, and no constant of it is."
        )
    sparse = [layer for layer in findings.layers if layer.stored == "sparse"]
    if sparse and asset is not None:
        zeros = sum(layer.zeros for layer in sparse)
        findings.checks.append(
            f"{len(sparse)} of {len(findings.layers)} pruned parameters are stored sparse; their {zeros:,} zeros are "
            "the masks', their values the model's in the precision of the asset"
        )
    if lost := sum(layer.rounded_away for layer in findings.layers):
        findings.notes.append(f"{lost} kept weights are too small for the precision of the asset, and are zero there")


def layer_of(name: str, weight: Tensor, mask: Tensor, sparse: SparseWeight | None, dtype: torch.dtype) -> ExportedLayer:
    """The row of a parameter."""
    zeros, total = int((~mask).sum()), mask.numel()
    stored, kept = weight.to(dtype), weight[mask]
    apart = (stored.to(weight.dtype) - weight).abs().max() if total else torch.zeros(())
    dense_nbytes = total * stored.element_size()
    return ExportedLayer(
        name,
        tuple(weight.shape),
        zeros,
        total,
        "sparse" if sparse is not None else "dense (with so few zeros it takes less than sparse)",
        dense_nbytes if sparse is None else sparse.nbytes,
        dense_nbytes,
        rounded_away=int(((stored[mask] == 0) & (kept != 0)).sum()),
        max_error=float(apart / weight.abs().max().clamp(min=1e-12)) if total else 0.0,
    )
