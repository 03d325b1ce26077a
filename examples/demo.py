"""Train a small network on digits twice, dense and pruned to 75 %, and compare.

Run it by `make demo`, or: python examples/demo.py --out runs/demo
"""

import argparse
import csv
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from digits import ConvNet, Digits
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lightning_prune import CoreMLExport, MagnitudePruningCallback
from lightning_prune.analysis import plot_sparsity

console = Console()


def fit(name: str, out: Path, epochs: int, seed: int, callbacks: Sequence = ()) -> tuple[ConvNet, float, CSVLogger]:
    """Train one network; returns it, its accuracy on held-out images and its logger."""
    console.rule(name)
    seed_everything(seed, workers=True, verbose=False)
    logger = CSVLogger(out, name=name, version=f"seed-{seed}")
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        log_every_n_steps=10,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model, data = ConvNet(), Digits()
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    return model, result["accuracy"], logger


def read_sparsity(logger: CSVLogger) -> tuple[list[int], list[float]]:
    """Read back what was logged: optimizer steps, and the sparsity after each."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("sparsity/global")]
    return [int(row["step"]) for row in rows], [float(row["sparsity/global"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a network this small is slower on more, several times so where other programs run too
    # how a Trainer could run faster on another machine is not what this demo is about
    warnings.filterwarnings("ignore", message=".*(num_workers|isinstance.treespec|LeafSpec).*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    started = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "global_config": {
            "scheduler": {"begin": 0.1, "end": 0.6, "frequency": 10},
            "target_sparsity": args.sparsity,
        }
    }
    accuracies = Table(title="Accuracy on held-out digits", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("seed", "dense", f"pruned to {args.sparsity:.0%}", "difference"):
        accuracies.add_column(heading, justify="right")
    for seed in args.seeds:
        dense_model, dense, _ = fit("dense", args.out, args.epochs, seed)
        package = args.out / f"digits-seed-{seed}.mlpackage"
        callback = MagnitudePruningCallback(config, export=CoreMLExport(package, overwrite=True), show_plan=False)
        _, pruned, logger = fit("pruned", args.out, args.epochs, seed, [callback])
        accuracies.add_row(str(seed), f"{dense:.2%}", f"{pruned:.2%}", f"{100 * (pruned - dense):+.2f} points")

    dense_package = CoreMLExport(args.out / "digits-dense.mlpackage", overwrite=True).save(dense_model)
    steps, sparsity = read_sparsity(logger)
    plot = args.out / "sparsity.png"
    plot_sparsity(steps, {"measured": sparsity}, target=args.sparsity).savefig(plot, dpi=150)

    console.rule("result")
    console.print(callback.report(), accuracies)
    if callback.export_error is not None:
        raise SystemExit(f"The export failed: {callback.export_error}")
    console.print(callback.export_result)
    dense_size, size = dense_package.package_bytes, callback.export_result.package_bytes
    console.print(
        f"Core ML package: {size:,} bytes pruned, {dense_size:,} bytes dense: {dense_size / size:.2f}x smaller."
    )
    console.print("\nWhere everything is:")
    for what, where in (
        ("logged metrics", Path(logger.log_dir) / "metrics.csv"),
        ("plot of sparsity over steps", plot),
        ("pruned Core ML package", package),
        ("dense Core ML package", dense_package.path),
    ):
        console.print(f"  {what:28} {where}", soft_wrap=True, highlight=False)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
