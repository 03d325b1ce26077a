"""Compress the nonzero weights of a sparse package on top of its sparsity, and prove that nothing else changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.conversion import SPARSE_OPERATIONS
from lightning_prune.export.coreml.mil import Array, Constant, Package, repeat_to, run, tensors_of
from lightning_prune.export.coreml.running import outputs_of
from lightning_prune.export.draws import draw_inputs
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.numbers import TOLERANCE, difference
from lightning_prune.export.standalone import Standalone

__all__ = ["COMPRESSIONS", "compressed", "prove_compression"]


COMPRESSIONS = ("int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2", "palette1")


def compressed(ct: Any, converted: Any, kind: str) -> Any:
    """A converted model with the nonzero values of its weights quantized or palettized, but for the smallest."""
    coreml = ct.optimize.coreml
    bits = int(kind.removeprefix("int").removeprefix("palette"))
    if kind.startswith("int"):
        worth = 512
        how = coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=kind, granularity="per_channel", weight_threshold=worth
        )
    else:
        worth = max(512, 10 * 2**bits)  # a table of 2**bits float16 entries
        how = coreml.OpPalettizerConfig(mode="kmeans", nbits=bits, granularity="per_tensor", weight_threshold=worth)
    config = coreml.OptimizationConfig(op_type_configs=dict.fromkeys(SPARSE_OPERATIONS, how))
    apply = coreml.linear_quantize_weights if kind.startswith("int") else coreml.palettize_weights
    return apply(converted, config, joint_compression=True)


def prove_compression(
    plain: Package,
    smaller: Package,
    standalone: Standalone,
    inputs: Sequence[ProgramInput],
    findings: Findings,
) -> float | None:
    """Compare a compressed package with the sparse one that it was made of, which is proven.

    The zeros must be the same, each value must lie within the bound of its encoding, and the program must be the same
    but for its weights. The layers in ``findings`` are brought up to date, what was found is added.

    Returns:
        The largest error of an output against the model, as a fraction of the output's largest value; None if no output
        could be computed.

    Raises:
        ExportError: Zeros moved, a value is further off than its encoding allows, or the program changed.
    """
    found = matched_constants(plain, smaller)
    for name, after in found.items():
        before = plain.constants[name]
        if before.sparse and not (after.sparse and not np.any(after.values[before.values == 0])):
            raise ExportError(f"Compression moved the zeros of {name!r}.")
        if (share := quantization_error(before.values, after)) > 1:
            raise ExportError(f"Compression moved a value of {name!r} by {share:.2f} times what its encoding explains.")
    for at, layer in enumerate(findings.layers):
        constants = [found[name] for name in layer.constants]
        if all(constant.quantized for constant in constants):
            nbytes = sum(constant.nbytes for constant in constants)
            findings.layers[at] = replace(layer, stored=constants[0].encoding, nbytes=nbytes)
        else:
            findings.notes.append(
                f"{layer.name} is not compressed further: {layer.total} values are too few to gain by it"
            )
    moved = {name: after.values for name, after in found.items() if after.quantized}
    findings.checks.append(
        f"{len(moved)} compressed weights keep their zeros; values lie within their encoding's bound"
    )
    return prove_same_program(plain, smaller, moved, standalone, inputs, findings)


def prove_same_program(
    plain: Package,
    smaller: Package,
    moved: Mapping[str, Array],
    standalone: Standalone,
    inputs: Sequence[ProgramInput],
    findings: Findings,
) -> float | None:
    """Run the plain package with the compressed one's weights: it must give what the compressed one gives."""
    drawn = draw_inputs(inputs, standalone, 0)
    fed = {spec.name: value for spec, value in zip(inputs, drawn.inputs, strict=True)}
    wired, ran = run(plain, fed, tensors_of(plain, moved)).outputs, run(smaller, fed).outputs
    errors = []
    for name, want in zip(outputs_of(smaller), drawn.expected, strict=True):
        if name in ran and name in wired:
            if (difference(ran[name], wired[name]) or 0.0) > TOLERANCE["float32"]:
                raise ExportError(f"Compression changed more than weights: output {name!r} is another.")
            errors.append(difference(ran[name], want) or 0.0)
    if not errors:
        return None
    findings.checks.append(
        f"compression changed nothing but weights; it moves the outputs by {max(errors):.1e} of their largest value"
    )
    return max(errors)


def matched_constants(plain: Package, compressed: Package) -> dict[str, Constant]:
    """The constants of a compressed package, by the name in the plain package of those that the same operations read.

    Raises:
        ExportError: An operation no longer reads a constant.
    """
    by_use = {(op.name, key): compressed.constants[name] for name, uses in compressed.uses.items() for op, key in uses}
    found = {}
    for name, uses in plain.uses.items():
        for op, key in uses:
            if (op.name, key) not in by_use:
                raise ExportError(
                    f"Compression changed the program: {op.name!r} no longer reads {key!r} as a constant."
                )
            found[name] = by_use[op.name, key]
    return found


def quantization_error(before: Array, after: Constant) -> float:
    """The largest error of a compressed weight, in units of the largest that its encoding explains.

    With scales, a value may be off by half of its scale; with a table, it must have become the nearest entry. On top of
    that comes the rounding of the result to float16.
    """
    if not after.quantized or before.dtype.kind != "f":
        return 0.0
    exact, stored = before.astype(np.float64), after.values.astype(np.float64)
    if after.scale is not None:
        reach = 0.5 * np.abs(repeat_to(after.scale.astype(np.float64), exact.shape))
    else:
        reach = nearest_distance(exact, after)
    allowed = reach + 2.0**-10 * np.maximum(np.abs(exact), np.abs(stored)) + 2.0**-24
    error = np.where(exact != 0, np.abs(stored - exact), 0.0) if after.sparse else np.abs(stored - exact)
    return float((error / allowed).max(initial=0.0))


def nearest_distance(exact: Array, after: Constant) -> Array:
    """How far each value is from the nearest entry of the table."""
    table = np.unique(np.asarray(after.lut).astype(np.float64))
    high = np.clip(np.searchsorted(table, exact), 0, len(table) - 1)
    low = np.clip(high - 1, 0, None)
    distance: Array = np.minimum(np.abs(exact - table[low]), np.abs(exact - table[high]))
    return distance
