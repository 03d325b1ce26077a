"""Does a saved package compute what the model computes?

The package is read back from disk, and its program is run on fresh inputs, of other mean and scale than the example,
and must give what the model gives. A branch that depended on the example's values, or a number that capturing turned
into a constant, shows up here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.draws import DRAWS, FAR, call, draw_inputs, fresh_inputs, goes_far, integer_range
from lightning_prune.export.coreml.inputs import ProgramInput
from lightning_prune.export.coreml.mil import Package, Run, run
from lightning_prune.export.coreml.result import ExportedLayer
from lightning_prune.export.standalone import Standalone

__all__ = [
    "TOLERANCE",
    "Findings",
    "difference",
    "outputs_of",
    "prove_numbers",
    "prove_on_device",
]


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
# Where rounding moves an output this far, as a fraction of its largest value, its numbers prove little.
SAYS_LITTLE = 0.1
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
    near_error: float | None = None
    far_error: float | None = None
    turned: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What came of some of the fresh inputs: how many, and by output the largest error and the largest allowed."""

    inputs: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, error: float, allowed: float) -> None:
        """Count one output of one input."""
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        self.allowed[name] = max(allowed, self.allowed.get(name, 0.0))

    def __str__(self) -> str:
        return (
            f"largest error {max(self.errors.values()):.1e} of an output's largest value "
            f"(allowed: {max(self.allowed.values()):.0e})"
        )


def prove_numbers(
    package: Package, standalone: Standalone, inputs: Sequence[ProgramInput], findings: Findings, *, precision: str
) -> None:
    """Run a package's program on fresh inputs and compare it with the model; what was found goes to ``findings``.

    A program with states is called twice with each input, and so is the model.

    Raises:
        ExportError: An output differs by more than rounding explains.
    """
    calls = 2 if package.states else 1
    precision = "float16" if package.states else precision  # states are float16, whatever is computed in
    variants = max(len(spec.shapes) for spec in inputs)
    trials = [(draw, 0) for draw in range(len(DRAWS) + 1)] + [(0, variant) for variant in range(1, variants)]
    near, far = Tally(), Tally()
    seen: dict[tuple[str, torch.Size], list[Trial]] = {}
    skipped, overflowed = set[str](), set[str]()
    random = random_outputs(package, standalone, calls)
    redrawn: dict[str, list[tuple[float, str]]] = {}
    wanders = goes_far(inputs, standalone.inputs)
    for draw, variant in trials:
        try:
            drawn = draw_inputs(inputs, standalone, draw, variant, calls)
        except Exception as failure:
            if not variant:
                raise
            given = fresh_inputs(inputs, standalone.inputs, draw, variant)
            shapes = (tuple(spec.to_model(value).shape) for spec, value in zip(inputs, given, strict=True))
            findings.not_checked.append(
                f"the shapes {', '.join(map(str, shapes))}: the model itself fails at them ({failure})"
            )
            continue
        for name, share in drawn.shares.items():
            redrawn.setdefault(name, []).append((share, drawn.refusal))
        is_far = wanders and draw in FAR
        tally = far if is_far else near
        tally.inputs += 1
        found = run_calls(package, {spec.name: value for spec, value in zip(inputs, drawn.inputs, strict=True)}, calls)
        skipped.update(found.skipped)
        if not is_far:  # far inputs may lie outside of what the network is made for
            overflowed.update(found.overflowed)
        for at, (name, want) in enumerate(zip(outputs_of(package, calls), drawn.expected, strict=True)):
            error = difference(found.outputs[name], want) if name in found.outputs else None
            if error is None or name in random:
                continue
            allowed = TOLERANCE[precision]
            if allowed < error < torch.inf:
                reach = rounding_reach(standalone, drawn.fed, at, want, precision, calls=calls)
                error, allowed = unexplained(found.outputs[name], want, reach, error, allowed)
            if error > allowed:
                other = "another shape" if variant else "another mean and scale" if is_far else "other values"
                raise ExportError(wrong_numbers(name, error, allowed, other) + advice(inputs, standalone))
            tally.add(name, error, allowed)
            if want.is_floating_point():
                apart = (found.outputs[name].reshape(want.shape) - want).nan_to_num(0.0, 0.0, 0.0)
                trial = Trial(at, drawn.fed, slice_peaks(want), slice_peaks(apart), calls)
                seen.setdefault((name, want.shape), []).append(trial)
    for (name, _), trials_of in seen.items():
        if len(trials_of) > len(DRAWS):  # in one draw alone a slice may hold one value, whose size says nothing
            prove_slices(name, trials_of, standalone, precision)
    report_numbers(findings, near, far, skipped, overflowed, calls)
    findings.not_checked.extend(f"the numbers of {name}: the model is random in eval mode" for name in sorted(random))
    report_inputs(findings, inputs, standalone, redrawn, near.inputs + far.inputs)
    compared = {*near.errors, *far.errors}
    unknown = [name for name in outputs_of(package, calls) if name not in compared and name not in random]
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


