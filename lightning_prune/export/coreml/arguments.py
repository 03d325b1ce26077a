"""The arguments of the converter, from the settings and the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_prune.basics import plain_list
from lightning_prune.export.coreml.conversion import (
    pipeline,
)
from lightning_prune.export.coreml.interface import (
    state_types,
)
from lightning_prune.export.coreml.mil import Package
from lightning_prune.export.coreml.settings import CoreMLSettings
from lightning_prune.export.declared import same_number
from lightning_prune.export.standalone import Standalone

__all__ = ["convert_arguments", "renamed", "wanted_names"]


def convert_arguments(settings: CoreMLSettings, ct: Any, standalone: Standalone, *, fold_norms: bool) -> dict[str, Any]:
    """The arguments of ``coremltools.convert``."""
    dtype = np.dtype(settings.io_dtype).type
    labels = settings.classifier_labels
    arguments = {
        "source": "pytorch",
        "convert_to": "mlprogram",
        "inputs": input_types(settings, ct, standalone, dtype),
        "outputs": None if labels is not None else output_types(settings, ct, standalone, dtype),
        "classifier_config": None if labels is None else ct.ClassifierConfig(list(plain_list(labels))),
        "minimum_deployment_target": settings.target(ct),
        "compute_precision": getattr(ct.precision, settings.compute_precision.upper()),
        "pass_pipeline": pipeline(ct, fold_norms=fold_norms),
        "skip_model_load": True,
    }
    further = {key: value for key, value in (settings.convert_kwargs or {}).items() if key not in ("inputs", "states")}
    states = {"states": state_types(ct, settings.states, standalone.model)} if settings.states else {}
    return {**arguments, **copy.deepcopy(further), **states}


def input_types(settings: CoreMLSettings, ct: Any, standalone: Standalone, dtype: type) -> list[Any]:
    """One ``coremltools`` type for each tensor that the model takes."""
    if settings.given_inputs is not None:
        same_number("inputs", settings.given_inputs, standalone.inputs)
        types = [copy.copy(item) for item in settings.given_inputs]
        for item, tensor in zip(types, standalone.inputs, strict=True):
            # Left open, the converter makes float16 of it on iOS16 and newer.
            if getattr(item, "dtype", dtype) is None:
                item.dtype = ct.TensorType(shape=(1,), dtype=dtype if tensor.is_floating_point() else np.int32).dtype
        return types
    names = settings.input_names or standalone.input_names
    same_number("input_names", names, standalone.inputs)
    return [
        ct.TensorType(name=name, shape=tuple(tensor.shape), dtype=dtype if tensor.is_floating_point() else np.int32)
        for name, tensor in zip(names, standalone.inputs, strict=True)
    ]


def output_types(settings: CoreMLSettings, ct: Any, standalone: Standalone, dtype: type) -> list[Any]:
    """One ``coremltools`` type for each tensor that the model gives."""
    names = settings.output_names or standalone.output_names
    same_number("output_names", names, standalone.outputs)
    return [
        ct.TensorType(name=name, dtype=dtype) if tensor.is_floating_point() else ct.TensorType(name=name)
        for name, tensor in zip(names, standalone.outputs, strict=True)
    ]


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
