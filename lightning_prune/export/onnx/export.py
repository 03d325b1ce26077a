"""ONNX export of any finalized module, proven on the saved file, which onnxruntime executes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.basics import as_flag, as_whole, put_in_place, writing_to
from lightning_prune.basics.quiet import quiet_torch
from lightning_prune.errors import ExportError, one_line
from lightning_prune.export.declared import check_given_names, same_number
from lightning_prune.export.draws import largest_values
from lightning_prune.export.failures import as_export_error, not_made
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.onnx.dynamic import row_of_shapes, shapes_to_try
from lightning_prune.export.onnx.model import arrays_of, import_onnx, is_onnx, program_of, read_model
from lightning_prune.export.onnx.zeros import prove_zeros
from lightning_prune.export.proof import prove_numbers
from lightning_prune.export.pruned import examples_of, part_of, pruned_copy
from lightning_prune.export.result import ExportResult
from lightning_prune.export.standalone import Standalone
from lightning_prune.export.structures import take_apart
from lightning_prune.export.targets import check_choice, check_path, target_path

__all__ = ["ONNXExport"]

FORMAT = "ONNX model"
# A file is one message of protobuf, which has less than 2 GiB; the rest is left to the graph.
MOST_BYTES = 2**31 - 2**27
OLDEST_OPSET = 18
NO_GAIN = (
    "zeros make an ONNX model neither smaller nor faster: its weights are stored densely, and runtimes compute with "
    "zeros as with any number. A network with fewer channels is both"
)


@dataclass
class ONNXExport:
    """Turn a finished network into an ``.onnx``, and show that the file computes the same and has its zeros.

    The model itself is never changed: a copy is moved to the CPU, to float32 and to eval mode. The file is written
    beside its target, run there by onnxruntime on fresh inputs, and moved into place in one step.

    Args:
        path: Where the file goes; must end in ``.onnx``. ``~`` stands for the home folder.
        example_inputs: A tensor, a sequence of positional arguments, or a dict of keyword arguments of one call.
            Default: the model's ``example_input_array``.
        input_names: Names in the file, one a tensor. Default: the argument names of ``forward``.
        output_names: Names of the results. Default: the keys of a dict, else ``output``, ``output_0`` ...
        dynamic_shapes: Which dimensions may have other sizes, as ``torch.export.export`` takes it:
            ``{"x": {0: torch.export.Dim("batch")}}`` or ``{"x": {0: "batch"}}``. Verification tries other sizes.
        opset_version: Of ONNX, 18 or newer. Default: what ``torch.onnx.export`` takes.
        submodule: Dotted name of the part to export; the dynamic shapes are then those of its inputs. Default: the
            whole model.
        overwrite: Whether an existing ONNX model may be replaced. What is something else is never replaced.
        on_error: What a training run does when the export at its end fails: ``"warn"`` or ``"raise"``. :meth:`save`
            always raises.

    Raises:
        ConfigError: A value cannot work.

    Example:
        >>> ONNXExport("digits.onnx", opset_version=9)
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: export.opset_version must be a whole number of at least 18, got 9.
    """

    path: str | os.PathLike[str]
    example_inputs: Any = None
    input_names: Sequence[str] | None = field(default=None, kw_only=True)
    output_names: Sequence[str] | None = field(default=None, kw_only=True)
    dynamic_shapes: Any = field(default=None, kw_only=True)
    opset_version: int | None = field(default=None, kw_only=True)
    submodule: str | None = field(default=None, kw_only=True)
    overwrite: bool = field(default=True, kw_only=True)
    on_error: Literal["warn", "raise"] = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        self.path = target_path(self.path, ".onnx")
        check_choice("on_error", self.on_error, ("warn", "raise"))
        self.overwrite = as_flag("export.overwrite", self.overwrite)
        if self.opset_version is not None:
            self.opset_version = as_whole("export.opset_version", self.opset_version, least=OLDEST_OPSET)
        check_given_names(self.input_names, self.output_names)

    def check(self, model: nn.Module | None = None) -> None:
        """Find what would make the export fail, before hours of training are spent; writes nothing.

        Args:
            model: The model to be exported. Without it, what depends on it is not checked.

        Raises:
            ConfigError: A value cannot work, with this model.
            ExportError: A package is not installed, or the model is too large for a file of ONNX.
        """
        import_onnx()
        check_path(Path(self.path), overwrite=self.overwrite, is_ours=is_onnx, what="an ONNX model")
        if model is None:
            return
        examples, part = examples_of(model, self.example_inputs, "ONNXExport"), part_of(model, self.submodule)
        check_size(part)
        if self.submodule is None or self.example_inputs is not None:
            args, kwargs, leaves = take_apart(part, examples)
            if self.input_names is not None:
                same_number("input_names", self.input_names, [tensor for _, tensor in leaves])
            row_of_shapes(part, args, kwargs, self.dynamic_shapes)

    def save(self, model: nn.Module, *, masks: Mapping[str, Tensor] | None = None) -> ExportResult:
        """Convert, verify, and move the file into place.

        Args:
            model: A finalized module, on any device, in any floating dtype, in train or eval mode. Not changed.
            masks: Keep-masks of the pruned parameters by name (``"conv1.weight"``), broadcastable to their parameter.
                Default: the zeros of every weight of which at least a sixteenth is zero.

        Raises:
            ExportError: The file could not be made, or is not what it must be; what lay at ``path`` is still there.
        """
        target = Path(self.path)
        with as_export_error(FORMAT, model, target):
            self.check(model)
            standalone, pruned = pruned_copy(
                model, masks, self.example_inputs, export="ONNXExport", submodule=self.submodule
            )
            with writing_to(target) as place:
                self.write(standalone, place)
                result = self.prove(standalone, pruned, place)
                self.check()  # converting took its time
                put_in_place(place, target)
        return result.at(target)

    def write(self, standalone: Standalone, place: Path) -> None:
        """Convert, and save at a place."""
        inputs, outputs = self.input_names or standalone.input_names, self.output_names or standalone.output_names
        same_number("input_names", inputs, standalone.inputs)
        same_number("output_names", outputs, standalone.outputs)
        shapes = None if self.dynamic_shapes is None else (tuple(self.row(standalone)),)
        convert = partial(
            torch.onnx.export,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=self.opset_version,
        )
        try:
            with warnings.catch_warnings(), quiet_torch():
                warnings.simplefilter("ignore")  # of the exporter, about itself
                try:
                    program = convert(standalone, standalone.inputs, dynamic_shapes=shapes)
                except Exception:
                    if (captured := captured_in_order(standalone, shapes)) is None:
                        raise
                    program = convert(captured)
                if program is None:
                    raise ExportError("torch.onnx.export gave nothing.")
                program.save(place, external_data=False)
        except OSError:
            raise
        except Exception as error:
            first = cause_of(error)
            raise ExportError(
                f"{not_made(FORMAT, standalone.model, Path(self.path))}\n"
                f"  torch.onnx.export: {type(first).__name__}: {one_line(first, most=600)}"
            ) from error

    def row(self, standalone: Standalone) -> list[Any]:
        """What is dynamic of each input."""
        return row_of_shapes(standalone.model, standalone.args, standalone.kwargs, self.dynamic_shapes)

    def prove(self, standalone: Standalone, pruned: Mapping[str, Tensor], place: Path) -> ExportResult:
        """Verify what was saved at a place."""
        graph = read_model(place).graph
        findings = Findings(notes=[NO_GAIN])
        prove_zeros(arrays_of(graph), standalone, pruned, findings)
        names = list(self.input_names or standalone.input_names)
        by_name = {value.name: value for value in graph.input}
        if gone := [name for name in names if name not in by_name]:
            findings.notes.append(f"the inputs {', '.join(gone)} do nothing, and are not in the file")
        inputs = []
        rows = zip(names, standalone.inputs, self.row(standalone), largest_values(standalone), strict=True)
        for name, example, spec, top in rows:
            shape = tuple(example.shape)
            if name not in by_name:
                inputs.append(ProgramInput(name, (shape,), top=top))
                continue
            tried = shapes_to_try(by_name[name], example, spec)
            left = () if tried.not_tried is None else (f"{tried.not_tried} of {name}",)
            inputs.append(ProgramInput(name, tuple(dict.fromkeys([shape, *tried.shapes])), top=top, not_tried=left))
        prove_numbers(program_of(place), standalone, inputs, findings)
        nbytes = place.stat().st_size
        return findings.result(FORMAT, place, nbytes, nbytes, frontend="torch.onnx")


def captured_in_order(standalone: Standalone, shapes: Any) -> torch.export.ExportedProgram | None:
    """The captured model, with what attention gives put in order in memory; None where that cannot be, or need not.

    The exporter breaks up attention into operations whose result may lie otherwise, after it has made a view of it.
    """
    try:
        with torch.no_grad():
            captured = torch.export.export(standalone, standalone.inputs, dynamic_shapes=shapes, strict=False)
    except Exception:  # that of the exporter itself is shown
        return None
    attention = torch.ops.aten.scaled_dot_product_attention.default
    attended = [node for node in captured.graph.nodes if node.target is attention]
    for node in attended:
        with captured.graph.inserting_after(node):
            ordered = captured.graph.call_function(torch.ops.aten.clone.default)
        node.replace_all_uses_with(ordered)
        ordered.args, ordered.kwargs = (node,), {"memory_format": torch.contiguous_format}
        ordered.meta["val"] = node.meta["val"].contiguous()
    captured.graph_module.recompile()
    return captured if attended else None


def check_size(model: nn.Module) -> None:
    """Raise if a model's weights do not fit into a file."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    nbytes = sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors)
    if nbytes > MOST_BYTES:
        raise ExportError(
            f"A file of ONNX holds less than 2 GiB, but the weights of {type(model).__name__} take {nbytes:,} bytes in "
            "float32, and files beside it could not be put in place together. Export parts of it with submodule=."
        )


def cause_of(error: BaseException) -> BaseException:
    """What an error of the exporter was raised from, at last; its own text is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