def run_calls(package: Package, inputs: Mapping[str, Tensor], calls: int) -> Run:
    """Run a program several times with the same inputs, each time with the states that the last call left."""
    merged = Run()
    for at in range(calls):
        result = run(package, inputs, states=merged.states)
        merged.outputs.update((of_call(name, at), value) for name, value in result.outputs.items())
        merged.skipped.extend(result.skipped)
        merged.overflowed.extend(result.overflowed)
        merged.states = result.states
    return merged


def of_call(name: str, at: int) -> str:
    """What an output is called in the messages about a later call than the first."""
    return f"{name} of the second call" if at else name


def advice(inputs: Sequence[ProgramInput], standalone: Standalone) -> str:
    """What to try where an input was given values that it may never have."""
    whole = [
        spec.name
        for spec, example in zip(inputs, standalone.inputs, strict=True)
        if not example.is_floating_point() and spec.values is None
    ]
    if not whole:
        return ""
    return (
        f" If {whole[0]!r} takes certain values only, say so: input_values={{{whole[0]!r}: (smallest, largest)}}, or "
        '"fixed" for those of the example.'
    )


def report_inputs(
    findings: Findings,
    inputs: Sequence[ProgramInput],
    standalone: Standalone,
    redrawn: Mapping[str, Sequence[tuple[float, str]]],
    trials: int,
) -> None:
    """Say in sentences which inputs were not tried."""
    for spec, example in zip(inputs, standalone.inputs, strict=True):
        findings.not_checked.extend(spec.not_tried)
        if spec.values == "fixed":
            findings.notes.append(f"{spec.name} was given the example's values alone, as input_values says")
        elif spec.name in redrawn:
            again = redrawn[spec.name]
            refusal = f"the model refuses them ({again[0][1]})"
            if len(again) == trials and not any(share for share, _ in again):
                findings.not_checked.append(f"other values of {spec.name} than the example's: {refusal}")
            else:
                findings.notes.append(f"some values of {spec.name} were drawn again nearer to the example's: {refusal}")
        elif spec.values is None and not example.is_floating_point() and example.dtype != torch.bool:
            bottom, top = integer_range(spec, example)
            if bottom == top:
                findings.not_checked.append(f"other values of {spec.name} than {top}: none is known to be taken")


@dataclass(frozen=True)
class Trial:
    """One output at one input: which of the model's, the input, each slice's largest value and error, the calls."""

    at: int
    inputs: Sequence[Tensor]
    peaks: Tensor
    errors: Tensor
    calls: int = 1


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
        want = call(standalone, trial.inputs, calls=trial.calls)[trial.at]
        # More tries than for a whole output: a slice of few values may have hardly moved in each of four.
        reach = rounding_reach(standalone, trial.inputs, trial.at, want, precision, tries=8, calls=trial.calls)
        reach = slice_peaks(reach.clamp(max=torch.finfo(torch.float32).max)) / scale  # infinite where it overflows
        allowed = torch.maximum(allowed, SLICE_REACH * reach)
        worst = int((error / allowed).argmax())
        if error[worst] > allowed[worst]:
            raise ExportError(
                wrong_numbers(name, float(error[worst]), float(allowed[worst]), "other values", "one slice's")
            )


