"""Does a saved file compute what the model computes?

The file is read back from disk, and its program is run on fresh inputs, of other mean and scale than the example, and
must give what the model gives. A branch that depended on the example's values, or a number that capturing turned into a
constant, shows up here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.errors import ExportError
from lightning_prune.export.draws import DRAWS, FAR, call, draw_inputs, fresh_inputs, goes_far
from lightning_prune.export.findings import (
    OVERFLOWS,
    Findings,
    Tally,
    advice,
    report_inputs,
    report_numbers,
    wrong_numbers,
)
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.numbers import (
    SLICE_FLOOR,
    SLICE_REACH,
    TOLERANCE,
    difference,
    rounding_reach,
    slice_peaks,
    unexplained,
)
from lightning_prune.export.standalone import Standalone

__all__ = ["Answers", "Program", "prove_numbers"]


@dataclass(frozen=True)
class Answers:
    """What a program gave: its outputs by name, and what could not be known of them.

    Attributes:
        outputs: What could be computed; floating point numbers as float32, whole numbers as int64 or int32.
        skipped: Why the rest could not (``"op 'crop_resize'"``).
        overflowed: Intermediate results that do not fit into the precision of the file.
    """

    outputs: Mapping[str, Tensor]
    skipped: Sequence[str] = ()
    overflowed: Sequence[str] = ()


@dataclass(frozen=True)
class Program:
    """A saved file that was read back, to be run.

    Attributes:
        outputs: The names of what it gives in all calls, in the order in which the model gives them.
        run: Gives the answers to inputs by name.
        precision: ``"float16"`` or ``"float32"``, the lower of those of its weights and of its computing.
        calls: How often it is called with the same inputs, one call after the other: twice if it keeps states.
        noun: What the file is called in sentences.
        patience: Seconds that all runs together may take; two are made in any case. None: as many as there are inputs.
    """

    outputs: Sequence[str]
    run: Callable[[Mapping[str, Tensor]], Answers]
    precision: str = "float32"
    calls: int = 1
    noun: str = "file"
    patience: float | None = None


def prove_numbers(program: Program, standalone: Standalone, inputs: Sequence[ProgramInput], findings: Findings) -> None:
    """Run a program on fresh inputs and compare it with the model; what was found goes to ``findings``.

    Args:
        program: Called ``program.calls`` times with each input, and so is the model.
        standalone: The model.
        inputs: The program's inputs, in the order of the model's.
        findings: Is added to.

    Raises:
        ExportError: An output differs by more than rounding explains.
    """
    calls, precision = program.calls, program.precision
    variants = max(len(spec.shapes) for spec in inputs)
    trials = [(draw, 0) for draw in range(len(DRAWS) + 1)] + [(0, variant) for variant in range(1, variants)]
    near, far = Tally(), Tally()
    seen: dict[tuple[str, torch.Size], list[Trial]] = {}
    skipped, overflowed = set[str](), set[str]()
    random = random_outputs(program, standalone)
    redrawn: dict[str, list[tuple[float, str]]] = {}
    wanders = goes_far(inputs, standalone.inputs)
    seconds: list[float] = []
    for draw, variant in trials:
        if program.patience is not None and len(seconds) > 1 and sum(seconds) + seconds[-1] > program.patience:
            findings.notes.append(
                f"{len(seconds)} of {len(trials)} fresh inputs were run: a run of the {program.noun} here takes "
                f"{seconds[-1]:.0f} seconds"
            )
            break
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
        began = time.monotonic()
        found = program.run({spec.name: value for spec, value in zip(inputs, drawn.inputs, strict=True)})
        seconds.append(time.monotonic() - began)
        skipped.update(found.skipped)
        if not is_far:  # far inputs may lie outside of what the network is made for
            overflowed.update(found.overflowed)
        for at, (name, want) in enumerate(zip(program.outputs, drawn.expected, strict=True)):
            error = difference(found.outputs[name], want) if name in found.outputs else None
            if error is None or name in random:
                continue
            allowed = TOLERANCE[precision]
            if allowed < error < torch.inf:
                reach = rounding_reach(standalone, drawn.fed, at, want, precision, calls=calls)
                error, allowed = unexplained(found.outputs[name], want, reach, error, allowed)
            if error > allowed:
                other = "another shape" if variant else "another mean and scale" if is_far else "other values"
                wider = OVERFLOWS if precision == "float16" and error == torch.inf else ""
                wrong = wrong_numbers(program.noun, name, error, allowed, other)
                raise ExportError(wrong + wider + advice(inputs, standalone))
            tally.add(name, error, allowed)
            if want.is_floating_point():
                apart = (found.outputs[name].reshape(want.shape) - want).nan_to_num(0.0, 0.0, 0.0)
                trial = Trial(at, drawn.fed, slice_peaks(want), slice_peaks(apart), calls)
                seen.setdefault((name, want.shape), []).append(trial)
    for (name, _), trials_of in seen.items():
        if len(trials_of) > len(DRAWS):  # in one draw alone a slice may hold one value, whose size says nothing
            prove_slices(name, trials_of, standalone, program)
    report_numbers(findings, near, far, skipped, overflowed, calls=calls, noun=program.noun)
    findings.not_checked.extend(f"the numbers of {name}: the model is random in eval mode" for name in sorted(random))
    report_inputs(findings, inputs, standalone, redrawn, near.inputs + far.inputs)
    compared = {*near.errors, *far.errors}
    unknown = [name for name in program.outputs if name not in compared and name not in random]
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


def random_outputs(program: Program, standalone: Standalone) -> set[str]:
    """The outputs that differ between two times with the same inputs."""
    first, second = (call(standalone, standalone.inputs, calls=program.calls) for _ in range(2))
    return {
        name
        for name, output, again in zip(program.outputs, first, second, strict=True)
        if not torch.equal(output.nan_to_num(), again.nan_to_num())
    }


@dataclass(frozen=True)
class Trial:
    """An output at a fresh input: which of the model's, the input, each slice's largest value and error, the calls."""

    at: int
    inputs: Sequence[Tensor]
    peaks: Tensor
    errors: Tensor
    calls: int = 1


def prove_slices(name: str, trials: Sequence[Trial], standalone: Standalone, program: Program) -> None:
    """Judge each slice of an output by its own largest value in all trials.

    Boxes in pixels and scores in [0, 1] often lie in one tensor, of which the largest value would forgive any score.

    Raises:
        ExportError: A slice differs by more than rounding explains.
    """
    peaks = torch.stack([trial.peaks for trial in trials]).amax(0)
    if not peaks.numel():
        return
    precision = program.precision
    scale = peaks.clamp(min=max(SLICE_FLOOR / TOLERANCE[precision] * float(peaks.max()), 1e-12))
    for trial in trials:
        error = trial.errors / scale
        if bool((error <= TOLERANCE[precision]).all()):
            continue

        def allowed_by(reach: Tensor) -> Tensor:
            moved = slice_peaks(reach.clamp(max=torch.finfo(torch.float32).max)) / scale  # infinite where it overflows
            return (SLICE_REACH * moved).clamp(min=TOLERANCE[precision])

        def explains(reach: Tensor, error: Tensor = error) -> bool:
            return bool((error <= allowed_by(reach)).all())

        want = call(standalone, trial.inputs, calls=trial.calls)[trial.at]
        # More tries than for a whole output, where they are needed: a slice of few values may hardly move in four.
        reach = rounding_reach(
            standalone, trial.inputs, trial.at, want, precision, tries=8, calls=trial.calls, enough=explains
        )
        allowed = allowed_by(reach)
        worst = int((error / allowed).argmax())
        if error[worst] > allowed[worst]:
            raise ExportError(
                wrong_numbers(
                    program.noun, name, float(error[worst]), float(allowed[worst]), "other values", "one slice's"
                )
            )
