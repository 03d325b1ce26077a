"""One network of bench_networks through one export after the other, in a process of its own: a JSON line for each.

python -m benchmarks.network_run NETWORK OUTPUT EXPORT [EXPORT ...]
"""

import argparse
import contextlib
import json
import pkgutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.common import import_coremltools
from benchmarks.network_zoo import NETWORKS, Network
from lightning_prune import MagnitudePruner
from lightning_prune.export import CoreAIExport, CoreMLExport, Export, ExportResult, ONNXExport, SparseExport
from lightning_prune.export.pruned import pruned_copy

SPARSITY = 0.75
ROOM = "lightning_prune.export"
# What an export calls to make a file, the first of them once in every attempt, and what to prove it.
MAKING = {
    "coreml": ("coreml.attempts.capture", "coreml.attempts.convert", "coreml.attempts.save_package"),
    "coreai": ("coreai.export.capture", "coreai.export.store_sparse", "coreai.export.convert"),
    "onnx": ("onnx.export.ONNXExport.write",),
    "sparse": ("sparse.export.write_sparse",),
}
PROVING = {
    "coreml": ("coreml.attempts.read_package", "coreml.attempts.prove_weights", "coreml.attempts.prove_numbers"),
    "coreai": ("coreai.export.read_back", "coreai.export.prove_weights", "coreai.export.prove_numbers"),
    "onnx": ("onnx.export.ONNXExport.prove",),
    "sparse": ("sparse.export.read_sparse", "sparse.export.prove_bits"),
}


class Watch:
    """How long functions of an export take, in seconds of the processor, and which of them failed last."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float]] = []  # the name, when the call began and when it ended
        self.failed = ""

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            except Exception:
                self.failed = name
                raise
            finally:
                self.calls.append((name, began, time.process_time()))

        return watched

    def split(self, making: tuple[str, ...], end: float) -> dict[str, float]:
        """Seconds that the last attempt took to make the file, and from then on to prove it."""
        made = [call for call in self.calls if call[0] in making]
        first = max((at for at, (name, _, _) in enumerate(made) if name == making[0]), default=len(made))
        if first == len(made):
            return {}
        return {"conversion": made[-1][2] - made[first][1], "proof": end - made[-1][2]}


@contextlib.contextmanager
def watching(export: str) -> Iterator[Watch]:
    """Watch what an export calls."""
    watch = Watch()
    with contextlib.ExitStack() as stack:
        for name in (*MAKING[export], *PROVING[export]):
            target = f"{ROOM}.{name}"
            where, _, attribute = target.rpartition(".")
            original = getattr(resolved(where), attribute)
            stack.enter_context(patch(target, watch.around(name, original)))
        yield watch


def resolved(path: str) -> Any:
    """A module, or a class in one, by its dotted path."""
    return pkgutil.resolve_name(path)


def pruned(network: Network) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with random weights of which three quarters are zero, and the masks."""
    torch.manual_seed(0)
    model = network.make()
    enliven(model)
    rule = {"scheduler": {"update_steps": [1]}, "target_sparsity": SPARSITY}
    config = {"global_config": rule, "module_type_configs": dict.fromkeys(network.others, rule)}
    pruner = MagnitudePruner(model, config, masking="resident")
    pruner.prepare(inplace=True)
    pruner.step()
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    return pruner.finalize(inplace=True).eval(), masks


def enliven(model: nn.Module) -> None:
    """Move scales and shifts that begin as zeros and ones, and weights that begin as zeros: no branch shall be dead."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter.numel() == max(parameter.shape) or not parameter.any():
                parameter += 0.1 * torch.randn(parameter.shape)


def export_to(kind: str, folder: Path, example: Any) -> Export:
    """The export of a name, into a folder."""
    if kind == "coreml":
        return CoreMLExport(folder / "net.mlpackage", example)
    if kind == "coreai":
        return CoreAIExport(folder / "net.aimodel", example)
    return ONNXExport(folder / "net.onnx", example) if kind == "onnx" else SparseExport(folder / "net.safetensors")


def measured(kind: str, network: Network) -> dict[str, Any]:
    """What came of one export."""
    model, masks = pruned(network)
    example = network.example()
    with TemporaryDirectory() as folder, watching(kind) as watch:
        export = export_to(kind, Path(folder), example)
        began = time.process_time()
        try:
            found = described(export.save(model, masks=masks))
        except Exception as error:
            text = str(error)
            found = {
                "outcome": "refused",
                "failed_in": watch.failed,
                "error": type(error).__name__,
                "reason": text[:4000],
            }
        end = time.process_time()
    calls = [(name, round(stop - start, 3)) for name, start, stop in watch.calls]
    return {**found, "seconds": end - began, **watch.split(MAKING[kind], end), "calls": calls}


def described(result: ExportResult) -> dict[str, Any]:
    """What a result says of a file."""
    return {
        "outcome": "proven",
        "bytes": result.package_bytes,
        "ratio": result.ratio,
        "near_error": result.near_error,
        "far_error": result.far_error,
        "sparse": sum(not layer.stored.startswith("dense") for layer in result.layers),
        "layers": len(result.layers),
        "frontend": result.frontend,
        "attempts": list(result.attempts),
        "not_checked": list(result.not_checked),
        "notes": list(result.notes),
        "checks": list(result.checks),
    }


def bare(network: Network) -> dict[str, Any]:
    """Whether Core ML Tools by itself converts what torch captures, by export or by tracing."""
    ct = import_coremltools()
    model, _ = pruned(network)
    standalone, _ = pruned_copy(model, {}, network.example(), export="CoreMLExport")
    found: dict[str, Any] = {}
    for way in ("export", "trace"):
        began = time.process_time()
        try:
            converted(ct, standalone, way)
            found[f"by_{way}"] = "converts"
        except Exception as error:
            found[f"by_{way}"] = f"{type(error).__name__}: {error}"[:1000]
        found[f"seconds_by_{way}"] = time.process_time() - began
    ways = [way for way in ("export", "trace") if found[f"by_{way}"] == "converts"]
    return {"outcome": "converts" if ways else "refused", "ways": ways, **found}


def converted(ct: Any, standalone: nn.Module, way: str) -> None:
    """Capture a network as the documentation of Core ML Tools says, and convert it."""
    options = {"minimum_deployment_target": ct.target.iOS16, "convert_to": "mlprogram"}
    with torch.no_grad():
        if way == "export":
            program = torch.export.export(standalone, standalone.inputs, strict=False).run_decompositions({})
        else:
            program = torch.jit.trace(standalone, standalone.inputs, check_trace=False)
            kinds = {torch.float32: float, torch.int64: int, torch.int32: int}
            options["inputs"] = [
                ct.TensorType(name, tuple(tensor.shape), dtype=kinds[tensor.dtype])
                for name, tensor in zip(standalone.input_names, standalone.inputs, strict=True)
            ]
        ct.convert(program, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("output", type=Path)
    parser.add_argument("exports", nargs="+", choices=["bare", *MAKING])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    network = NETWORKS[args.network]
    for kind in args.exports:
        row = bare(network) if kind == "bare" else measured(kind, network)
        line = json.dumps({"network": args.network, "export": kind, **row}) + "\n"
        with args.output.open("ab", buffering=0) as file:  # in one piece
            file.write(line.encode())


if __name__ == "__main__":
    main()
