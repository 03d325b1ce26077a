"""Are the zeros of the model's weights in the file? Looked for in its initializers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_prune.errors import ExportError
from lightning_prune.export.dataflow import FOLDED, watch
from lightning_prune.export.findings import Findings
from lightning_prune.export.onnx.model import Initializer
from lightning_prune.export.result import ExportedLayer
from lightning_prune.export.standalone import Standalone

__all__ = ["prove_zeros"]

# How far a weight may be from the model's times a factor, as a fraction of its largest value.
CLOSE = 1e-5
Array = npt.NDArray[Any]


def prove_zeros(
    initializers: Sequence[Initializer], standalone: Standalone, pruned: Mapping[str, Tensor], findings: Findings
) -> None:
    """Find every pruned parameter among the initializers of a file, with its zeros; findings are added to.

    A parameter lies there under its name, turned or not, and times a factor for each channel where a batch norm was
    folded in; or under another name with its rows (those of a recurrent layer in another order) or its columns. The
    weight of a layer that sees no input may be folded away with all that the layer computes.

    Raises:
        ExportError: An initializer of its name has other zeros or values.
    """
    parameters = dict(standalone.model.named_parameters(remove_duplicate=False))
    by_name = {initializer.name: initializer for initializer in initializers}
    missing: list[str] = []
    for name, keep in pruned.items():
        weight, mask = parameters[name].detach().numpy(), keep.numpy()
        found, scaled = by_name.get(f"model.{name}"), False
        if found is None or found.values.size != weight.size:
            found = next((initializer for initializer in initializers if _has_rows(initializer.values, weight)), None)
        elif (factors := _scaled(found.values, weight, mask)) is None:
            raise ExportError(f"The initializer {found.name!r} of the file has other zeros or values than {name}.")
        else:
            scaled = factors
        if found is None:
            missing.append(name)
            continue
        zeros, nbytes = int((~mask).sum()), weight.nbytes
        findings.layers.append(
            ExportedLayer(
                name, weight.shape, zeros, weight.size, "dense", nbytes, nbytes, scaled, constants=(found.name,)
            )
        )
    meetings = watch(standalone, {name: parameters[name] for name in missing}) if missing else {}
    for name in missing:
        if meetings[name].live.any():
            findings.not_checked.append(
                f"the zeros of {name}: no initializer of the file holds its rows or columns; the outputs alone tell "
                "that it is right"
            )
        else:
            findings.notes.append(f"{name} {FOLDED}")
    if findings.layers:
        number = len(findings.layers)
        findings.checks.append(
            f"{number} pruned parameter{'s' if number > 1 else ''} found in the file, with all zeros"
        )


def _scaled(values: Array, weight: Array, keep: Array) -> bool | None:
    """Whether values are those of a weight times factors; None if they are neither these nor the weight's."""
    turns = (weight.T, keep.T) if values.shape == weight.T.shape and values.shape != weight.shape else (weight, keep)
    for base, mask in (turns, (weight.T, keep.T)):
        if values.shape != base.shape or values[~mask].any():
            continue
        if np.array_equal(values, base):
            return False
        for axis in range(min(2, base.ndim)):
            rows, wanted = (np.moveaxis(array, axis, 0).reshape(base.shape[axis], -1) for array in (values, base))
            norms = (wanted * wanted).sum(1, keepdims=True)
            factors = (rows * wanted).sum(1, keepdims=True) / np.where(norms == 0, 1, norms)
            if np.abs(rows - factors * wanted).max() <= CLOSE * np.abs(rows).max():
                return True
    return None


def _has_rows(values: Array, weight: Array) -> bool:
    """Whether each row of a weight is a row or a column of an array, in any order."""
    if values.ndim < 2 or values.dtype != weight.dtype or values.size < weight.size:
        return False
    wanted = _as_rows(weight.reshape(weight.shape[0], -1))
    length = weight[0].size
    for view in (values, np.swapaxes(values, -1, -2), values.reshape(values.shape[0], -1)):
        if view.shape[-1] == length and wanted <= _as_rows(view.reshape(-1, length)):
            return True
    return False


def _as_rows(array: Array) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(array) + 0.0}  # -0.0 is 0
