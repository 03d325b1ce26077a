"""The command line ``lightning-prune``: plan before training, look into files and export after it.

Exit codes: 0, done; 1, it could not be done (one line on standard error says why); 2, the command is not written right;
3, ``inspect --at-least`` found less sparsity than asked; 130, interrupted.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

import lightning_prune
from lightning_prune.analysis import Method
from lightning_prune.basics import home, new_table, printable
from lightning_prune.errors import CheckpointError, ConfigError, PruningError, first_names, one_line, shown
from lightning_prune.pruner import MOST_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["build_parser", "main"]

_BELOW, _INTERRUPTED = 3, 130
_PICTURES = (".png", ".pdf", ".svg")
_WIDTH = 80  # columns of a help text

_DESCRIPTION = """\
Magnitude pruning for PyTorch Lightning: plan it before training, inspect files
and export after it.

A MODEL is written as package.module:Class, looked for in the current folder
too; its constructor arguments are given as JSON by --args, or come from the
checkpoint of a LightningModule that called save_hyperparameters().
"""
_EPILOG = """\
examples:
  lightning-prune init digits:ConvNet --output pruning.yaml
  lightning-prune plan digits:ConvNet --config pruning.yaml --steps 700
  lightning-prune inspect last.ckpt
  lightning-prune export digits:ConvNet --checkpoint a.ckpt -o a.mlpackage

