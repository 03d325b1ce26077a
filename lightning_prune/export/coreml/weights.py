"""Does a saved package hold the pruned weights?

Each pruned parameter must be found among the constants of the package that was read back from disk, stored sparse, with
the mask's zeros and the model's values; unless what it does is the same at every call, and was computed once and for
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.errors import ExportError
from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.coreml.conversion import SPARSE_OPERATIONS
from lightning_prune.export.coreml.match import Match, find
from lightning_prune.export.coreml.mil import Array, Constant, Package
from lightning_prune.export.dataflow import FOLDED, Meetings, watch
from lightning_prune.export.findings import Findings
from lightning_prune.export.pruned import BREAK_EVEN
from lightning_prune.export.result import ExportedLayer
from lightning_prune.export.standalone import Standalone

__all__ = ["prove_weights"]


# Fewer values than this lie in the program's text; so few that no storage makes them smaller.
INLINE_BELOW = 10


def prove_weights(
    package: Package,
    standalone: Standalone,
    pruned: Mapping[str, Tensor],
    findings: Findings,
    *,
    guessed: bool,
) -> None:
    """Find every pruned parameter in a package, stored as it must be; what was found goes to ``findings``.

    Args:
        package: As read from disk.
        standalone: The model it was made of.
        pruned: Keep-masks by parameter name, in the shape of the parameters.
        findings: Is added to.
        guessed: The masks are the zeros found in the model: then a weight that only other operations read may stay
            dense.

    Raises:
        ExportError: A pruned parameter is not in the package although what it is used on depends on the inputs, is
            stored dense, or has other zeros or values.
    """
    parameters = dict(standalone.model.named_parameters(remove_duplicate=False))
    problems: list[str] = []
    search = Search(package, standalone, channel_scales(standalone.model))
    proofs = {
        name: search.prove(name, parameters[name].detach().numpy(), keep.numpy(), guessed=guessed)
        for name, keep in pruned.items()
    }
    doubtful = {name: parameters[name] for name, proof in proofs.items() if proof.problem}
    meetings = watch(standalone, doubtful) if doubtful else {}
    for name, proof in proofs.items():
        if name in doubtful:
            proof = search.prove_rest(name, proof, meetings[name], parameters[name].detach(), pruned[name])
        findings.layers += [] if proof.layer is None else [proof.layer]
        findings.turned += [name] if proof.turned else []
        findings.notes += proof.notes
        problems += [proof.problem] if proof.problem else []
    if problems:
        raise ExportError(
            "The package does not hold the pruned weights:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    describe(findings)


@dataclass(frozen=True)
class WeightProof:
    """What was found of one pruned parameter: its row, notes, and what is wrong with it."""

    layer: ExportedLayer | None = None
    turned: bool = False
    notes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Search:
    """Looks for parameters of a model in a package."""

    package: Package
    standalone: Standalone
    scales: list[Array]

    def prove(self, name: str, weight: Array, mask: Array, *, guessed: bool) -> WeightProof:
        """Find one parameter, stored as it must be."""
        matches = find(weight, mask, self.package, self.scales)
        turned = False
        if not matches:
            matches = find(weight, mask, self.package, None)
            turned = bool(matches)
        if not matches:
            problem = missing(name, weight, self.package, self.standalone)
            return WeightProof(notes=(problem,)) if problem.startswith("unused") else WeightProof(problem=problem)
        zeros, total = int((~mask).sum()), mask.size
        constants = [constant for match in matches for constant in match.constants]
        reasons = [why_dense(constant, self.package, guessed=guessed) for constant in constants]
        stored, fine = next((reason for reason in reasons if not reason[1]), reasons[0])
        problem = "" if fine else f"{name}: {zeros} of {total} values are pruned, but it is stored {stored}"
        return WeightProof(layer_of(name, weight.shape, zeros, total, stored, matches), turned, problem=problem)

    def prove_rest(self, name: str, proof: WeightProof, met: Meetings, weight: Tensor, keep: Tensor) -> WeightProof:
        """The proof of a parameter once it is known which of its rows meet the model's inputs, and how.

        Rows that are the weight of a layer that sees nothing but parameters and buffers are folded away with all that
        the layer computes; the others must be in the package.
        """
        live = met.live
        if not live.any():
            return WeightProof(notes=(f"{name} {FOLDED}",))
        if not live.all():
            proof = self.prove(name, weight[live].numpy(), keep[live].numpy(), guessed=False)
            return replace(proof, notes=(*proof.notes, f"in {int((~live).sum())} of {len(live)} rows, {name} {FOLDED}"))
        return proof


def channel_scales(model: nn.Module) -> list[Array]:
    """What a converter can fold into weights: factors of batch norms, and other vectors and numbers, but no biases."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            scale = (module.running_var + module.eps).rsqrt()
            found.append(scale if module.weight is None else scale * module.weight)
            continue
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        held += [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]
        found += [
            value
            for name, value in held
            if value.numel() == max(value.shape, default=1) and "bias" not in name and "running" not in name
        ]
    return [value.detach().cpu().float().numpy().reshape(-1).astype(np.float64) for value in found]


