"""Does a saved package compute what the model computes?

The package is read back from disk, and its program is run on fresh inputs, of other mean and scale than the example,
and must give what the model gives. A branch that depended on the example's values, or a number that capturing turned
into a constant, shows up here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_prune.coreml_inputs import DRAWS, ProgramInput, fresh_inputs, integer_range
from lightning_prune.coreml_result import ExportedLayer
from lightning_prune.errors import ExportError
from lightning_prune.mil import Package
from lightning_prune.mil_run import run
from lightning_prune.standalone import Standalone, kept_buffers

__all__ = [
    "TOLERANCE",
    "Findings",
    "call",
    "difference",
    "outputs_of",
    "prove_numbers",
    "prove_on_device",
]

Array = npt.NDArray[Any]

# Largest difference of an output, as a fraction of its largest value, that rounding explains in an ordinary network.
TOLERANCE = {"float16": 5e-3, "float32": 1e-4}
# In a network that amplifies rounding, what moving its weights by so many roundings does to the model itself.
ROUNDINGS = 10
# Relative size of one rounding.
ROUNDING = {"float16": 2.0**-11, "float32": 2.0**-22}
# What a slice of an output may always be off by, as a fraction of the output's largest value: a sum of large numbers
# that comes out small is no more exact than they are.
SLICE_FLOOR = 2.0**-18
# How many times as far as rounding its weights moves it, for numbers in the program are rounded too.
SLICE_REACH = 4
# Core ML itself computes in float16 too, not only stores in it.
DEVICE_TOLERANCE = 5e-2


@dataclass
class Findings:
    """What verification found, to be put into the result."""

    layers: list[ExportedLayer] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    max_error: float | None = None
    turned: list[str] = field(default_factory=list)


def prove_numbers(
    package: Package, standalone: Standalone, inputs: Sequence[ProgramInput], findings: Findings, *, precision: str
) -> None:
    """Run a package's program on fresh inputs and compare it with the model; what was found goes to ``findings``.

    Raises:
        ExportError: An output differs by more than rounding explains.
    """
    variants = max(len(spec.shapes) for spec in inputs)
    trials = [(draw, 0) for draw in range(len(DRAWS) + 1)] + [(0, variant) for variant in range(1, variants)]
    errors: dict[str, float] = {}
    seen: dict[tuple[str, torch.Size], list[Trial]] = {}
    most = TOLERANCE[precision]
    skipped, overflowed = set[str](), set[str]()
    random = random_outputs(package, standalone)
    for draw, variant in trials:
        given = fresh_inputs(inputs, standalone.inputs, draw, variant)
        fed = [spec.to_model(value) for spec, value in zip(inputs, given, strict=True)]
        try:
            expected = call(standalone, fed)
        except Exception as failure:
            if not variant:
                raise
            shapes = ", ".join(str(tuple(value.shape)) for value in fed)
            findings.not_checked.append(f"the shapes {shapes}: the model itself fails at them ({failure})")
            continue
        found = run(package, {spec.name: value for spec, value in zip(inputs, given, strict=True)})
        skipped.update(found.skipped)
        if draw in (0, len(DRAWS)):  # the others may lie outside of what the network is made for
            overflowed.update(found.overflowed)
        for at, (name, want) in enumerate(zip(outputs_of(package), expected, strict=True)):
            error = difference(found.outputs[name], want) if name in found.outputs else None
            if error is None or name in random:
                continue
            allowed = TOLERANCE[precision]
            if allowed < error < torch.inf:
                reach = rounding_reach(standalone, fed, at, want, precision)
                error, allowed = unexplained(found.outputs[name], want, reach, error, allowed)
            if error > allowed:
                raise ExportError(wrong_numbers(name, error, allowed, "shape" if variant else "mean and scale"))
            errors[name] = max(error, errors.get(name, 0.0))
            most = max(most, allowed)
            if want.is_floating_point():
                apart = (found.outputs[name].reshape(want.shape) - want).nan_to_num(0.0, 0.0, 0.0)
                seen.setdefault((name, want.shape), []).append(Trial(at, fed, slice_peaks(want), slice_peaks(apart)))
    for (name, _), trials_of in seen.items():
        if len(trials_of) > len(DRAWS):  # in one draw alone a slice may hold one value, whose size says nothing
            prove_slices(name, trials_of, standalone, precision)
    report_numbers(findings, errors, skipped, overflowed, most, len(trials))
    findings.not_checked.extend(f"the numbers of {name}: the model is random in eval mode" for name in sorted(random))
    for spec, example in zip(inputs, standalone.inputs, strict=True):
        if spec.scale is None and not example.is_floating_point() and example.dtype != torch.bool:
            bottom, top = integer_range(spec, example)
            if bottom == top:
                findings.not_checked.append(f"other values of {spec.name} than {top}: none is known to be taken")
    unknown = [name for name in outputs_of(package) if name not in errors and name not in random]
    if findings.turned:
        known = findings.not_checked if skipped or unknown or random else findings.notes
        known.append(
            f"channels of {', '.join(findings.turned)} are stored with another sign or as zeros, by a factor that is "
            "no parameter or buffer of the model: the outputs alone tell that it is right"
        )
    if unknown and not skipped:
        findings.not_checked.append(
            f"the numbers of {', '.join(unknown)}: the model gives nothing finite on fresh inputs"
        )


@dataclass(frozen=True)
class Trial:
    """One output at one input: which of the model's, the input, and each slice's largest value and error."""

    at: int
    inputs: Sequence[Tensor]
    peaks: Tensor
    errors: Tensor


def slice_peaks(values: Tensor) -> Tensor:
    """The largest finite magnitude of each slice along the dimension of channels, then along the last one."""
    dims = sorted({min(1, values.ndim - 1), values.ndim - 1}) if values.numel() and values.ndim else []
    size = values.abs().nan_to_num(0.0, 0.0)
    return torch.cat([torch.zeros(0), *(size.movedim(dim, 0).reshape(size.shape[dim], -1).amax(1) for dim in dims)])


def prove_slices(name: str, trials: Sequence[Trial], standalone: Standalone, precision: str) -> None:
    """Judge each slice of an output by its own largest value in all trials.

    Boxes in pixels and scores in [0, 1] often lie in one tensor, of which the largest value would forgive any score.

    Raises:
        ExportError: A slice differs by more than rounding explains.
    """
    peaks = torch.stack([trial.peaks for trial in trials]).amax(0)
    if not peaks.numel():
        return
    scale = peaks.clamp(min=max(SLICE_FLOOR / TOLERANCE[precision] * float(peaks.max()), 1e-12))
    for trial in trials:
        error, allowed = trial.errors / scale, torch.tensor(TOLERANCE[precision])
        if bool((error <= allowed).all()):
            continue
        want = call(standalone, trial.inputs)[trial.at]
        # More tries than for a whole output: a slice of few values may have hardly moved in each of four.
        reach = rounding_reach(standalone, trial.inputs, trial.at, want, precision, tries=8)
        reach = slice_peaks(reach.clamp(max=torch.finfo(torch.float32).max)) / scale  # infinite where it overflows
        allowed = torch.maximum(allowed, SLICE_REACH * reach)
        worst = int((error / allowed).argmax())
        if error[worst] > allowed[worst]:
            raise ExportError(
                wrong_numbers(name, float(error[worst]), float(allowed[worst]), "mean and scale", "one slice's")
            )


def random_outputs(package: Package, standalone: Standalone) -> set[str]:
    """The outputs that differ between two calls with the same inputs."""
    first, second = call(standalone, standalone.inputs), call(standalone, standalone.inputs)
    return {
        name
        for name, one, other in zip(outputs_of(package), first, second, strict=True)
        if not torch.equal(one.nan_to_num(), other.nan_to_num())
    }


def wrong_numbers(output: str, error: float, allowed: float, what: str, whose: str = "its") -> str:
    """The message for an output that is not the model's."""
    return (
        f"The package computes something else than the model: output {output!r} differs by {error:.1e} of {whose} "
        f"largest value (allowed: {allowed:.1e}) on a fresh input of another {what} than the example's. Either "
        "capturing fixed a branch on the values of a tensor, or a number read out of one by .item() or float() (write "
        "both with torch.where and tensors), or the converter got an operation wrong (export parts of the model with "
        "submodule= to find which)."
    )


