"""What verification found of a file, collected, and said in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_prune.export.draws import integer_range
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.numbers import SAYS_LITTLE
from lightning_prune.export.result import ExportedLayer, ExportResult
from lightning_prune.export.standalone import Standalone

__all__ = ["OVERFLOWS", "Findings", "Tally", "advice", "report_inputs", "report_numbers", "wrong_numbers"]


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

    def result(
        self,
        format: str,
        path: Path,
        nbytes: int,
        dense_nbytes: int,
        *,
        frontend: str = "",
        attempts: Sequence[str] = (),
    ) -> ExportResult:
        """The result of an export whose file passed.

        Args:
            format: What sort of file it is; see :class:`~lightning_prune.export.result.ExportResult`.
            path: Where it lies.
            nbytes: Bytes of it.
            dense_nbytes: Bytes that it would take with every weight stored densely.
            frontend: How the network was captured.
            attempts: What was tried before, and why it failed.
        """
        return ExportResult(
            path,
            nbytes,
            dense_nbytes,
            tuple(self.layers),
            frontend,
            tuple(self.checks),
            tuple(self.not_checked),
            tuple(self.notes),
            self.max_error,
            near_error=self.near_error,
            far_error=self.far_error,
            attempts=tuple(attempts),
            format=format,
        )


@dataclass
class Tally:
    """What came of some of the fresh inputs: how many, and by output the largest error and the largest allowed."""

    inputs: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, error: float, allowed: float) -> None:
        """Count an output at an input."""
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        self.allowed[name] = max(allowed, self.allowed.get(name, 0.0))

    def __str__(self) -> str:
        return (
            f"largest error {max(self.errors.values()):.1e} of an output's largest value "
            f"(allowed: {max(self.allowed.values()):.0e})"
        )


def report_numbers(
    findings: Findings, near: Tally, far: Tally, skipped: set[str], overflowed: set[str], *, calls: int, noun: str
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
            f"example: that the {noun} gives the same says little"
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
            f'{noun} may give infinities. Write compute_precision="float32"'
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


OVERFLOWS = (
    " Its numbers are not finite where those of the model are, as float16 ends at 65,504: write "
    'compute_precision="float32".'
)


def wrong_numbers(noun: str, output: str, error: float, allowed: float, what: str, whose: str = "its") -> str:
    """The message for an output that is not the model's."""
    return (
        f"The {noun} computes something else than the model: output {output!r} differs by {error:.1e} of {whose} "
        f"largest value (allowed: {allowed:.1e}) on a fresh input of {what} than the example's. Either "
        "capturing fixed a branch on the values of a tensor, or a number read out of one by .item() or float() (write "
        "both with torch.where and tensors), or the converter got an operation wrong (export parts of the model with "
        "submodule= to find which)."
    )


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
