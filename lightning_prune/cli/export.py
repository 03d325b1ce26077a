"""``lightning-prune export``: a checkpoint as a Core ML package."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_input_shape, add_model, examples_of, load, new_command
from lightning_prune.cli.output import refuse_existing

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
    add_input_shape(parser)
    parser.add_argument("--submodule", metavar="NAME", help="export this part of the model only")
    parser.add_argument("--target", default="iOS16", help="oldest system that must run it (default iOS16)")
    parser.add_argument("--precision", default="float16", choices=("float16", "float32"), help="default float16")
    parser.add_argument("--compression", metavar="KIND", help="of the nonzero weights: int8, int4, palette4, ...")
    parser.add_argument(
        "--frontend", default="auto", choices=("auto", "export", "trace", "export_full"), help="default auto"
    )


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.export import CoreMLExport

    refuse_existing(options.output, overwrite=options.overwrite)
    model = load(options)
    examples = examples_of(options, model)
    export = CoreMLExport(
        options.output,
        None if options.input_shape is None else examples,  # the model's own are followed into a submodule
        submodule=options.submodule,
        minimum_deployment_target=options.target,
        compute_precision=options.precision,
        frontend=options.frontend,
        compression=options.compression,
        overwrite=options.overwrite,
    )
    out.print(export.save(model))
    return 0
