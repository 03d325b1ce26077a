"""Core ML export of any finalized module, proven on the saved file.

The converter's own pruning pipeline zeroes small weights, stores most layers dense, or keeps batch norms from being
folded, without a word. Here the plain pipeline runs, batch norms are folded, and as the very last pass every weight
with enough zeros is stored as a bit mask and its nonzero values. Then the package is read back from disk and compared
with the model, weight by weight (:mod:`lightning_prune.export.coreml.weights`) and number by number
(:mod:`lightning_prune.export.coreml.proof`), and only then moved to where it was asked for.
"""

import contextlib
import copy
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.basics import as_flag, plain_list, put_in_place, writing_to
from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export.coreml.compression import COMPRESSIONS, compressed, prove_compression
from lightning_prune.export.coreml.conversion import (
    FRONTENDS,
    capture,
    convert,
    pipeline,
    quiet,
    save_package,
)
from lightning_prune.export.coreml.inputs import dynamic_dims, program_inputs
from lightning_prune.export.coreml.interface import (
    check_inputs,
    check_labels,
    check_names,
    check_outputs,
    check_states,
    refuse_states_that_are_not_zero,
    refuse_states_that_were_not_asked_for,
    state_notes,
    state_types,
)
from lightning_prune.export.coreml.mil import Package, import_coremltools, read_package
from lightning_prune.export.coreml.running import program_of, prove_on_device
from lightning_prune.export.coreml.weights import prove_weights
from lightning_prune.export.declared import check_values, same_number, values_of
from lightning_prune.export.draws import largest_values
from lightning_prune.export.failures import as_export_error, not_made, summary
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput, Values
from lightning_prune.export.proof import prove_numbers
from lightning_prune.export.pruned import examples_of, part_of, pruned_copy
from lightning_prune.export.result import ExportResult
from lightning_prune.export.standalone import Standalone
from lightning_prune.export.structures import take_apart, unique
from lightning_prune.export.targets import check_choice, check_path, target_path

__all__ = ["CoreMLExport", "ExportResult"]

FORMAT = "Core ML package"
logger = logging.getLogger(__name__)