def layer_of(
    name: str, shape: tuple[int, ...], zeros: int, total: int, stored: str, matches: Sequence[Match]
) -> ExportedLayer:
    """The row of one parameter; a parameter that was stored more than once counts all its copies."""
    unique = {constant.name: constant for match in matches for constant in match.constants}
    constants = list(unique.values())
    return ExportedLayer(
        name,
        tuple(shape),
        zeros,
        total,
        stored,
        sum(constant.nbytes for constant in constants),
        sum(constant.dense_nbytes for constant in constants),
        any(match.scaled for match in matches),
        max(match.rounded_away for match in matches),
        max(match.max_error for match in matches),
        tuple(constant.name for constant in constants),
    )


def why_dense(constant: Constant, package: Package, *, guessed: bool) -> tuple[str, bool]:
    """How a pruned weight is stored, why if densely, and whether that is as it should be."""
    if constant.sparse:
        return constant.encoding, True
    if np.count_nonzero(constant.values) > (1 - BREAK_EVEN) * constant.values.size:
        return f"dense (fewer than {BREAK_EVEN:.1%} zeros, which takes less than sparse)", True
    if constant.values.size < INLINE_BELOW:
        return f"dense (fewer than {INLINE_BELOW} values)", True
    readers = sorted({op.type for op, _ in package.uses[constant.name]})
    return f"dense (read by {', '.join(readers)})", guessed and not set(readers) & set(SPARSE_OPERATIONS)


def missing(name: str, weight: Array, package: Package, standalone: Standalone) -> str:
    """Why a parameter is not among the constants; begins with ``unused`` if the outputs do not depend on it."""
    if not matters(name, standalone):
        return f"unused: {name} has no influence on the outputs and is not in the package"
    for constant in package.constants.values():
        copies = constant.values.size / weight.size
        if (
            copies > 1
            and copies.is_integer()
            and constant.values.shape[-1] in weight.shape
            and copied(constant.values, weight)
        ):
            return f"{name}: stored {int(copies)} times over, as {constant.name!r}"
    return (
        f"{name}: no constant of the package has its zeros and values. If forward computes another tensor from it (a "
        "weight norm, a scaling), make that tensor the parameter first; if it is not pruned, pass masks= without it"
    )


def copied(values: Array, weight: Array) -> bool:
    """Whether an array is the same matrix many times over."""
    stack = values.reshape(-1, *values.shape[-2:])
    return weight.ndim == 2 and stack.shape[1:] in (weight.shape, weight.T.shape) and bool((stack == stack[0]).all())


def matters(name: str, standalone: Standalone) -> bool:
    """Whether the outputs depend on a parameter: whether they become NaN when it does."""
    parameter = standalone.model.get_parameter(name)
    kept = parameter.detach().clone()
    try:
        with torch.no_grad(), kept_buffers(standalone):
            parameter.fill_(torch.nan)
            outputs = standalone(*standalone.inputs)
    finally:
        parameter.data.copy_(kept)
    # Integer results cannot be NaN; they may still depend on it.
    return any(not output.is_floating_point() or bool(output.isnan().any()) for output in outputs)


def describe(findings: Findings) -> None:
    """Say in sentences what was found about the weights."""
    layers = findings.layers
    sparse = [layer for layer in layers if not layer.stored.startswith("dense")]
    if sparse:
        zeros = sum(layer.zeros for layer in sparse)
        findings.checks.append(
            f"{len(sparse)} of {len(layers)} pruned parameters are stored sparse; their {zeros:,} zeros are the masks'"
        )
        scaled = sum(layer.scaled for layer in sparse)
        folded = (
            f", {scaled} of them times one factor per output channel (a batch norm or scale folded in)"
            if scaled
            else ""
        )
        findings.checks.append(f"stored values are the model's, rounded to the precision of the package{folded}")
    if lost := sum(layer.rounded_away for layer in layers):
        findings.notes.append(
            f"{lost} kept weights are too small for the precision of the package: zero there, or its smallest number"
        )
    findings.notes.extend(
        f"{layer.name} is stored {layer.stored}" for layer in layers if layer.stored.startswith("dense")
    )
