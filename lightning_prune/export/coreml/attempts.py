"""Attempts at a package: each way to capture the network, with norms folded and, where that may fail, without."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.arguments import convert_arguments, renamed, wanted_names
from lightning_prune.export.coreml.compression import compressed, prove_compression
from lightning_prune.export.coreml.conversion import (
    FRONTENDS,
    capture,
    convert,
    quiet,
    save_package,
)
from lightning_prune.export.coreml.inputs import dynamic_dims, program_inputs
from lightning_prune.export.coreml.interface import (
    refuse_states_that_were_not_asked_for,
    state_notes,
)
from lightning_prune.export.coreml.mil import Package, import_coremltools, read_package
from lightning_prune.export.coreml.running import program_of, prove_on_device
from lightning_prune.export.coreml.settings import FORMAT, CoreMLSettings
from lightning_prune.export.coreml.weights import prove_weights
from lightning_prune.export.declared import values_of
from lightning_prune.export.draws import largest_values
from lightning_prune.export.failures import not_made, summary
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.proof import prove_numbers
from lightning_prune.export.result import ExportResult
from lightning_prune.export.standalone import Standalone

__all__ = ["first_proven"]

logger = logging.getLogger(__name__)


def first_proven(
    settings: CoreMLSettings, standalone: Standalone, pruned: Mapping[str, Tensor], place: Path, *, guessed: bool
) -> ExportResult:
    """The first frontend's result whose package passes verification; the package lies at ``place``."""
    failures: list[tuple[str, Exception]] = []
    # Where folding may go wrong, each frontend has a second try without it.
    foldings = (True, False) if folding_may_fail(standalone.model) else (True,)
    for frontend, fold in product(FRONTENDS if settings.frontend == "auto" else (settings.frontend,), foldings):
        try:
            result = attempt(settings, frontend, standalone, pruned, place, guessed=guessed, fold_norms=fold)
            return replace(result, attempts=tuple(f"frontend {name}: {summary(error)}" for name, error in failures))
        except OSError:
            raise  # a full disk is full for every frontend
        except Exception as error:
            logger.debug("Core ML export with frontend %r failed", frontend, exc_info=error)
            failures.append((frontend if fold else f"{frontend}, no norms folded", error))
            shutil.rmtree(place, ignore_errors=True)
    tried = [f"frontend {name}: {summary(error)}" for name, error in failures]
    raise ExportError(
        "\n".join([not_made(FORMAT, standalone.model, Path(settings.path)), *map("  {}".format, tried)])
    ) from failures[0][1]


def attempt(
    settings: CoreMLSettings,
    frontend: str,
    standalone: Standalone,
    pruned: Mapping[str, Tensor],
    place: Path,
    *,
    guessed: bool,
    fold_norms: bool = True,
) -> ExportResult:
    """Convert with one frontend, save at ``place``, and verify what was saved."""
    ct = import_coremltools()
    arguments = convert_arguments(settings, ct, standalone, fold_norms=fold_norms)
    if frontend != "trace" and not settings.states and arguments["minimum_deployment_target"] >= ct.target.iOS18:
        refuse_states_that_were_not_asked_for(standalone)
    program, notes = capture(frontend, standalone, dynamic_dims(arguments["inputs"]))
    wanted = wanted_names(arguments, standalone)  # the converter changes them in place
    with quiet() as heard:
        # The converter adds the states to the list of inputs.
        converted = convert(ct, program, {**arguments, "inputs": list(arguments["inputs"])})
        save_package(converted, place)
    package = read_package(place)
    values = values_of(settings.input_values, settings.called(standalone.input_names), standalone.inputs)
    inputs = program_inputs(arguments["inputs"], standalone, package, largest_values(standalone), values)
    findings = Findings(notes=[*notes, *heard, *renamed(wanted, package), *state_notes(standalone, package)])
    if not fold_norms:
        findings.notes.append("batch norms are not folded into weights: with them folded, verification failed")
    prove_weights(package, standalone, pruned, findings, guessed=guessed)
    prove_numbers(program_of(package, settings.compute_precision), standalone, inputs, findings)
    if settings.compression is None:
        return result_of(ct, package, standalone, inputs, findings, frontend)
    with quiet() as heard:
        save_package(compressed(ct, converted, settings.compression), place)
    findings.notes.extend(heard)
    smaller = read_package(place)
    proof = prove_compression(package, smaller, standalone, inputs, findings)
    result = result_of(ct, smaller, standalone, inputs, findings, frontend)
    return replace(result, compression_error=proof)


def result_of(
    ct: Any,
    package: Package,
    standalone: Standalone,
    inputs: Sequence[ProgramInput],
    findings: Findings,
    frontend: str,
) -> ExportResult:
    """What was found about a package that passed."""
    if sys.platform == "darwin":
        prove_on_device(ct, package, standalone, inputs, findings)
    used = [package.constants[name] for name in package.uses if package.constants[name].encoding != "dense"]
    dense = package.nbytes + sum(constant.dense_nbytes - constant.nbytes for constant in used)
    return findings.result(FORMAT, package.path, package.nbytes, dense, frontend=frontend)


def folding_may_fail(model: nn.Module) -> bool:
    """Whether a model has what Core ML Tools 9.0 folds batch norms into wrongly: grouped transposed convolutions.

    It mixes up their channels, but not those of depthwise ones.
    """
    return any(
        isinstance(module, nn.modules.conv._ConvTransposeNd) and 1 < module.groups < module.in_channels
        for module in model.modules()
    )