def random_outputs(package: Package, standalone: Standalone, calls: int) -> set[str]:
    """The outputs that differ between two times with the same inputs."""
    first, second = (call(standalone, standalone.inputs, calls=calls) for _ in range(2))
    return {
        name
        for name, one, other in zip(outputs_of(package, calls), first, second, strict=True)
        if not torch.equal(one.nan_to_num(), other.nan_to_num())
    }


def wrong_numbers(output: str, error: float, allowed: float, what: str, whose: str = "its") -> str:
    """The message for an output that is not the model's."""
    return (
        f"The package computes something else than the model: output {output!r} differs by {error:.1e} of {whose} "
        f"largest value (allowed: {allowed:.1e}) on a fresh input of {what} than the example's. Either "
        "capturing fixed a branch on the values of a tensor, or a number read out of one by .item() or float() (write "
        "both with torch.where and tensors), or the converter got an operation wrong (export parts of the model with "
        "submodule= to find which)."
    )


def report_numbers(
    findings: Findings, near: Tally, far: Tally, skipped: set[str], overflowed: set[str], calls: int
) -> None:
    """Say in sentences what was found about the numbers: on inputs like the example first."""
    findings.not_checked.extend(f"numbers that depend on {reason}" for reason in sorted(skipped))
    if near.errors:
        findings.near_error = max(near.errors.values())
        twice = ", called twice with each" if calls > 1 else ""
        findings.checks.append(
            f"the program, run on {near.inputs} fresh inputs like the example{twice}, gives the model's "
            f"{', '.join(near.errors)}; {near}"
        )
        findings.notes.extend(
            f"rounding alone moves the model's {name} by {allowed:.0e} of its largest value on inputs like the "
            "example: that the package gives the same says little"
            for name, allowed in near.allowed.items()
            if allowed > SAYS_LITTLE
        )
    if far.errors:
        findings.far_error = max(far.errors.values())
        findings.checks.append(
            f"and on {far.inputs} fresh inputs far from the example, in mean and scale, for which the network may not "
            f"be made; {far}"
        )
    findings.max_error = max([*near.errors.values(), *far.errors.values()], default=None)
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
    drawn = draw_inputs(inputs, standalone, 0)
    arrays = [value.numpy() if value.is_floating_point() else value.numpy().astype(np.int32) for value in drawn.inputs]
    state = {"state": model.make_state()} if package.states else {}
    found = model.predict({spec.name: array for spec, array in zip(inputs, arrays, strict=True)}, **state)
    errors = [0.0]
    for name, want in zip(outputs_of(package), drawn.expected, strict=True):
        # Of nearly equal values, computing in float16 may well find another one to be the largest: no integers here.
        if isinstance(found.get(name), np.ndarray) and want.is_floating_point():
            errors.append(difference(torch.from_numpy(found[name]), want) or 0.0)
            if not errors[-1] <= DEVICE_TOLERANCE:
                raise ExportError(wrong_numbers(name, errors[-1], DEVICE_TOLERANCE, "other values"))
    findings.checks.append(f"Core ML's own results are the model's; largest error {max(errors):.1e}")


def outputs_of(package: Package, calls: int = 1) -> list[str]:
    """The program's outputs that are tensors, of one call after the other; of a classifier, the probabilities."""
    names = next((op.outputs[1][:1] for op in package.main.operations if op.type == "classify"), package.main.outputs)
    return [of_call(name, at) for at in range(calls) for name in names]


def rounding_reach(
    standalone: Standalone,
    inputs: Sequence[Tensor],
    at: int,
    want: Tensor,
    precision: str,
    tries: int = 4,
    calls: int = 1,
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
        moved = (call(standalone, inputs, state, calls)[at].double() - want.double()).abs()
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
