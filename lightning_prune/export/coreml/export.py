"""Core ML export of any finalized module, proven on the saved file.

The converter's own pruning pipeline zeroes small weights, stores most layers dense, or keeps batch norms from being
folded, without a word. Here the plain pipeline runs, batch norms are folded, and as the very last pass every weight
with enough zeros is stored as a bit mask and its nonzero values. Then the package is read back from disk and compared
with the model, weight by weight (:mod:`lightning_prune.export.coreml.weights`) and number by number
(:mod:`lightning_prune.export.proof`), and only then moved to where it was asked for.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune.basics import put_in_place, writing_to
from lightning_prune.export.coreml.attempts import first_proven
from lightning_prune.export.coreml.interface import (
    refuse_states_that_are_not_zero,
)
from lightning_prune.export.coreml.settings import FORMAT, CoreMLSettings
from lightning_prune.export.failures import as_export_error
from lightning_prune.export.pruned import pruned_copy
from lightning_prune.export.result import ExportResult
from lightning_prune.export.standalone import Standalone

__all__ = ["CoreMLExport"]


@dataclass
class CoreMLExport(CoreMLSettings):
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
                result = first_proven(self, standalone, pruned, place, guessed=masks is None)
                self.check_place()  # converting took its time
                put_in_place(place, Path(self.path))
        return result.at(Path(self.path))

    def prepare(self, model: nn.Module, masks: Mapping[str, Tensor] | None) -> tuple[Standalone, dict[str, Tensor]]:
        """The copy to convert, and the keep-masks by parameter name within it."""
        return pruned_copy(model, masks, self.example_inputs, export="CoreMLExport", submodule=self.submodule)
