"""Core AI export of any finalized module: written sparse, read back, and run by Apple's own runtime."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.basics import as_flag, put_in_place, writing_to
from lightning_prune.errors import ExportError, one_line
from lightning_prune.export.coreai.asset import Asset, name_parameters, read_asset
from lightning_prune.export.coreai.capture import PREFIXES, capture
from lightning_prune.export.coreai.constants import folder_size
from lightning_prune.export.coreai.gaps import unknown_in
from lightning_prune.export.coreai.installed import CoreAI, import_coreai
from lightning_prune.export.coreai.runtime import loaded
from lightning_prune.export.coreai.silence import silence
from lightning_prune.export.coreai.storage import sparse_weights, store_sparse
from lightning_prune.export.coreai.weights import prove_weights, weight_fingerprint
from lightning_prune.export.declared import check_given_names, check_values, same_number, values_of
from lightning_prune.export.draws import largest_values
from lightning_prune.export.failures import as_export_error
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput, Values
from lightning_prune.export.proof import Answers, Program, prove_numbers
from lightning_prune.export.pruned import examples_of, part_of, pruned_copy
from lightning_prune.export.result import ExportResult
from lightning_prune.export.standalone import Standalone
from lightning_prune.export.structures import take_apart, unique
from lightning_prune.export.targets import check_choice, check_path, target_path

__all__ = ["CoreAIExport"]

FORMAT = "Core AI asset"
# Seconds that all runs of a file may take, if making it did not take longer: then they may take as long as that. The
# runtime is a reference, twenty times slower than torch on some networks.
PATIENCE = 5.0


@dataclass
class CoreAIExport:
    """Turn a finished network into an ``.aimodel`` of Apple's Core AI, and show that it is sparse and right.

    Weights with enough zeros are stored as a bit mask and their other values. The file is read back, and run by Apple's
    own runtime, which computes on Linux too. The model itself is never changed; whatever goes wrong, an existing file
    stays as it was. Needs Python 3.11 and ``pip install "lightning-prune[coreai]"``.

    Args:
        path: Where the file goes, which is a folder; must end in ``.aimodel``. ``~`` stands for the home folder.
        example_inputs: A tensor, a sequence of positional arguments, or a dict of keyword arguments of one call.
            Default: the model's ``example_input_array``. The file takes inputs of these shapes.
        input_names: Names in the file, one a tensor. Default: the argument names of ``forward``.
        output_names: Names of the results. Default: the keys of a dict, else ``output``, ``output_0`` ...
        input_values: Which values an input may have in verification, by its name: ``"fixed"`` for those of the example
            alone, or the smallest and the largest, as in ``{"lengths": "fixed", "tokens": (0, 29_999)}``.
        submodule: Dotted name of the part to export. Default: the whole model.
        compute_precision: ``"float32"`` or ``"float16"``, which the network computes in and weights are stored in.
            Inputs and outputs are float32.
        overwrite: Whether an existing file may be replaced. What is no such file is never replaced.
        on_error: What a training run does when the export at its end fails: ``"warn"`` or ``"raise"``. :meth:`save`
            always raises.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> CoreAIExport("digits.mlpackage")
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: export.path must end in .aimodel, got 'digits.mlpackage'. Write \
'digits.aimodel'.
    """

    path: str | os.PathLike[str]
    example_inputs: Any = None
    input_names: Sequence[str] | None = field(default=None, kw_only=True)
    output_names: Sequence[str] | None = field(default=None, kw_only=True)
    input_values: Mapping[str, Values] | None = field(default=None, kw_only=True)
    submodule: str | None = field(default=None, kw_only=True)
    compute_precision: Literal["float32", "float16"] = field(default="float32", kw_only=True)
    overwrite: bool = field(default=True, kw_only=True)
    on_error: Literal["warn", "raise"] = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        self.path = target_path(self.path, ".aimodel")
        check_choice("compute_precision", self.compute_precision, ("float32", "float16"))
        check_choice("on_error", self.on_error, ("warn", "raise"))
        self.overwrite = as_flag("export.overwrite", self.overwrite)
        check_values(self.input_values)
        check_given_names(self.input_names, self.output_names)

    def check(self, model: nn.Module | None = None) -> None:
        """Find what would make the export fail, before hours of training are spent; writes nothing.

        Args:
            model: The model to be exported. Without it, what depends on it is not checked.

        Raises:
            ConfigError: A value cannot work, with this model or with the installed packages.
            ExportError: ``coreai-torch`` is not installed, or too old.
        """
        import_coreai()
        self.check_place()
        if model is None:
            return
        examples, part = examples_of(model, self.example_inputs, "CoreAIExport"), part_of(model, self.submodule)
        if self.submodule is None or self.example_inputs is not None:
            _, _, leaves = take_apart(part, examples)
            self.inputs_of(unique(name for name, _ in leaves), [tensor for _, tensor in leaves])

    def save(self, model: nn.Module, *, masks: Mapping[str, Tensor] | None = None) -> ExportResult:
        """Convert, verify, and move the file into place.

        Args:
            model: A finalized module, on any device, in any floating dtype, in train or eval mode. Not changed.
            masks: Keep-masks of the pruned parameters by name (``"conv1.weight"``), broadcastable to their parameter.
                Default: the zeros of every weight of which at least a sixteenth is zero.

        Raises:
            ExportError: The file could not be made, or is not what it must be; what lay at ``path`` is still there.
        """
        path = Path(self.path)
        with as_export_error(FORMAT, model, path):
            self.check(model)
            core = import_coreai()
            standalone, pruned = pruned_copy(
                model, masks, self.example_inputs, export="CoreAIExport", submodule=self.submodule
            )
            inputs = self.inputs_of(standalone.input_names, standalone.inputs, largest_values(standalone))
            if self.output_names is not None:
                same_number("output_names", self.output_names, standalone.outputs)
            with writing_to(path) as place:
                result = self.made(core, standalone, pruned, inputs, place)
                self.check_place()  # converting took its time
                put_in_place(place, path)
        return result.at(path)

    def made(
        self,
        core: CoreAI,
        standalone: Standalone,
        pruned: Mapping[str, Tensor],
        inputs: Sequence[ProgramInput],
        place: Path,
    ) -> ExportResult:
        """Convert, write to ``place``, and verify what was written."""
        prefix, dtype = PREFIXES[self.compute_precision], getattr(torch, self.compute_precision)
        began = time.monotonic()
        program = capture(standalone, core, precision=self.compute_precision)
        weights = sparse_weights(standalone.model, pruned, dtype)
        named = {prefix + name: weight for name, weight in weights.items()}
        targets = store_sparse(program, named, core.compression.inject_subbyte_tensors)
        written = {name.removeprefix(prefix) for name in targets}
        outputs = list(self.output_names or standalone.output_names)
        convert(core, program, [spec.name for spec in inputs], outputs, place)
        names: dict[str, list[str]] = {}
        kept = {id(weights[name]) for name in written}
        for name, weight in weights.items():
            if id(weight) in kept:  # under all the names of a tied weight
                names.setdefault(weight_fingerprint(weight), []).append(name)
        name_parameters(core, place, names)
        patience = max(PATIENCE, time.monotonic() - began)
        findings = Findings()
        asset = read_back(core, place, findings)
        prove_weights(asset, standalone.model, pruned, weights, written, findings, dtype=dtype)
        with loaded(core, place) as function:
            run = Program(
                outputs,
                lambda given: Answers(function(given)),
                self.compute_precision,
                noun="asset",
                patience=patience,
            )
            prove_numbers(run, standalone, inputs, findings)
        findings.checks.append("Apple's own runtime compiled and ran it")
        nbytes = folder_size(place)
        dense_nbytes = nbytes if asset is None else asset.dense_nbytes
        return findings.result(FORMAT, place, nbytes, dense_nbytes, frontend="export")

    def inputs_of(
        self, names: Sequence[str], tensors: Sequence[Tensor], tops: Sequence[int | None] | None = None
    ) -> list[ProgramInput]:
        """The inputs of the file, checked against the tensors that the model takes and what it calls them."""
        if self.input_names is not None:
            same_number("input_names", self.input_names, tensors)
        called = list(self.input_names or names)
        values = values_of(self.input_values, called, tensors)
        rows = zip(called, tensors, tops or [None] * len(tensors), values, strict=True)
        return [
            ProgramInput(name, (tuple(tensor.shape),), top=top, values=declared) for name, tensor, top, declared in rows
        ]

    def check_place(self) -> None:
        """Raise unless a file can be put at the path."""
        check_path(Path(self.path), overwrite=self.overwrite, is_ours=is_asset, what=f"a {FORMAT}")


def convert(
    core: CoreAI, program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], place: Path
) -> None:
    """Convert a captured program and save it.

    Raises:
        ExportError: The converter does not know an operation of it.
    """
    # Not in its debug mode, which writes paths and lines of the user's own code into the file.
    converter = core.torch.TorchConverter(mode=core.torch.TorchConverter.Mode.RELEASE)
    with silence(), saying_what_is_unknown():
        converter.add_exported_program(program, input_names=inputs, output_names=outputs)
        converter.to_coreai().save_asset(place)


@contextlib.contextmanager
def saying_what_is_unknown() -> Iterator[None]:
    """Turn the converter's error about operations into one for the user of the model."""
    try:
        yield
    except ValueError as error:
        if not (names := unknown_in(error)):
            raise
        raise ExportError(
            f"Core AI's converter does not know these operations of the model: {', '.join(names)}. Write that part "
            "with others, or export the part before or behind it with submodule=."
        ) from error


def read_back(core: CoreAI, place: Path, findings: Findings) -> Asset | None:
    """What was written; None, and a sentence in ``findings``, where this version cannot be read."""
    try:
        with silence():
            return read_asset(core, place)
    except Exception as error:
        findings.not_checked.append(
            "the zeros of the stored weights: this version of coreai-core does not let them be read "
            f"({one_line(error)})"
        )
        return None


def is_asset(path: Path) -> bool:
    """Whether a folder is a Core AI asset: its description and a program."""
    return (path / "metadata.json").is_file() and (path / "main.mlirb").is_file()