exit codes: 0 done, 1 it could not be done, 2 the command is not written right,
            3 inspect --at-least found less, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit code; see the top of this module.
    """
    options = build_parser().parse_args(arguments)
    out, err = (Console(stderr=to_err, markup=False, emoji=False, highlight=False) for to_err in (False, True))
    try:
        return int(options.run(options, out))
    except (PruningError, ImportError, OSError) as error:
        if options.debug:
            raise
        err.print("error: ", style="bold red", end="")
        err.print(_said(error), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        err.print("interrupted")
        return _INTERRUPTED


def _said(error: Exception) -> str:
    """What an error says, on one line and letter for letter."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}."
    return printable(" ".join(line.strip() for line in text.splitlines()))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="lightning-prune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Formatter
    )
    parser.add_argument("--version", action="version", version=f"lightning-prune {lightning_prune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_init, _add_plan, _add_inspect, _add_export, _add_convert, _add_plot):
        add(commands)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples; 80 columns are enough for all else."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_WIDTH)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, Console], int], text: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(text, _WIDTH),
        epilog=f"examples:\n{examples}",
        formatter_class=_Formatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_model(parser: argparse.ArgumentParser, *, checkpoint_help: str, checkpoint_required: bool = False) -> None:
    parser.add_argument("model", metavar="MODEL", help="package.module:Class, or a function that gives the model")
    parser.add_argument("--args", metavar="JSON", help="arguments of the class, an object or a list")
    parser.add_argument("--checkpoint", type=home, metavar="FILE", required=checkpoint_required, help=checkpoint_help)


def _load(options: argparse.Namespace) -> Any:
    from lightning_prune.cli.loading import load_model

    return load_model(options.model, arguments=options.args, checkpoint=options.checkpoint)


def _add_init(commands: Any) -> None:
    examples = (
        "  lightning-prune init digits:ConvNet > pruning.yaml\n"
        "  lightning-prune init digits:ConvNet --sparsity 0.9 --dense head -o prune.yaml\n"
        "  lightning-prune init digits:ConvNet --sparsity 0.9 --spread erdos_renyi_kernel\n"
        "  lightning-prune init digits:ConvNet --checkpoint last.ckpt --spread global\n"
    )
    text = "Write a configuration for a model, as YAML with comments, to be edited."
    parser = _command(commands, "init", _run_init, text, examples)
    _add_model(parser, checkpoint_help="weights of the model; --spread global ranks them")
    parser.add_argument("--output", "-o", type=home, metavar="FILE", help="where to write; default: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--sparsity", type=float, default=0.75, metavar="S", help="fraction of zeros (default 0.75)")
    for name, default, what in (
        ("begin", 0.1, "first update"),
        ("end", 0.6, "last update, at which the target is reached"),
        ("frequency", None, "distance of updates"),
    ):
        usual = default or "100 steps, or less for ten updates at least"
        text = f'{what}: steps (an int), a fraction of the run (a float) or "2 epochs" (default {usual})'
        parser.add_argument(f"--{name}", type=_moment, default=default, metavar="WHEN", help=text)
    parser.add_argument("--dense", action="append", default=[], metavar="NAME", help="leave a module dense; repeatable")
    parser.add_argument(
        "--spread", choices=get_args(Method), help="write one rule a layer that spreads the sparsity over the model"
    )


def _run_init(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.cli.starter import starter_yaml

    text = starter_yaml(
        _load(options),
        name=options.model,
        sparsity=options.sparsity,
        scheduler={
            name: getattr(options, name) for name in ("begin", "end", "frequency") if getattr(options, name) is not None
        },
        dense=options.dense,
        method=options.spread,
    )
    if options.output is None:
        _plain(out, text.rstrip("\n"))
    else:
        _refuse_existing(options.output, overwrite=options.overwrite)
        _need_folder(options.output)
        options.output.write_text(text, encoding="utf-8")
        _plain(out, f"Wrote {options.output}")
    return 0


def _moment(text: str) -> int | float | str:
    """A moment of a training run, as a schedule takes it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _length(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _add_plan(commands: Any) -> None:
    examples = (
        "  lightning-prune plan digits:ConvNet --config pruning.yaml\n"
        "  lightning-prune plan digits:ConvNet -c pruning.yaml --steps 700 --plot a.png\n"
        "  lightning-prune plan digits:ConvNet --config pruning.yaml --format json\n"
    )
    text = "Say what a configuration prunes of a model, by which rule, and what not and why."
    parser = _command(commands, "plan", _run_plan, text, examples)
    _add_model(parser, checkpoint_help="weights of the model; a plan does not need them")
    parser.add_argument(
        "--config", "-c", metavar="FILE", help="YAML file, whose class_path is imported; default: half of each layer"
    )
    parser.add_argument(
        "--steps", type=_count, metavar="N", help="length of the run in optimizer steps: shows the curve"
    )
    parser.add_argument("--steps-per-epoch", type=_length, metavar="N", help="for schedules that count epochs")
    parser.add_argument("--plot", type=home, metavar="FILE", help="draw the curve; needs --steps")
    _add_format(parser)


def _run_plan(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.analysis import plan_curves, plot_plan
    from lightning_prune.config import load_config
    from lightning_prune.plan import plan_pruning
    from lightning_prune.schedules import TrainingRun

    if options.plot is not None and options.steps is None:
        raise ConfigError("--plot draws sparsity over steps, so it needs the length of the run. Write --steps 1000.")
    if options.plot is not None:
        _check_picture("--plot", options.plot)
    plan = plan_pruning(_load(options), load_config(options.config))
    run = TrainingRun(options.steps, options.steps_per_epoch)
    curve = plan_curves(plan, run)["all layers"] if options.steps else {}
    if options.format == "table":
        out.print(plan)
        if curve:
            out.print(_curve_table(curve))
    elif options.format == "json":
        _write_json(out, {"modules": plan.records(), "sparsity": {str(step): value for step, value in curve.items()}})
    else:
        _write_csv(out, plan.records())
    if options.plot is not None:
        _save(plot_plan(plan, run), options.plot, out, quiet=options.format != "table")
    return 0


def _curve_table(curve: dict[int, float], rows: int = 16) -> Table:
    """Sparsity over steps as a table with bars."""
    steps = list(curve)
    shown = steps if len(steps) <= rows else [steps[round(i * (len(steps) - 1) / (rows - 1))] for i in range(rows)]
    table = new_table("Sparsity over steps")
    table.add_column("step", justify="right")
    table.add_column("sparsity", justify="right")
    table.add_column("")
    for step in shown:
        table.add_row(f"{step:,}", f"{curve[step]:.1%}", "█" * round(40 * curve[step]))
    return table


def _add_inspect(commands: Any) -> None:
    examples = (
        "  lightning-prune inspect last.ckpt\n"
        "  lightning-prune inspect digits.mlpackage\n"
        "  lightning-prune inspect last.ckpt --at-least 0.75   # exit code 3 if less\n"
    )
    text = "Show sparsity, structure and bytes of each weight in a checkpoint, state dict, safetensors or .mlpackage."
    parser = _command(commands, "inspect", _run_inspect, text, examples)
    parser.add_argument("file", type=home, metavar="FILE", help="what to look into; nothing in it is executed")
    parser.add_argument("--all", action="store_true", help="list vectors and integers too")
    parser.add_argument("--at-least", type=float, metavar="S", help="exit with code 3 if fewer weights are zero")
    _add_format(parser)


def _run_inspect(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.analysis import inspect_file

    if options.at_least is not None and not 0 <= options.at_least <= 1:
        raise ConfigError(f"--at-least must be a fraction in [0, 1], got {options.at_least}. Write 0.75 for 75 %.")
    found = inspect_file(options.file, all_tensors=options.all)
    if options.format == "table":
        out.print(found)
    elif options.format == "json":
        summary = {"file": str(found.path), "kind": found.kind, "bytes": found.file_bytes, "sparsity": found.sparsity}
        _write_json(out, {**summary, "notes": found.notes, "tensors": found.records()})
    else:
        _write_csv(out, found.records())
    if options.at_least is not None and found.sparsity < options.at_least:
        print(f"sparsity is {found.sparsity:.4f}, less than {options.at_least}", file=sys.stderr)  # noqa: T201
        return _BELOW
    return 0


def _add_export(commands: Any) -> None:
    examples = (
        "  lightning-prune export digits:ConvNet --checkpoint a.ckpt -o a.mlpackage\n"
        "  lightning-prune export torchvision.models:resnet18 --checkpoint r18.pt \\\n"
        "      -o r18.mlpackage --input-shape 1,3,224,224 --compression int8 \\\n"
        "      --target iOS18\n"
    )
    text = "Turn a checkpoint into a Core ML package with sparse weights, and verify what was written."
    parser = _command(commands, "export", _run_export, text, examples)
    _add_model(parser, checkpoint_help="weights to export", checkpoint_required=True)
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


def _run_export(options: argparse.Namespace, out: Console) -> int:
    import torch

    from lightning_prune.export import CoreMLExport

    _refuse_existing(options.output, overwrite=options.overwrite)
    model = _load(options)
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


def _add_convert(commands: Any) -> None:
    examples = "  lightning-prune convert coremltools.ckpt plain.ckpt\n"
    text = (
        "Rewrite a checkpoint of Core ML Tools, torch.nn.utils.prune or Lightning's ModelPruning with plain names and "
        "pruned weights."
    )
    parser = _command(commands, "convert", _run_convert, text, examples)
    parser.add_argument("source", type=home, metavar="IN", help="a checkpoint or state dict")
    parser.add_argument("target", type=home, metavar="OUT", help="where to write it")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is there")


def _run_convert(options: argparse.Namespace, out: Console) -> int:
    from lightning_prune.masking import convert_checkpoint

    if options.source.exists():  # a wrong source is the first thing to say
        _refuse_existing(options.target, overwrite=options.overwrite)
        _need_folder(options.target)
    converted = convert_checkpoint(options.source, options.target, overwrite=options.overwrite)
    for name, sparsity in converted.items():
        _plain(out, f"{name}: {sparsity:.2%} zero")
    _plain(out, f"Wrote {options.target}, {len(converted)} weights converted")
    return 0


def _add_plot(commands: Any) -> None:
    examples = (
        "  lightning-prune plot sparsity logs/version_0/metrics.csv -o sparsity.png\n"
        "  lightning-prune plot layers last.ckpt -o layers.png\n"
        "  lightning-prune plot weights last.ckpt --before dense.ckpt -o weights.png\n"
        "  lightning-prune plot mask last.ckpt --tensor body.0.weight -o mask.png\n"
    )
    text = "Draw logged sparsity, or the layers, weights or one mask of a checkpoint."
    parser = _command(commands, "plot", _run_plot, text, examples)
    parser.add_argument("what", choices=("sparsity", "layers", "weights", "mask"), help="what to draw")
    parser.add_argument("file", type=home, metavar="FILE", help="metrics.csv of a CSVLogger for sparsity, else weights")
    parser.add_argument("--output", "-o", type=home, required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument("--before", type=home, metavar="FILE", help="for weights: the checkpoint before pruning")
    parser.add_argument("--tensor", metavar="NAME", help="for mask: the weight to draw")
    parser.add_argument("--layers", action="store_true", help="for sparsity: each layer too")


def _run_plot(options: argparse.Namespace, out: Console) -> int:
    _check_picture("--output", options.output)
    draw = {"sparsity": _draw_log, "layers": _draw_layers, "weights": _draw_weights, "mask": _draw_mask}
    _save(draw[options.what](options), options.output, out)
    return 0


def _draw_log(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_sparsity

    if options.file.exists() and not options.file.is_file():  # a device has no end
        raise CheckpointError(f"{options.file} is no file. Give the metrics.csv of a CSVLogger.")
    try:
        with options.file.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("sparsity/global") and row.get("step")]
        steps = [_step(row["step"]) for row in rows]
        names = [name for name in (rows[0] if rows else ()) if name and name.startswith("sparsity/")]
        names = [name for name in names if options.layers or name == "sparsity/global"]
        curves = {name.removeprefix("sparsity/"): [float(row[name] or "nan") for row in rows] for name in names}
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{options.file} cannot be read as a table of metrics: {one_line(error)}") from error
    if not rows:
        raise CheckpointError(f"{options.file} has no rows with sparsity/global. Give the metrics.csv of a CSVLogger.")
    return plot_sparsity(steps, curves)


def _step(text: str) -> int:
    step = int(text)
    if not 0 <= step <= MOST_STEPS:
        raise ValueError(f"step must be a whole number from 0 to {MOST_STEPS}, got {shown(step)}")
    return step


def _draw_layers(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_layers, report_of

    return plot_layers(report_of(options.file))


def _draw_weights(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_weights, read_weights

    return plot_weights(read_weights(options.before or options.file), read_weights(options.file))


def _draw_mask(options: argparse.Namespace) -> Figure:
    from lightning_prune.analysis import plot_mask, read_weights
    from lightning_prune.errors import did_you_mean

    weights = read_weights(options.file)
    if options.tensor not in weights:
        hint = did_you_mean(options.tensor or "", weights) or f" There are {first_names(weights)}."
        raise ConfigError(f"--tensor must name a weight in {options.file}, got {shown(options.tensor)}.{hint}")
    return plot_mask(weights[options.tensor], name=options.tensor)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


def _plain(out: Console, text: str) -> None:
    """Text as it is, without markup, colours or line breaks."""
    out.file.write(f"{printable(text)}\n")


def _write_json(out: Console, value: object) -> None:
    _plain(out, json.dumps(value, indent=2))


def _write_csv(out: Console, records: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        shape = record.get("shape")
        writer.writerow({**record, "shape": "x".join(map(str, shape)) if shape else ""})
    _plain(out, text.getvalue().rstrip("\n"))


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Write to another path, or add --overwrite.")


def _need_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {str(path.parent)!r}. Make it first.")


def _check_picture(option: str, path: Path) -> None:
    """Before anything is drawn: matplotlib adds an ending of its own where there is none."""
    if path.suffix.lower() not in _PICTURES:
        write = "" if path.suffix.strip(".") else f" Write {str(path).rstrip('.') + '.png'!r}."
        endings = f"{', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}"
        raise ConfigError(f"{option} must end in {endings}, got {str(path)!r}.{write}")
    _need_folder(path)


def _save(figure: Figure, path: Path, out: Console, *, quiet: bool = False) -> None:
    figure.savefig(path, dpi=150)
    if not quiet:
        _plain(out, f"Wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