def report_numbers(
    findings: Findings,
    errors: Mapping[str, float],
    skipped: set[str],
    overflowed: set[str],
    allowed: float,
    trials: int,
) -> None:
    """Say in sentences what was found about the numbers."""
    findings.not_checked.extend(f"numbers that depend on {reason}" for reason in sorted(skipped))
    if errors:
        findings.max_error = max(errors.values())
        findings.checks.append(
            f"the program, run on {trials} fresh inputs, gives the model's {', '.join(errors)}; largest error "
            f"{findings.max_error:.1e} of an output's largest value (allowed: {allowed:.0e})"
        )
    if overflowed:
        findings.notes.append(
            f"{len(overflowed)} intermediate results are too large for float16, such as that of {min(overflowed)}: the "
            'package may give infinities. Write compute_precision="float32"'
        )


def prove_on_device(
    ct: Any, package: Package, standalone: Standalone, inputs: Sequence[ProgramInput], findings: Findings
) -> None:
    """Let Core ML itself run the package on a fresh input, which it can on macOS; what was found goes to ``findings``.

    Raises:
        ExportError: An output differs by more than computing in float16 explains.
    """
    if any(spec.scale is not None for spec in inputs):
        findings.not_checked.append("Core ML's own results: the package takes images")
        return
    model = ct.models.MLModel(str(package.path), compute_units=ct.ComputeUnit.CPU_ONLY)
    given = fresh_inputs(inputs, standalone.inputs, 0)
    arrays = [value.numpy() if value.is_floating_point() else value.numpy().astype(np.int32) for value in given]
    found = model.predict({spec.name: array for spec, array in zip(inputs, arrays, strict=True)})
    errors = [0.0]
    for name, want in zip(outputs_of(package), call(standalone, given), strict=True):
        # Of nearly equal values, computing in float16 may well find another one to be the largest: no integers here.
        if isinstance(found.get(name), np.ndarray) and want.is_floating_point():
            errors.append(difference(torch.from_numpy(found[name]), want) or 0.0)
            if not errors[-1] <= DEVICE_TOLERANCE:
                raise ExportError(wrong_numbers(name, errors[-1], DEVICE_TOLERANCE, "mean and scale"))
    findings.checks.append(f"Core ML's own results are the model's; largest error {max(errors):.1e}")


