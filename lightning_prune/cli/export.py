"""``lightning-prune export``: a checkpoint as a file for another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import add_input_shape, add_model, examples_of, load, new_command
from lightning_prune.cli.output import refuse_existing
from lightning_prune.errors import ConfigError
from lightning_prune.export import FORMATS, format_of

__all__ = ["add_export"]

# The arguments of an export by the options that give them.
_ARGUMENTS = {
    "input_shape": "example_inputs",
    "submodule": "submodule",
    "target": "minimum_deployment_target",
    "precision": "compute_precision",
    "compression": "compression",
    "frontend": "frontend",
}


def add_export(commands: Any) -> None:
    """Add the command ``export``."""
    examples = (
        "  lightning-prune export digits:ConvNet --checkpoint a.ckpt -o a.mlpackage\n"
        "  lightning-prune export torchvision.models:resnet18 --checkpoint r18.pt \\\n"
        "      -o r18.mlpackage --input-shape 1,3,224,224 --compression int8 \\\n"
        "      --target iOS18\n"
    )
    text = "Turn a checkpoint into a file for another runtime, its zeros included, and verify what was written."
    parser = new_command(commands, "export", _run, text, examples)
    add_model(parser, checkpoint_help="weights to export", checkpoint_required=True)
    endings = " or ".join(row.suffix for row in FORMATS.values())
    parser.add_argument("--output", "-o", type=home, required=True, metavar="FILE", help=f"must end in {endings}")
    parser.add_argument("--to", choices=tuple(FORMATS), help="the format. Default: by the ending of the output")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    add_input_shape(parser)
    parser.add_argument("--submodule", metavar="NAME", help="export this part of the model only")
    parser.add_argument("--target", metavar="SYSTEM", help="oldest system that must run it (default iOS16)")
    parser.add_argument("--precision", choices=("float16", "float32"), help="default float16, of Core ML")
    parser.add_argument("--compression", metavar="KIND", help="of the nonzero weights: int8, int4, palette4, ...")
    parser.add_argument("--frontend", metavar="NAME", help="how the network is captured (default auto)")


def _run(options: argparse.Namespace, out: Console) -> int:
    refuse_existing(options.output, overwrite=options.overwrite)
    row = format_of(options.output, options.to)
    known = {entry.name for entry in fields(row.export)}
    further = _further(options, row.name, known)
    model = load(options)
    if "example_inputs" in known:
        examples = examples_of(options, model)
        # the model's own example is followed into a submodule
        further["example_inputs"] = None if options.input_shape is None else examples
    out.print(row.export(options.output, overwrite=options.overwrite, **further).save(model))
    return 0


def _further(options: argparse.Namespace, to: str, known: Collection[str]) -> dict[str, Any]:
    """The arguments of an export that options of a format give; those that were not given are left to its defaults."""
    further = {}
    for option, argument in _ARGUMENTS.items():
        value = getattr(options, option)
        if value is not None and argument not in known:
            raise ConfigError(f"--{option.replace('_', '-')} is no option of {to}. Leave it out.")
        if value is not None:
            further[argument] = value
    further.pop("example_inputs", None)
    return further
