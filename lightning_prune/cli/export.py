"""``lightning-prune export``: a checkpoint as a Core ML package."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_model, load, new_command
from lightning_prune.cli.output import refuse_existing
from lightning_prune.errors import ConfigError

__all__ = ["add_export"]


def add_export(commands: Any) -> None:
    """Add the command ``export``."""
    examples = (
        "  lightning-prune export digits:ConvNet --checkpoint a.ckpt -o a.mlpackage\n"
        "  lightning-prune export torchvision.models:resnet18 --checkpoint r18.pt \\\n"
        "      -o r18.mlpackage --input-shape 1,3,224,224 --compression int8 \\\n"
        "      --target iOS18\n"
    )
    text = "Turn a checkpoint into a Core ML package with sparse weights, and verify what was written."
    parser = new_command(commands, "export", _run, text, examples)
    add_model(parser, checkpoint_help="weights to export", checkpoint_required=True)
    parser.add_argument("--output", "-o", type=home, required=True, metavar="FILE", help="must end in .mlpackage")
    parser.add_argument("--overwrite", action="store_true", help="replace the package if it is there")
    shape = "shape of one input, such as 1,3,224,224; repeatable. Default: the model's example_input_array"
    parser.add_argument("--input-shape", action="append", type=_shape, metavar="SHAPE", help=shape)
    parser.add_argument("--submodule", metavar="NAME", help="export this part of the model only")
    parser.add_argument("--target", default="iOS16", help="oldest system that must run it (default iOS16)")
    parser.add_argument("--precision", default="float16", choices=("float16", "float32"), help="default float16")
    parser.add_argument("--compression", metavar="KIND", help="of the nonzero weights: int8, int4, palette4, ...")
    parser.add_argument(
        "--frontend", default="auto", choices=("auto", "export", "trace", "export_full"), help="default auto"
    )


def _run(options: argparse.Namespace, out: Console) -> int:
    import torch

    from lightning_prune.export import CoreMLExport

    refuse_existing(options.output, overwrite=options.overwrite)
    model = load(options)
    if options.input_shape is None and getattr(model, "example_input_array", None) is None:
        raise ConfigError(
            f"{type(model).__name__} has no example_input_array, so the shape of an input must be said. "
            "Write --input-shape 1,3,224,224, once for each input."
        )
    try:
        inputs = None if options.input_shape is None else tuple(torch.zeros(shape) for shape in options.input_shape)
    except (RuntimeError, OverflowError) as error:  # of more memory than there is
        raise ConfigError(f"--input-shape must fit into memory: {str(error).splitlines()[0]}") from error
    export = CoreMLExport(
        options.output,
        inputs,
        submodule=options.submodule,
        minimum_deployment_target=options.target,
        compute_precision=options.precision,
        frontend=options.frontend,
        compression=options.compression,
        overwrite=options.overwrite,
    )
    out.print(export.save(model))
    return 0


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes such as 1,3,224,224, got {text!r}")
    return shape