@dataclass
class CoreMLExport:
    """Turn a finished network into an ``.mlpackage``, and show that the file is sparse, complete and right.

    The model itself is never changed: a copy is moved to the CPU, to float32 and to eval mode. The package is written
    beside its target, verified there, and moved into place in one step; whatever goes wrong, and whenever the
    process is killed, an existing package stays as it was.

    Args:
        path: Where the package goes; must end in ``.mlpackage``. ``~`` stands for the home folder.
        example_inputs: A tensor, a sequence of positional arguments, or a dict of keyword arguments of one call.
            Default: the model's ``example_input_array``.
        input_names: Names in the package, one a tensor. Default: the argument names of ``forward``.
        output_names: Names of the results. Default: the keys of a dict, else ``output``, ``output_0`` ...
        inputs: ``coremltools`` input types (``TensorType``, ``ImageType``; ``RangeDim`` or ``EnumeratedShapes`` in
            their shape), one a tensor, passed on as they are. Verification tries several of the shapes they allow.
        input_values: Which values an input may have in verification, by its name: ``"fixed"`` for those of the example
            alone, or the smallest and the largest, as in ``{"lengths": "fixed", "tokens": (0, 29_999)}``. Default:
            values around the example's, and far from it for numbers that are not whole.
        classifier_labels: Class names, for a package that answers with a label.
        submodule: Dotted name of the part to export. Default: the whole model.
        minimum_deployment_target: Oldest system that must run the package. Sparse weights need ``"iOS16"``,
            ``compression`` needs ``"iOS18"``; names of other systems (``"macOS13"``) work too.
        compute_precision: ``"float16"`` or ``"float32"``; also the type that weights are stored in.
        io_dtype: ``"float32"`` or ``"float16"``, of floating point inputs and outputs.
        frontend: How the network is captured. ``"export"``: ``torch.export``; ``"trace"``: ``torch.jit.trace``;
            ``"export_needed"``: ``torch.export``, with the operations broken up that the converter does not know;
            ``"export_full"``: ``torch.export`` decomposed to core operations; ``"auto"``: the first of these whose
            package passes verification.
        compression: Of the nonzero weights, on top of sparsity: ``"int8"``, ``"int4"``, or ``"palette<bits>"`` with 1,
            2, 3, 4, 6 or 8 bits. None: they are stored in ``compute_precision``.
        overwrite: Whether an existing package may be replaced. What is not a package is never replaced.
        on_error: What a training run does when the export at its end fails: ``"warn"`` or ``"raise"``. :meth:`save`
            always raises.
        convert_kwargs: Further arguments for ``coremltools.convert``, over ours. Copied for every conversion, which
            writes into them. ``states`` are named as the buffers of the model.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> import torch
        >>> CoreMLExport("digits.mlpackage", torch.zeros(1, 64), compression="int8").check()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: export.minimum_deployment_target must be iOS18 or newer for ...
    """

    path: str | os.PathLike[str]
    example_inputs: Any = None
    input_names: Sequence[str] | None = field(default=None, kw_only=True)
    output_names: Sequence[str] | None = field(default=None, kw_only=True)
    inputs: Sequence[Any] | None = field(default=None, kw_only=True)
    input_values: Mapping[str, Values] | None = field(default=None, kw_only=True)
    classifier_labels: Sequence[str | int] | None = field(default=None, kw_only=True)
    submodule: str | None = field(default=None, kw_only=True)
    minimum_deployment_target: str = field(default="iOS16", kw_only=True)
    compute_precision: Literal["float16", "float32"] = field(default="float16", kw_only=True)
    io_dtype: Literal["float16", "float32"] = field(default="float32", kw_only=True)
    frontend: Literal["auto", "export", "trace", "export_needed", "export_full"] = field(default="auto", kw_only=True)
    compression: str | None = field(default=None, kw_only=True)
    overwrite: bool = field(default=True, kw_only=True)
    on_error: Literal["warn", "raise"] = field(default="warn", kw_only=True)
    convert_kwargs: Mapping[str, Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.path = target_path(self.path, ".mlpackage")
        check_choice("compute_precision", self.compute_precision, ("float16", "float32"))
        check_choice("io_dtype", self.io_dtype, ("float16", "float32"))
        check_choice("frontend", self.frontend, ("auto", *FRONTENDS))
        check_choice("on_error", self.on_error, ("warn", "raise"))
        self.overwrite = as_flag("export.overwrite", self.overwrite)
        if self.compression is not None:
            check_choice("compression", self.compression, COMPRESSIONS)
        if self.inputs is not None and self.input_names is not None:
            raise ConfigError(
                "export.inputs and export.input_names exclude each other. Write the names into the inputs."
            )
        if self.classifier_labels is not None and self.output_names is not None:
            raise ConfigError("export.classifier_labels and export.output_names exclude each other. Leave one out.")
        if self.classifier_labels is not None:
            check_labels(self.classifier_labels)
        check_values(self.input_values)
        check_names("input_names", self.input_names or ())
        check_names("output_names", self.output_names or ())
        check_names("inputs", [getattr(item, "name", None) for item in self.given_inputs or ()])

    def check(self, model: nn.Module | None = None) -> None:
        """Find what would make the export fail, before hours of training are spent; writes nothing.

        What depends on the outputs (class labels, output names) is checked by a call of a copy of the model, if it can
        already be called.

        Args:
            model: The model to be exported. Without it, what depends on it is not checked.

        Raises:
            ConfigError: A value cannot work, with this model or with the installed packages.
            ExportError: ``coremltools``, or what the compression needs, is not installed.
        """
        self.check_settings(model)
        if model is not None and (self.classifier_labels is not None or self.output_names is not None):
            rehearsal = None
            # What cannot be called yet may well be called when it is trained; nor may training draw other numbers.
            with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
                rehearsal, _ = self.prepare(model, {})
            if rehearsal is not None:
                self.check_interface(rehearsal)

    def check_settings(self, model: nn.Module | None) -> None:
        """Find what can be found without calling the model."""
        ct = import_coremltools()
        self.target(ct)
        self.check_place()
        if self.compression is not None and self.compression.startswith("palette"):
            try:
                import sklearn  # noqa: F401
            except ImportError as error:
                raise ExportError(
                    f'compression={self.compression!r} needs scikit-learn. Write: pip install "lightning-prune[coreml]"'
                ) from error
        if model is not None:
            examples = examples_of(model, self.example_inputs, "CoreMLExport")
            part = part_of(model, self.submodule)
            check_states(self.states, part)
            if self.submodule is None or self.example_inputs is not None:
                _, _, leaves = take_apart(part, examples)
                names = unique(name for name, _ in leaves)
                self.check_input_side(names, [tensor for _, tensor in leaves])

    def check_input_side(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Find what does not fit the tensors that the model takes, whose own names are ``names``."""
        if self.given_inputs is None and self.input_names is not None:
            same_number("input_names", self.input_names, tensors)
        check_inputs(self.called(names), tensors, self.given_inputs)
        values_of(self.input_values, self.called(names), tensors)

    def check_interface(self, standalone: Standalone) -> None:
        """Find what does not fit a model that was called with the example."""
        self.check_input_side(standalone.input_names, standalone.inputs)
        taken = self.called(standalone.input_names)
        check_outputs(standalone, self.classifier_labels, self.output_names, taken)

    def called(self, names: Sequence[str]) -> list[str]:
        """What the user calls the inputs, whose own names are ``names``."""
        given = (
            [getattr(item, "name", None) for item in self.given_inputs]
            if self.given_inputs is not None
            else self.input_names
        )
        return [name or own for name, own in zip(given or names, names, strict=False)]

    @property
    def given_inputs(self) -> Sequence[Any] | None:
        """The user's ``coremltools`` types of the inputs."""
        given: Sequence[Any] | None = (self.convert_kwargs or {}).get("inputs", self.inputs)
        return given

    @property
    def states(self) -> Sequence[Any]:
        """The user's ``coremltools`` types of what the package keeps from one call to the next."""
        return (self.convert_kwargs or {}).get("states") or ()

    def save(self, model: nn.Module, *, masks: Mapping[str, Tensor] | None = None) -> ExportResult:
        """Convert, verify, and move the package into place.

        Args:
            model: A finalized module, on any device, in any floating dtype, in train or eval mode. Not changed.
            masks: Keep-masks of the pruned parameters by name (``"conv1.weight"``), broadcastable to their parameter.
                Default: the zeros of every weight of which at least a sixteenth is zero.

        Raises:
            ExportError: The package could not be made, or is not what it must be; what lay at ``path`` is still there.
        """
        with as_export_error(FORMAT, model, Path(self.path)):
            self.check_settings(model)
            standalone, pruned = self.prepare(model, masks)
            self.check_interface(standalone)
            refuse_states_that_are_not_zero(self.states, standalone.model)
            with writing_to(Path(self.path)) as place:
                result = self.best(standalone, pruned, place, guessed=masks is None)
                self.check_place()  # converting took its time
                put_in_place(place, Path(self.path))
        return result.at(Path(self.path))

    def check_place(self) -> None:
        """Raise unless a package can be put at the path."""
        check_path(Path(self.path), overwrite=self.overwrite, is_ours=is_package, what=f"a {FORMAT}")

    def best(self, standalone: Standalone, pruned: Mapping[str, Tensor], place: Path, *, guessed: bool) -> ExportResult:
        """The first frontend's result whose package passes verification; the package lies at ``place``."""
        failures: list[tuple[str, Exception]] = []
        # Where folding may go wrong, each frontend has a second try without it.
        foldings = (True, False) if folding_may_fail(standalone.model) else (True,)
        for frontend, fold in product(FRONTENDS if self.frontend == "auto" else (self.frontend,), foldings):
            try:
                result = self.attempt(frontend, standalone, pruned, place, guessed=guessed, fold_norms=fold)
                return replace(result, attempts=tuple(f"frontend {name}: {summary(error)}" for name, error in failures))
            except OSError:
                raise  # a full disk is full for every frontend
            except Exception as error:
                logger.debug("Core ML export with frontend %r failed", frontend, exc_info=error)
                failures.append((frontend if fold else f"{frontend}, no norms folded", error))
                shutil.rmtree(place, ignore_errors=True)
        tried = [f"frontend {name}: {summary(error)}" for name, error in failures]
        raise ExportError(
            "\n".join([not_made(FORMAT, standalone.model, Path(self.path)), *map("  {}".format, tried)])
        ) from failures[0][1]

    def attempt(
        self,
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
        arguments = self.convert_arguments(ct, standalone, fold_norms=fold_norms)
        if frontend != "trace" and not self.states and arguments["minimum_deployment_target"] >= ct.target.iOS18:
            refuse_states_that_were_not_asked_for(standalone)
        program, notes = capture(frontend, standalone, dynamic_dims(arguments["inputs"]))
        wanted = wanted_names(arguments, standalone)  # the converter changes them in place
        with quiet() as heard:
            # The converter adds the states to the list of inputs.
            converted = convert(ct, program, {**arguments, "inputs": list(arguments["inputs"])})
            save_package(converted, place)
        package = read_package(place)
        values = values_of(self.input_values, self.called(standalone.input_names), standalone.inputs)
        inputs = program_inputs(arguments["inputs"], standalone, package, largest_values(standalone), values)
        findings = Findings(notes=[*notes, *heard, *renamed(wanted, package), *state_notes(standalone, package)])
        if not fold_norms:
            findings.notes.append("batch norms are not folded into weights: with them folded, verification failed")
        prove_weights(package, standalone, pruned, findings, guessed=guessed)
        prove_numbers(program_of(package, self.compute_precision), standalone, inputs, findings)
        if self.compression is None:
            return self.result(ct, package, standalone, inputs, findings, frontend)
        with quiet() as heard:
            save_package(compressed(ct, converted, self.compression), place)
        findings.notes.extend(heard)
        smaller = read_package(place)
        proof = prove_compression(package, smaller, standalone, inputs, findings)
        result = self.result(ct, smaller, standalone, inputs, findings, frontend)
        return replace(result, compression_error=proof)

    def result(
        self,
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

    def prepare(self, model: nn.Module, masks: Mapping[str, Tensor] | None) -> tuple[Standalone, dict[str, Tensor]]:
        """The copy to convert, and the keep-masks by parameter name within it."""
        return pruned_copy(model, masks, self.example_inputs, export="CoreMLExport", submodule=self.submodule)

    def target(self, ct: Any) -> Any:
        """The deployment target as ``coremltools`` has it."""
        known = {name: item for name, item in vars(ct.target).items() if hasattr(item, "value") and name[0] != "_"}
        given = (self.convert_kwargs or {}).get("minimum_deployment_target", self.minimum_deployment_target)
        name = str(getattr(given, "name", given))
        if name not in known:
            raise ConfigError(f"export.minimum_deployment_target must be one of {', '.join(known)}, got {name!r}.")
        needed, why = "iOS16", "sparse weights"
        if self.states:
            needed, why = "iOS18", "states"
        if self.compression is not None:
            needed, why = "iOS18", f"compression={self.compression!r} on top of sparsity"
        if known[name].value < known[needed].value:
            raise ConfigError(
                f"export.minimum_deployment_target must be {needed} or newer for {why}, got {name!r}. Write {needed!r}."
            )
        return known[name]

    def convert_arguments(self, ct: Any, standalone: Standalone, *, fold_norms: bool) -> dict[str, Any]:
        """The arguments of ``coremltools.convert``."""
        dtype = np.dtype(self.io_dtype).type
        labels = self.classifier_labels
        arguments = {
            "source": "pytorch",
            "convert_to": "mlprogram",
            "inputs": self.input_types(ct, standalone, dtype),
            "outputs": None if labels is not None else self.output_types(ct, standalone, dtype),
            "classifier_config": None if labels is None else ct.ClassifierConfig(list(plain_list(labels))),
            "minimum_deployment_target": self.target(ct),
            "compute_precision": getattr(ct.precision, self.compute_precision.upper()),
            "pass_pipeline": pipeline(ct, fold_norms=fold_norms),
            "skip_model_load": True,
        }
        further = {key: value for key, value in (self.convert_kwargs or {}).items() if key not in ("inputs", "states")}
        states = {"states": state_types(ct, self.states, standalone.model)} if self.states else {}
        return {**arguments, **copy.deepcopy(further), **states}

    def input_types(self, ct: Any, standalone: Standalone, dtype: type) -> list[Any]:
        """One ``coremltools`` type for each tensor that the model takes."""
        if self.given_inputs is not None:
            same_number("inputs", self.given_inputs, standalone.inputs)
            types = [copy.copy(item) for item in self.given_inputs]
            for item, tensor in zip(types, standalone.inputs, strict=True):
                # Left open, the converter makes float16 of it on iOS16 and newer.
                if getattr(item, "dtype", dtype) is None:
                    item.dtype = ct.TensorType(
                        shape=(1,), dtype=dtype if tensor.is_floating_point() else np.int32
                    ).dtype
            return types
        names = self.input_names or standalone.input_names
        same_number("input_names", names, standalone.inputs)
        return [
            ct.TensorType(name=name, shape=tuple(tensor.shape), dtype=dtype if tensor.is_floating_point() else np.int32)
            for name, tensor in zip(names, standalone.inputs, strict=True)
        ]

    def output_types(self, ct: Any, standalone: Standalone, dtype: type) -> list[Any]:
        """One ``coremltools`` type for each tensor that the model gives."""
        names = self.output_names or standalone.output_names
        same_number("output_names", names, standalone.outputs)
        return [
            ct.TensorType(name=name, dtype=dtype) if tensor.is_floating_point() else ct.TensorType(name=name)
            for name, tensor in zip(names, standalone.outputs, strict=True)
        ]


def folding_may_fail(model: nn.Module) -> bool:
    """Whether a model has what Core ML Tools 9.0 folds batch norms into wrongly: grouped transposed convolutions.

    It mixes up their channels, but not those of depthwise ones.
    """
    return any(
        isinstance(module, nn.modules.conv._ConvTransposeNd) and 1 < module.groups < module.in_channels
        for module in model.modules()
    )


def wanted_names(arguments: Mapping[str, Any], standalone: Standalone) -> list[list[str | None]]:
    """How the inputs and the outputs of a package shall be called: as they were written, or as the model calls them."""
    inputs, outputs = ([item.name for item in arguments[kind] or ()] for kind in ("inputs", "outputs"))
    made = list(standalone.input_names), list(standalone.output_names)
    return [
        list(known) if given == ours else given
        for given, ours, known in zip((inputs, outputs), made, standalone.given_names, strict=True)
    ]


def renamed(wanted: Sequence[Sequence[str | None]], package: Package) -> list[str]:
    """What to say of inputs and outputs that Core ML calls otherwise."""
    found = [name for name, _, _ in package.main.inputs], package.main.outputs
    return [
        f"the {kind} {old!r} is called {new!r} in the package: a name has letters, digits and _, and is given once"
        for kind, names, others in zip(("input", "output"), wanted, found, strict=True)
        for old, new in zip(names, others, strict=False)
        if old and old != new
    ]


def is_package(path: Path) -> bool:
    """Whether a folder is a Core ML package: a manifest and a model."""
    return (path / "Manifest.json").is_file() and (path / "Data").is_dir()
