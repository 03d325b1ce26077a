"""From a trained network to a sparse package: sensitivity, plan, training, report, export; see docs/tutorial.md.

python examples/tutorial.py --out runs/tutorial
"""

import argparse
import copy
import csv
import logging
import time
import warnings
from pathlib import Path

import torch
from digits import ConvNet, Digits
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from text import CEILING, Text, Transformer

from lightning_prune import CoreMLExport, MagnitudePruner, MagnitudePruningCallback
from lightning_prune.analysis import (
    allocate,
    count_macs,
    inspect_file,
    plot_layers,
    plot_mask,
    plot_plan,
    plot_tradeoff,
    plot_weights,
    sensitivity,
)

console = Console()


def fit(model: LightningModule, data: LightningDataModule, epochs: int, out: Path, callbacks: list) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(out, name="logs", version=f"{type(model).__name__}-{'pruned' if callbacks else 'dense'}"),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return trainer


def logged_sparsity(trainer: Trainer) -> dict[int, float]:
    """Sparsity by optimizer step, as the callback logged it."""
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        return {
            int(row["step"]): float(row["sparsity/global"]) for row in csv.DictReader(file) if row["sparsity/global"]
        }


@torch.no_grad()
def accuracy(model: LightningModule, data: LightningDataModule) -> float:
    """What sensitivity() measures: any function from a model to a number will do."""
    mode = model.training
    model.eval()
    (batch,) = data.val_dataloader()  # the held-out data are one batch
    inputs, targets = batch if len(batch) == 2 else (batch[0][:, :-1], batch[0][:, 2:])
    guesses = model(inputs).argmax(-1)
    model.train(mode)
    return float((guesses[:, 1:] if guesses.ndim == 2 else guesses).eq(targets).float().mean())


def attention_too(rule: dict) -> dict:
    """Rules for a transformer: attention keeps queries, keys and values in one parameter with a name of its own."""
    attention = {"MultiheadAttention": {**rule, "param_name": "in_proj_weight"}}
    return {"global_config": rule, "module_type_configs": attention}


def without_training(model: LightningModule, data: LightningDataModule, sparsity: float) -> float:
    """Accuracy of a network that is pruned at once: what training along a schedule has to be better than."""
    rule = {"initial_sparsity": sparsity, "target_sparsity": sparsity}  # the initial sparsity holds from prepare() on
    pruner = MagnitudePruner(copy.deepcopy(model), attention_too(rule), masking="resident")
    pruner.prepare(inplace=True)
    return accuracy(pruner.finalize(inplace=True), data)


def digits(out: Path, epochs: int) -> None:
    """A convolutional network: each layer gets the sparsity that it tolerates."""
    console.rule("Digits: train a dense network")
    seed_everything(0, verbose=False)
    model, data = ConvNet(), Digits()
    fit(model, data, epochs, out, [])
    dense = copy.deepcopy(model)
    console.print(f"Accuracy {accuracy(model, data):.2%}")

    console.rule("Which layers can be pruned, one at a time?")
    found = sensitivity(model, lambda model: accuracy(model, data), [0.5, 0.75, 0.9, 0.95, 0.98])
    console.print(found)
    found.plot(metric="accuracy").savefig(out / "digits-sensitivity.png", dpi=100)

    console.rule("Plan: what each layer tolerates at a loss of 2 points")
    config = found.config(0.02, scheduler={"begin": 0.0, "end": 0.6, "frequency": 10})
    (out / "digits.yaml").write_text(config.as_yaml())
    callback = MagnitudePruningCallback(config, show_plan=False)
    plan = callback.plan(model)
    console.print(plan)

    console.rule("Train along the schedule")
    trainer = fit(model, data, epochs, out, [callback])
    plot_plan(plan, trainer.global_step, actual=logged_sparsity(trainer)).savefig(out / "digits-plan.png", dpi=100)
    show_result(model, dense, data, callback.report(), out, "digits", "body.3.0.weight")


def transformer(out: Path, epochs: int) -> None:
    """A transformer: one sparsity for the model, spread by the magnitude of all weights."""
    console.rule("Text: train a dense transformer")
    seed_everything(0, verbose=False)
    model, data = Transformer(), Text()
    fit(model, data, epochs, out, [])
    dense = copy.deepcopy(model)
    console.print(f"Accuracy {accuracy(model, data):.2%}; nobody can do better than {CEILING:.2%}")

    console.rule("Accuracy against sparsity, without training")
    curve = {sparsity: without_training(dense, data, sparsity) for sparsity in (0.25, 0.5, 0.75)}
    console.print({f"{sparsity:.0%}": f"{value:.2%}" for sparsity, value in curve.items()})

    console.rule("Plan: 75 % of the model, spread over its layers")
    rules = attention_too({"scheduler": {"begin": 0.0, "end": 0.6, "frequency": 10}})
    spread = allocate(model, 0.75, "global", config=rules, maximum={"head": 0.5})
    console.print(spread)

    console.rule("Train along the schedule")
    callback = MagnitudePruningCallback(spread.config, show_plan=False)
    fit(model, data, epochs, out, [callback])
    curves = {"without training": curve, "trained along the schedule": {0.75: accuracy(model, data)}}
    plot_tradeoff(curves, dense=accuracy(dense, data)).savefig(out / "text-tradeoff.png", dpi=100)
    show_result(model, dense, data, callback.report(), out, "text", "encoder.layers.0.linear1.weight")


def show_result(
    model: LightningModule,
    dense: LightningModule,
    data: LightningDataModule,
    report: object,
    out: Path,
    name: str,
    mask: str,
) -> None:
    """Report, pictures, export, and a look into the package."""
    console.rule("Report")
    console.print(report)
    plot_layers(report).savefig(out / f"{name}-layers.png", dpi=100)
    plot_weights(dense, model).savefig(out / f"{name}-weights.png", dpi=100)
    plot_mask(model.get_parameter(mask), name=mask).savefig(out / f"{name}-mask.png", dpi=100)
    macs = count_macs(model)
    console.print(f"Multiplications with weights: {macs.effective:,} of {macs.dense:,} are not by zero.")

    console.rule("Export")
    package = CoreMLExport(out / f"{name}.mlpackage").save(model)
    console.print(package)
    console.print(inspect_file(package.path))
    console.print(
        f"Accuracy {accuracy(dense, data):.2%} dense, {accuracy(model, data):.2%} at {report.sparsity:.1%} sparsity; "
        f"package {package.ratio:.2f}x smaller."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorial"))
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # networks this small are slower on more
    # how a Trainer could run faster on another machine is not what this tutorial is about
    warnings.filterwarnings(
        "ignore", message=".*(num_workers|many workers|logging interval|LeafSpec|exists and is not empty).*"
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    started = time.perf_counter()
    digits(args.out, args.epochs)
    transformer(args.out, args.epochs)
    console.print(f"Everything is in {args.out}. Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