def outputs_of(package: Package) -> list[str]:
    """The program's outputs that are tensors; of a classifier, the probabilities."""
    for op in package.main.operations:
        if op.type == "classify":
            return [op.outputs[1][0]]
    return list(package.main.outputs)


def call(
    standalone: Standalone, inputs: Sequence[Tensor], state: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The model's outputs, optionally with other parameters and buffers; it stays as it was."""
    with torch.no_grad(), kept_buffers(standalone):
        outputs: tuple[Tensor, ...] = torch.func.functional_call(standalone, dict(state or {}), tuple(inputs))
    return outputs


def rounding_reach(
    standalone: Standalone, inputs: Sequence[Tensor], at: int, want: Tensor, precision: str, tries: int = 4
) -> Tensor:
    """How far each value of one output moves when parameters and buffers move by ``ROUNDINGS`` roundings, at most."""
    generator = torch.Generator().manual_seed(0)
    reach = torch.zeros(want.shape)
    values = [*standalone.named_parameters(), *standalone.named_buffers()]
    for _ in range(tries):
        state = {}
        for name, value in values:
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator) * 2 - 1
                state[name] = value.detach() * (1 + ROUNDINGS * ROUNDING[precision] * noise)
        moved = (call(standalone, inputs, state)[at].double() - want.double()).abs()
        reach = torch.maximum(reach, moved.nan_to_num(nan=torch.inf).float())
    return reach


def unexplained(found: Tensor, want: Tensor, reach: Tensor, error: float, allowed: float) -> tuple[float, float]:
    """The error and its bound once it is known how far rounding reaches.

    Floating point numbers may be as far off as rounding moves any of them. Integers may differ where rounding changes
    them, such as the position of the largest of two nearly equal values.
    """
    if not want.is_floating_point():
        return float(((found.reshape(want.shape) != want) & (reach == 0)).float().mean()), allowed
    finite = want.isfinite()
    scale = want[finite].abs().max().clamp(min=1e-12)
    return error, max(allowed, float(reach[finite].max() / scale))


def difference(found: Tensor, expected: Tensor) -> float | None:
    """How far two results are apart: the largest difference as a fraction of the largest expected value.

    Infinities and NaN must be in the same places, else the difference is infinite. Of integers it is the fraction that
    differs. None if there is nothing finite to compare.
    """
    found = found.reshape(expected.shape) if found.numel() == expected.numel() else found
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((found != expected).float().mean()) if expected.numel() else None
    finite = expected.isfinite()
    if not finite.any():
        return None
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    scale = expected[finite].abs().max().clamp(min=1e-12)
    return float((found[finite] - expected[finite]).abs().max() / scale)
