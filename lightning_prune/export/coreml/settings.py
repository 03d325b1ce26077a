"""What a user says of a Core ML export: values, checked when they are set and against the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lightning_prune.basics import as_flag
from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export.coreml.compression import COMPRESSIONS
from lightning_prune.export.coreml.conversion import (
    FRONTENDS,
)
from lightning_prune.export.coreml.interface import (
    check_inputs,
    check_labels,
    check_names,
    check_outputs,
    check_states,
)
from lightning_prune.export.coreml.mil import import_coremltools
from lightning_prune.export.declared import check_values, same_number, values_of
from lightning_prune.export.inputs import Values
from lightning_prune.export.pruned import examples_of, part_of
from lightning_prune.export.standalone import Standalone
from lightning_prune.export.structures import take_apart, unique
from lightning_prune.export.targets import check_choice, check_path, target_path

__all__ = ["FORMAT", "CoreMLSettings"]

FORMAT = "Core ML package"


@dataclass
class CoreMLSettings:
    """The arguments of :class:`~lightning_prune.export.coreml.export.CoreMLExport`, which says what they are."""

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

    @property
    def given_inputs(self) -> Sequence[Any] | None:
        """The user's ``coremltools`` types of the inputs."""
        given: Sequence[Any] | None = (self.convert_kwargs or {}).get("inputs", self.inputs)
        return given

    @property
    def states(self) -> Sequence[Any]:
        """The user's ``coremltools`` types of what the package keeps from one call to the next."""
        return (self.convert_kwargs or {}).get("states") or ()

    def called(self, names: Sequence[str]) -> list[str]:
        """What the user calls the inputs, whose own names are ``names``."""
        given = (
            [getattr(item, "name", None) for item in self.given_inputs]
            if self.given_inputs is not None
            else self.input_names
        )
        return [name or own for name, own in zip(given or names, names, strict=False)]

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

    def check_place(self) -> None:
        """Raise unless a package can be put at the path."""
        check_path(Path(self.path), overwrite=self.overwrite, is_ours=is_package, what=f"a {FORMAT}")

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


def is_package(path: Path) -> bool:
    """Whether a folder is a Core ML package: a manifest and a model."""
    return (path / "Manifest.json").is_file() and (path / "Data").is_dir()
