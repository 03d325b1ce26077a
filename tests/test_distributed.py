"""Several processes: what is pruned must not depend on how many there are, nor on who holds which part."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import ResumableLoader, ToyModule, make_loader, make_trainer
from distributed_runs import WorkerError, join_group, launch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from lightning_prune import MagnitudePruningCallback, PruningError
from lightning_prune.checkpoint import convert_checkpoint  # noqa: F401

RULES = {
    "global_config": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75},
    "module_name_configs": {
        "conv": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.5, "granularity": "per_channel"},
        "fc2": {"scheduler": {"update_steps": [1, 5]}, "n_m_ratio": (2, 4)},
    },
}
DDP_OPTIONS = {
    "plain": {},
    "static graph": {"static_graph": True},
    "bucket view": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
}


def outcome(trainer, callback, model) -> dict:
    return {
        "weights": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "masks": {name: mask.clone() for name, mask in callback.pruner.masks().items()},
        "sparsity": callback.report().sparsity,
        "logged": float(trainer.callback_metrics["sparsity/global"]),
        "losses": model.losses,
    }


def fit(folder, *callbacks, strategy="auto", devices=1, shares_data=True, model=None, ckpt_path=None, **arguments):
    """One fit of the toy network; with ``shares_data`` every process sees all batches, so that gradients are equal."""
    seed_everything(0, verbose=False)
    model = model or ToyModule(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    callback = MagnitudePruningCallback(RULES, show_plan=False)
    trainer = make_trainer(
        Path(folder),
        callbacks=[callback, *callbacks],
        strategy=strategy,
        devices=devices,
        use_distributed_sampler=not shares_data,
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **arguments},
    )
    loader = ResumableLoader(list(make_loader(8))) if shares_data else make_loader(16)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer, callback, model


def assert_same(ours: dict, theirs: dict, *keys: str) -> None:
    for key in keys or ("weights", "masks"):
        assert list(ours[key]) == list(theirs[key])
        for name in ours[key]:
            assert torch.equal(ours[key][name], theirs[key][name]), (key, name)


# DDP


def ddp_options(folder):
    results = {}
    for name, options in DDP_OPTIONS.items():
        for shares_data in (True, False):
            run = fit(folder, strategy=DDPStrategy(**options), devices=2, shares_data=shares_data)
            results[name, shares_data] = outcome(*run)
    return results


def test_ddp_trains_the_network_of_one_process(tmp_path):
    single = outcome(*fit(tmp_path))
    first, second = launch(ddp_options, 2, tmp_path)
    for key in first:
        assert_same(first[key], second[key])
        assert first[key]["sparsity"] == first[key]["logged"] == second[key]["logged"]
        if key[1]:
            assert_same(first[key], single)
            assert first[key]["losses"] == single["losses"]
        else:
            assert first[key]["losses"] != second[key]["losses"], "each has its own batches"


class Launched(Callback):
    """Brings results out of processes that Lightning started."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        (callback,) = [one for one in trainer.callbacks if isinstance(one, MagnitudePruningCallback)]
        torch.save(callback.pruner.masks(), self.folder / f"{trainer.global_rank}.pt")


def launcher_of_lightning(folder, strategy):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT"):
        del os.environ[name]
    torch.set_num_threads(1)
    trainer, _, model = fit(folder, Launched(folder), strategy=strategy, devices=2)
    return {name: value.detach() for name, value in model.state_dict().items()}, float(
        trainer.callback_metrics["sparsity/global"]
    )


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_processes_that_lightning_starts_end_with_the_same_masks(tmp_path, strategy):
    ((weights, logged),) = launch(launcher_of_lightning, 1, tmp_path, strategy)
    masks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    single = outcome(*fit(tmp_path))
    assert_same({"masks": masks[0]}, {"masks": masks[1]}, "masks")
    assert_same({"weights": weights, "masks": masks[0]}, single)
    assert logged == pytest.approx(single["logged"])


class Diverge(Callback):
    """One rank goes its own way."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 3:
            with torch.no_grad():
                pl_module.fc1.weight[0, 0] += 1e-6


def diverging(folder):
    try:
        fit(folder, Diverge(), strategy="ddp", devices=2)
    except PruningError as error:
        return str(error)
    return None


def test_a_rank_that_diverges_is_named_at_the_next_update(tmp_path):
    for message in launch(diverging, 2, tmp_path):
        assert message.startswith("fc1.weight: weights and masks must be the same in all processes, but differs: rank")


class Schedules(Callback):
    """One rank has another number of batches, so its schedule would be another."""

    def setup(self, trainer, pl_module, stage):
        (callback,) = [one for one in trainer.callbacks if isinstance(one, MagnitudePruningCallback)]
        if trainer.global_rank == 1:
            callback.config = MagnitudePruningCallback({"global_config": {"target_sparsity": 0.25}}).config


def other_schedule(folder):
    try:
        fit(folder, Schedules(), strategy="ddp", devices=2)
    except PruningError as error:
        return str(error)
    return None


def test_ranks_of_different_schedules_are_stopped_before_the_first_step(tmp_path):
    for message in launch(other_schedule, 2, tmp_path):
        assert message.startswith("The schedule: ")


def ddp_logs_and_saves(folder):
    saver = ModelCheckpoint(folder / "saved", save_top_k=-1, every_n_train_steps=3)
    run = fit(
        folder,
        saver,
        strategy="ddp",
        devices=2,
        logger=CSVLogger(folder / f"logs{os.environ['RANK']}", version=0),
        enable_checkpointing=True,
    )
    resumed = fit(folder, strategy="ddp", devices=2, ckpt_path=folder / "saved" / "epoch=0-step=3.ckpt")
    return outcome(*run), outcome(*resumed)


def test_rank_zero_alone_logs_and_saves_and_a_run_resumes_in_either_world(tmp_path):
    (first, resumed), (second, _) = launch(ddp_logs_and_saves, 2, tmp_path)
    assert_same(first, resumed)
    assert_same(first, second)
    assert (tmp_path / "logs0" / "lightning_logs" / "version_0" / "metrics.csv").exists()
    assert not list((tmp_path / "logs1").rglob("metrics.csv"))
    paths = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(paths) == 5
    for path in paths:
        ToyModule().load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
        assert_same(outcome(*fit(tmp_path, ckpt_path=path)), first)
