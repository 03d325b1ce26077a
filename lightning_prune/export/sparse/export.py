"""A network's weights as a sparse file, at the end of a fit or by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_prune.basics import as_flag, import_safetensors, put_in_place, uncompiled_name, writing_to
from lightning_prune.errors import ExportError
from lightning_prune.export.copies import refuse_unfinished
from lightning_prune.export.failures import as_export_error
from lightning_prune.export.pruned import expand_mask, masks_of_zeros
from lightning_prune.export.result import ExportedLayer, ExportResult
from lightning_prune.export.sparse.files import (
    SparseFile,
    check_kind,
    is_sparse_file,
    read_sparse,
    state_of,
    write_sparse,
)
from lightning_prune.export.sparse.manifest import StoredTensor
from lightning_prune.export.targets import check_choice, check_path, target_path
from lightning_prune.plan import computed_weight

__all__ = ["SparseExport"]

FORMAT = "safetensors file"


@dataclass
class SparseExport:
    """Write a finished network's weights to a sparse ``.safetensors``, and show that every bit of them comes back.

    The file is what :func:`~lightning_prune.export.sparse.save_sparse` writes. It is read back before it is moved into
    place. It needs no example inputs: it holds weights and no program.

    Args:
        path: Where the file goes; must end in ``.safetensors``. ``~`` stands for the home folder.
        overwrite: Whether another sparse file there may be replaced. What is something else, a dense file of
            safetensors too, is never replaced.
        on_error: What a training run does when the export at its end fails: ``"warn"`` or ``"raise"``. :meth:`save`
            always raises.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> SparseExport("model.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: export.path must end in .safetensors, got ... Write 'model.safetensors'.
    """

    path: str | os.PathLike[str]
    overwrite: bool = field(default=True, kw_only=True)
    on_error: Literal["warn", "raise"] = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        self.path = target_path(self.path, ".safetensors")
        check_choice("on_error", self.on_error, ("warn", "raise"))
        self.overwrite = as_flag("export.overwrite", self.overwrite)

    def check(self, model: nn.Module | None = None) -> None:
        """Find what would make the export fail, before hours of training are spent; writes nothing.

        Args:
            model: The model to be exported. Without it, what depends on it is not checked.

        Raises:
            ConfigError: The path is taken, or cannot be written to.
            ExportError: The package safetensors is not installed, or the model's state dict holds what is no tensor.
        """
        for name, value in () if model is None else state_of(model).items():
            check_kind(name, value)
        try:
            import_safetensors()
        except ImportError as error:
            raise ExportError(str(error)) from error
        check_path(
            Path(self.path), overwrite=self.overwrite, is_ours=is_sparse_file, what="a file that save_sparse wrote"
        )

    def save(self, model: nn.Module, *, masks: Mapping[str, Tensor] | None = None) -> ExportResult:
        """Write the file, read it back, and move it into place.

        Args:
            model: A finalized module, on any device and in any dtype, which the file keeps. Not changed.
            masks: Keep-masks of the pruned parameters by name (``"conv1.weight"``), broadcastable to their parameter.
                Default: the zeros of every weight of which at least a sixteenth is zero.

        Raises:
            ExportError: The file could not be made, or is not what it must be; what lay at ``path`` is still there.
        """
        target = Path(self.path)
        with as_export_error(FORMAT, model, target):
            self.check()
            refuse_unfinished(model)
            state = state_of(model)
            with writing_to(target) as place:
                write_sparse(state, place)
                found = read_sparse(place)
                prove_bits(found.tensors, state)
                result = result_of(found, place, pruned_zeros(model, masks))
                self.check()
                put_in_place(place, target)
        return result.at(target)


def prove_bits(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise unless every tensor that was read has the bits of the model's."""
    for name, tensor in state.items():
        if found[name].dtype != tensor.dtype or not torch.equal(bits_of(found[name]), bits_of(tensor)):
            raise ExportError(f"{name} was read back from the file with other bits than the model's.")


def bits_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in the order of its elements, and its shape in front of them."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return torch.cat([torch.tensor([tensor.ndim, *tensor.shape]).view(torch.uint8), flat])


def pruned_zeros(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, int]:
    """How many values of each pruned parameter are zero, or are pruned by its mask."""
    parameters = {
        uncompiled_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    if masks is None:
        return {name: int((~keep).sum()) for name, keep in masks_of_zeros(parameters).items()}
    named = {uncompiled_name(name): mask for name, mask in masks.items()}
    # Of a row of which a weight norm keeps nothing, g is zero, and not v.
    cpu = {name: computed_weight(name, parameters).detach().cpu() if name in parameters else None for name in named}
    return {name: int((~expand_mask(name, mask, cpu[name])).sum()) for name, mask in named.items()}


def result_of(found: SparseFile, path: Path, zeros: Mapping[str, int]) -> ExportResult:
    """What was found of a file that was read back and has the model's bits."""
    layers, saved = [], 0
    for name, entry in found.entries.items():
        if isinstance(entry, StoredTensor):
            saved += entry.dense_nbytes - found.nbytes[name]
        if name not in zeros:
            continue
        dense = found.tensors[name].nbytes if isinstance(entry, StoredTensor) else 0
        shape, total = tuple(found.tensors[name].shape), found.tensors[name].numel()
        layers.append(ExportedLayer(name, shape, zeros[name], total, found.describe(name), found.nbytes[name], dense))
    nbytes = path.stat().st_size
    return ExportResult(
        path,
        nbytes,
        nbytes + saved,
        tuple(layers),
        checks=(f"read back, each of the {len(found.tensors)} tensors has every bit of the model's",),
        notes=(
            "the file is smaller to keep and to send; load_sparse makes dense weights of it again, which run no faster",
        ),
        format=FORMAT,
    )
