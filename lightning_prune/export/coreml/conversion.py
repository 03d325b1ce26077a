"""From a standalone module to a Core ML package on disk: capture, convert, store sparse, save."""

import contextlib
import io
import logging
import os
import re
import stat
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.basics.quiet import quiet_torch
from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.coreml.gaps import decompose_needed, drop_aliases, whole_numbers
from lightning_prune.export.pruned import BREAK_EVEN
from lightning_prune.export.standalone import Standalone

__all__ = [
    "FRONTENDS",
    "SPARSE_OPERATIONS",
    "capture",
    "convert",
    "pipeline",
    "quiet",
    "save_package",
]

FRONTENDS = ("export", "trace", "export_needed", "export_full")
# Weights of these operations are stored sparse; the others' constants are biases, norms and shapes.
SPARSE_OPERATIONS = ("conv", "conv_transpose", "linear", "matmul", "gather", "einsum", "lstm", "gru", "rnn")
# What the converter says of things that are as they should be, that verification finds out for itself, or (new names)
# that are said in other words.
NOISE = re.compile(
    "has been renamed to|^Tuple detected at graph|Skipped|down casted to|not applicable for|not in eval mode"
    "|Torch Script Models is experimental|has not been tested with|run predict"
)


def convert(ct: Any, program: Any, arguments: dict[str, Any]) -> Any:
    """Run the converter; to be called where its warnings are caught.

    A converter that fails leaves a temporary folder to the variables of its calls, which the error keeps. It warns
    when that is removed, so this happens here, and not wherever the error is let go.
    """
    try:
        return _convert(ct, program, arguments)
    except Exception as error:
        failed: BaseException | None = error
        while failed is not None:
            traceback.clear_frames(failed.__traceback__)
            failed = failed.__context__
        raise


def _convert(ct: Any, program: Any, arguments: dict[str, Any]) -> Any:
    with whole_numbers():
        try:
            return ct.convert(program, **arguments)
        except ValueError as error:
            if "compression config conflict" not in str(error):
                raise
        # A weight is read by two kinds of operations, of which one is known to take sparse weights: then all do.
        return ct.convert(program, **{**arguments, "pass_pipeline": pipeline(ct, everywhere=True)})


def pipeline(ct: Any, *, everywhere: bool = False, fold_norms: bool = True) -> Any:
    """The converter's plain passes, and after the last of them the sparse storage of every weight with enough zeros.

    Last, because a weight stored sparse can no longer be folded with a batch norm. Threshold 0: only zeros are taken as
    zeros. ``everywhere``: also what other operations than ``SPARSE_OPERATIONS`` read. ``fold_norms``: as the converter
    does by itself.
    """
    coreml = ct.optimize.coreml
    stored = coreml.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=BREAK_EVEN, weight_threshold=0)
    passes = ct.PassPipeline.DEFAULT
    if not fold_norms:
        passes.remove_passes({"common::fuse_conv_batchnorm"})
    passes.append_pass("compression::prune_weights")
    which = {"global_config": stored} if everywhere else {"op_type_configs": dict.fromkeys(SPARSE_OPERATIONS, stored)}
    config = coreml.OptimizationConfig(**which)
    passes.set_options("compression::prune_weights", {"config": config})
    return passes


