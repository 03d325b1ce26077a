"""A Core ML package as a program that can be run: its operations on torch kernels, or Core ML itself where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.inputs import ImageInput
from lightning_prune.export.coreml.mil import Package, run, tensors_of
from lightning_prune.export.draws import draw_inputs
from lightning_prune.export.findings import Findings, wrong_numbers
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.numbers import difference
from lightning_prune.export.proof import Answers, Program
from lightning_prune.export.standalone import Standalone

__all__ = ["outputs_of", "program_of", "prove_on_device"]


# Core ML itself computes in float16 too, not only stores in it.
DEVICE_TOLERANCE = 5e-2


def outputs_of(package: Package, calls: int = 1) -> list[str]:
    """The program's outputs that are tensors, of one call after the other; of a classifier, the probabilities."""
    names = next((op.outputs[1][:1] for op in package.main.operations if op.type == "classify"), package.main.outputs)
    return [of_call(name, at) for at in range(calls) for name in names]


def program_of(package: Package, precision: str) -> Program:
    """A package as it is read from disk, to be run by torch.

    Args:
        package: What was read.
        precision: ``"float16"`` or ``"float32"``, in which it computes.
    """
    calls = 2 if package.states else 1

    tensors = tensors_of(package)

    def run_all(inputs: Mapping[str, Tensor]) -> Answers:
        return run_calls(package, inputs, calls, tensors)

    # States are float16, whatever is computed in.
    return Program(outputs_of(package, calls), run_all, "float16" if package.states else precision, calls, "package")


def run_calls(package: Package, inputs: Mapping[str, Tensor], calls: int, tensors: Mapping[str, Any]) -> Answers:
    """Run a program several times with the same inputs, each time with the states that the last call left."""
    outputs, skipped, overflowed = dict[str, Tensor](), list[str](), list[str]()
    states: Mapping[str, Any] = {}
    for at in range(calls):
        result = run(package, inputs, tensors, states=states)
        outputs.update((of_call(name, at), value) for name, value in result.outputs.items())
        skipped.extend(result.skipped)
        overflowed.extend(result.overflowed)
        states = result.states
    return Answers(outputs, skipped, overflowed)


def of_call(name: str, at: int) -> str:
    """What an output is called in the messages about a later call than the first."""
    return f"{name} of the second call" if at else name


def prove_on_device(
    ct: Any, package: Package, standalone: Standalone, inputs: Sequence[ProgramInput], findings: Findings
) -> None:
    """Let Core ML itself run the package on a fresh input, which it can on macOS; what was found goes to ``findings``.

    Raises:
        ExportError: An output differs by more than computing in float16 explains.
    """
    if any(isinstance(spec, ImageInput) for spec in inputs):
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
                raise ExportError(wrong_numbers("package", name, errors[-1], DEVICE_TOLERANCE, "other values"))
    findings.checks.append(f"Core ML's own results are the model's; largest error {max(errors):.1e}")
