"""``lightning-prune convert``: a checkpoint with plain names, or as a sparse file and back."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from lightning_prune.basics import home
from lightning_prune.cli.arguments import new_command
from lightning_prune.cli.output import need_folder, refuse_existing, write_text

__all__ = ["add_convert"]


def add_convert(commands: Any) -> None:
    """Add the command ``convert``."""
    examples = (
        "  lightning-prune convert coremltools.ckpt plain.ckpt\n"
        "  lightning-prune convert last.ckpt model.safetensors   # small: stored sparsely\n"
        "  lightning-prune convert model.safetensors model.ckpt  # and back\n"
    )
    text = (
        "Rewrite a checkpoint of Core ML Tools, torch.nn.utils.prune or Lightning's ModelPruning with plain names and "
        "pruned weights; or turn any checkpoint into a sparse .safetensors, and back."
    )
    parser = new_command(commands, "convert", _run, text, examples)
    parser.add_argument("source", type=home, metavar="IN", help="a checkpoint, state dict or .safetensors")
    parser.add_argument(
        "target", type=home, metavar="OUT", help="where to write it; a sparse file if it ends in .safetensors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is there")


def _run(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.masking import convert_checkpoint

    if options.source.exists():  # a wrong source is the first thing to say
        refuse_existing(options.target, overwrite=options.overwrite)
        need_folder(options.target)
    if ".safetensors" in (options.source.suffix, options.target.suffix):
        return _convert_sparse(options, out)
    converted = convert_checkpoint(options.source, options.target, overwrite=options.overwrite)
    for name, sparsity in converted.items():
        write_text(out, f"{name}: {sparsity:.2%} zero")
    write_text(out, f"Wrote {options.target}, {len(converted)} weights converted")
    return 0


def _convert_sparse(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.export import convert_sparse

    done = convert_sparse(options.source, options.target, overwrite=options.overwrite)
    if done.lost:
        write_text(out, f"Not in {options.target}: {', '.join(done.lost)}")
    write_text(out, f"Wrote {options.target}, {done.tensors} tensors in {done.nbytes:,} bytes")
    return 0