def capture(frontend: str, standalone: Standalone, dynamic: Sequence[frozenset[int]]) -> tuple[Any, tuple[str, ...]]:
    """Capture the computation for the converter, and what the capture warned about.

    Args:
        frontend: One of ``FRONTENDS``.
        standalone: What to capture.
        dynamic: For each input, the dimensions that may have other sizes than the example.
    """
    inputs = tuple(at_least_two(tensor, dims) for tensor, dims in zip(standalone.inputs, dynamic, strict=True))
    with warnings.catch_warnings(record=True) as caught, quiet_torch(), kept_buffers(standalone):
        warnings.simplefilter("always")
        if frontend == "trace":
            # Verification compares results on other inputs than the traced ones; the tracer's own check does not.
            with readable_attributes(standalone):
                program: Any = torch.jit.trace(standalone, standalone.inputs, check_trace=False)  # type: ignore[no-untyped-call]
        else:
            sizes = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in dynamic)
            dynamic_shapes = (sizes,) if any(sizes) else None
            exported = torch.export.export(standalone, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            program = exported.run_decompositions(decompositions() if frontend == "export_full" else {})
            drop_aliases(program)
            if frontend == "export_needed":
                program = decompose_needed(program, decompositions())
            spell_out_strides(program)
    return program, traced_decisions(caught)


@contextlib.contextmanager
def readable_attributes(model: nn.Module) -> Iterator[None]:
    """Hide from the tracer what cannot be read, such as a property of a LightningModule that asks for its trainer.

    The tracer reads whatever ``dir(module)`` lists, and fails at any error but AttributeError. The classes of the
    modules stay what they are, for ``forward`` may look at them.
    """
    hidden = {id(module): {name for name in dir(module) if not is_readable(module, name)} for module in model.modules()}
    list_all: Callable[[nn.Module], list[str]] = nn.Module.__dir__

    def list_readable(self: nn.Module) -> list[str]:
        return [name for name in list_all(self) if name not in hidden.get(id(self), ())]

    nn.Module.__dir__ = list_readable  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__dir__ = list_all  # type: ignore[method-assign]


def is_readable(module: nn.Module, name: str) -> bool:
    """Whether an attribute is there, or is known not to be."""
    try:
        getattr(module, name, None)
    except Exception:
        return False
    return True


def at_least_two(tensor: Tensor, dims: Iterable[int]) -> Tensor:
    """A tensor with dimensions of size 1 doubled: ``torch.export`` takes a size of 1 as fixed for ever."""
    for dim in dims:
        if tensor.shape[dim] == 1:
            tensor = tensor.repeat_interleave(2, dim)
    return tensor


def decompositions() -> dict[Any, Any]:
    """How to break operations that the converter does not know into those that it does.

    Not those of matrix products, which it knows: broken up, a weight is expanded to the batch and stored once for every
    sample.
    """
    table = dict(torch.export.default_decompositions())
    for operation in (torch.ops.aten.linear.default, torch.ops.aten.matmul.default):
        table.pop(operation, None)
    return table


def traced_decisions(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """Where tracing met a Python decision on a tensor, in code that is not torch's own."""
    torch_folder = str(Path(torch.__file__).parent)
    places = [
        f"{item.filename}:{item.lineno}"
        for item in caught
        if item.category.__name__ == "TracerWarning" and not item.filename.startswith(torch_folder)
    ]
    return tuple(f"tracing fixed a Python decision on a tensor at {place}" for place in dict.fromkeys(places))


def spell_out_strides(program: Any) -> None:
    """Give every pooling its stride: ``torch.export`` leaves out the default, and the converter then fails."""
    for node in program.graph.nodes:
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if "_pool" in name and "adaptive" not in name and len(node.args) == 2 and "stride" not in node.kwargs:
            node.args = (*node.args, node.args[1])


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep progress bars, log lines and warnings of the converter from the user's screen.

    Yields:
        A list that is empty within, and afterwards holds what a user must know of them.
    """
    notes: list[str] = []
    heard = Listener()
    talker = logging.getLogger("coremltools")
    level, propagate, handlers = talker.level, talker.propagate, talker.handlers
    talker.setLevel(logging.WARNING)
    talker.propagate, talker.handlers = False, [heard]
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            yield notes
    finally:
        talker.setLevel(level)
        talker.propagate, talker.handlers = propagate, handlers
    heard.texts.extend(str(item.message) for item in caught if item.category is UserWarning)
    notes.extend(
        dict.fromkeys(f"Core ML Tools: {text}" for text in map(one_line, heard.texts) if not NOISE.search(text))
    )


class Listener(logging.Handler):
    """Remembers what was logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one message."""
        self.texts.append(record.getMessage())


def one_line(text: str) -> str:
    """A message without its line breaks and without what is too long to be read."""
    return textwrap.shorten(text, 300, placeholder=" ...")


def save_package(converted: Any, path: Path) -> None:
    """Write the package, without the map for another runtime's debugger, and readable for whom the umask allows."""
    converted.save(str(path))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    umask = os.umask(0)
    os.umask(umask)
    for file in path.rglob("*"):
        if file.is_file():
            # The converter makes the program's file readable for its owner only.
            file.chmod((stat.S_IMODE(file.stat().st_mode) | 0o666) & ~umask)
