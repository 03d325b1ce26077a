"""Several processes: what is pruned must not depend on how many there are, nor on who holds which part."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ResumableLoader, ToyModule, make_loader, make_trainer
from coupled_nets import Residual
from coupled_nets import rule as channel_rule
from distributed_runs import WorkerError, join_group, launch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from packaging.version import Version
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lightning_prune.masks.structure
from lightning_prune import (
    ConfigError,
    GeometricDecayScheduler,
    MagnitudePruner,
    MagnitudePruningCallback,
    PruningError,
)
from lightning_prune.analysis.allocation import allocate
from lightning_prune.callback.strategies import check_strategy
from lightning_prune.masking.guards import ProjectFirst
from lightning_prune.masks import compute_mask
from lightning_prune.masks.compute import mask_shape
from lightning_prune.masks.structure import structure_of
from lightning_prune.sharding.rounds import alone
from lightning_prune.sharding.shardings import find_shardings, local_part, run_together

RULES = {
    "global_config": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75},
    "module_name_configs": {
        "conv": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.5, "granularity": "per_channel"},
        "fc2": {"scheduler": {"update_steps": [1, 5]}, "n_m_ratio": (2, 4)},
    },
}
# FSDP2 trains bit for bit what a single process does, and goes on from its checkpoints, and it from those of FSDP2. With
# torch 2.8 and Lightning 2.5 it does so but for rounding, and goes on bit for bit in the same world alone; all of that
# holds without pruning too.
IS_EXACT = Version(torch.__version__) >= Version("2.13")
DDP_OPTIONS = {
    "plain": {},
    "static graph": {"static_graph": True},
    "bucket view": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
}


def adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def outcome(trainer, callback, model) -> dict:
    return {
        "weights": {name: value.detach().clone() for name, value in model.named_parameters()},
        "masks": {name: mask.clone() for name, mask in callback.pruner.masks().items()},
        "sparsity": callback.report().sparsity,
        "logged": float(trainer.callback_metrics["sparsity/global"]),
        "losses": model.losses,
    }


def fit(
    folder,
    *callbacks,
    strategy="auto",
    devices=1,
    shares_data=True,
    model=None,
    pruning=None,
    ckpt_path=None,
    **arguments,
):
    """One fit of the toy network; with ``shares_data`` every process sees all batches, so that gradients are equal."""
    seed_everything(0, verbose=False)
    model = model or ToyModule(adamw)
    callback = pruning or MagnitudePruningCallback(RULES, show_plan=False)
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


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Bit for bit, where FSDP2 trains so what a single process does without any pruning; else but for rounding."""
    if IS_EXACT or not ours.is_floating_point():
        return torch.equal(ours, theirs)
    return torch.equal(ours == 0, theirs == 0) and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def assert_same(ours: dict, theirs: dict, *keys: str, agree=torch.equal) -> None:
    for key in keys or ("weights", "masks"):
        assert list(ours[key]) == list(theirs[key])
        for name in ours[key]:
            assert agree(ours[key][name], theirs[key][name]), (key, name)


assert_as_whole = partial(assert_same, agree=agree)


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
        assert first[key]["logged"] == second[key]["logged"] == pytest.approx(first[key]["sparsity"])
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
        (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, MagnitudePruningCallback)]
        torch.save(callback.pruner.masks(), self.folder / f"{trainer.global_rank}.pt")


def launcher_of_lightning(folder, strategy):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT"):
        del os.environ[name]
    torch.set_num_threads(1)
    trainer, _, model = fit(folder, Launched(folder), strategy=strategy, devices=2)
    return {name: value.detach() for name, value in model.named_parameters()}, float(
        trainer.callback_metrics["sparsity/global"]
    )


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_processes_that_lightning_starts_end_with_the_same_masks(tmp_path, strategy):
    # a process that is spawned imports torch and Lightning itself, which takes long where much else is done
    ((weights, logged),) = launch(launcher_of_lightning, 1, tmp_path, strategy, timeout=240)
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
        (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, MagnitudePruningCallback)]
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
        assert message.startswith("The schedule")


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


# Masks over shards

SHAPES = [(8, 6), (7, 12), (10, 4, 3, 3), (5, 8, 1), (2, 9), (33, 5)]
MASK_RULES = [
    {},
    {"block_size": 2},
    {"block_size": 4},
    {"granularity": "per_kernel"},
    {"granularity": "per_kernel", "block_size": 3},
    {"granularity": "per_channel"},
    {"granularity": "per_channel", "block_size": 2},
    {"n_m_ratio": (2, 4)},
    {"n_m_ratio": (1, 3), "dim": 0},
]


def masks_that_differ(mesh_shape, placements) -> list:
    """Cases in which a part of a mask is not that of the whole one."""
    join_group()
    mesh = init_device_mesh("cpu", mesh_shape)
    generator = torch.Generator().manual_seed(0)
    wrong, count = [], 0
    for shape in SHAPES:
        for dtype, ties in ((torch.float32, False), (torch.bfloat16, True)):
            whole = torch.randn(shape, generator=generator)
            whole = ((whole * 2).round() if ties else whole).to(dtype)
            (sharding,) = find_shardings([distribute_tensor(whole, mesh, placements)])
            part = whole[sharding.box.within(sharding.whole)].clone()
            for rule, sparsity in itertools.product(MASK_RULES, (0.3, 0.5, 0.9)):
                granularity = rule.get("granularity", "per_scalar")
                expected = compute_mask(whole, sparsity, **rule)
                narrow = sharding.box.narrowed(tuple(expected.shape))
                expected = expected[narrow.within(sharding.whole)]
                ours = torch.empty(mask_shape(tuple(part.shape), granularity=granularity), dtype=torch.bool)
                alone(structure_of(**rule).compute(part, sparsity, ours, sharding), sharding.sum)
                count += 1
                if not torch.equal(ours, expected):
                    wrong.append((shape, dtype, rule, sparsity))
    return [count, wrong]


@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((2,), [Shard(0)]),
        ((3,), [Shard(0)]),
        ((2,), [Shard(1)]),
        pytest.param((4,), [Shard(0)], marks=pytest.mark.slow),
        pytest.param((2, 2), [Replicate(), Shard(0)], marks=pytest.mark.slow),
        pytest.param((2, 2), [Shard(0), Shard(1)], marks=pytest.mark.slow),
    ],
)
def test_masks_of_shards_are_those_of_the_whole_weight(mesh_shape, placements):
    for count, wrong in launch(masks_that_differ, math.prod(mesh_shape), mesh_shape, placements):
        assert count == len(SHAPES) * 2 * len(MASK_RULES) * 3
        assert not wrong


def masks_in_shared_rounds(world) -> tuple[list, int, int]:
    """All masks at once: what is wrong, the number of weights, and of collectives."""
    join_group()
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    tasks, results = [], []
    for shape, rule, sparsity in itertools.product(SHAPES, MASK_RULES, (0.3, 0.9)):
        whole = (torch.randn(shape, generator=generator) * 4).round()  # with ties, which take rounds of their own
        (sharding,) = find_shardings([distribute_tensor(whole, mesh, [Shard(0)])])
        part = whole[sharding.box.within(sharding.whole)].clone()
        expected = compute_mask(whole, sparsity, **rule)
        narrow = sharding.box.narrowed(tuple(expected.shape))
        ours = torch.empty(
            mask_shape(tuple(part.shape), granularity=rule.get("granularity", "per_scalar")), dtype=torch.bool
        )
        tasks.append((sharding, structure_of(**rule).compute(part, sparsity, ours, sharding)))
        results.append((ours, expected[narrow.within(sharding.whole)], (shape, rule, sparsity)))
    calls, all_reduce = [], distributed.all_reduce

    def counted(tensor, **arguments):
        calls.append(tensor.numel())
        return all_reduce(tensor, **arguments)

    distributed.all_reduce = counted
    run_together(tasks)
    return [case for ours, expected, case in results if not torch.equal(ours, expected)], len(tasks), len(calls)


def test_masks_of_any_number_of_weights_share_their_collectives():
    for wrong, weights, collectives in launch(masks_in_shared_rounds, 2, 2):
        assert not wrong
        assert weights == 108
        assert collectives < 40, "some 7 for each of several sizes of the last block"


def one_nan_among_shards() -> tuple[str, list]:
    """The error of an update, and the masks after it."""
    join_group()
    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)])
    for layer in model:
        fully_shard(layer, mesh=mesh)
    pruner = MagnitudePruner(model, {"global_config": {"scheduler": {"update_steps": [1, 2]}}}, masking="resident")
    pruner.prepare(inplace=True)
    pruner.attach_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        if distributed.get_rank() == 1:
            model[1].weight.to_local()[0, 0] = torch.nan
    pruner.step()
    try:
        pruner.step()
    except PruningError as error:
        return str(error), [mask.float().mean().item() for mask in pruner.masks().values()]
    return "nothing", []


def test_a_nan_in_one_shard_is_an_error_in_all_processes_and_leaves_its_mask():
    for error, kept in launch(one_nan_among_shards, 2):
        assert error.startswith("1.weight cannot be pruned: NaN")
        assert kept[1] == 1.0


def linears() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(size, 24 - size) for size in (5, 9, 14)])


def spreads(shards: bool) -> dict:
    """Zeros of each layer by each method of allocation."""
    model = linears()
    if shards:
        join_group()
        for layer in model:
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    return {method: allocate(model, 0.7, method).zeros for method in ("uniform", "global", "erdos_renyi_kernel")}


def test_a_sparsity_is_spread_over_sharded_layers_as_over_whole_ones():
    expected = spreads(False)
    assert launch(spreads, 2, True) == [expected, expected]


# FSDP2


class ShardedToy(ToyModule):
    """The toy network without statistics of its batches, sharded where the strategy asks for it."""

    def __init__(self):
        super().__init__(adamw)
        self.bn = torch.nn.Identity()
        self.fc2 = torch.nn.Linear(32, 5)  # over four processes: 2, 2, 1 and no rows

    def configure_model(self):
        if self._device_mesh is not None and not any(isinstance(p, DTensor) for p in self.parameters()):
            mesh = self.device_mesh["data_parallel"]
            for module in (self.conv, self.fc1, self.fc2):
                fully_shard(module, mesh=mesh)
            fully_shard(self, mesh=mesh)


def whole(trainer, callback, model) -> dict:
    """What :func:`outcome` gives, with weights and masks put together again."""
    masks = {}
    for layer in callback.pruner._layers:
        mask = layer.held.mask.view(torch.bool)
        if not layer.sharding.is_whole:
            shape = mask_shape(layer.plan.shape, granularity=layer.plan.config.granularity)
            rows = [whole for whole in layer.sharding.gather(mask, shape) if whole is not None]
            mask = torch.cat(rows) if rows else mask
        masks[layer.plan.name] = mask.clone()
    weights = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.named_parameters()
    }
    return {
        "weights": weights,
        "masks": masks,
        "sparsity": callback.report().sparsity,
        "report": callback.report().records(),
        "losses": model.losses,
    }


def fsdp(folder, *callbacks, world, distributed_checkpoint=False, **arguments):
    strategy = ModelParallelStrategy(
        data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=distributed_checkpoint
    )
    return fit(folder, *callbacks, model=ShardedToy(), strategy=strategy, devices=world, **arguments)


def single(folder, *callbacks, **arguments):
    return fit(folder, *callbacks, model=ShardedToy(), **arguments)


def sharded_run(folder, world):
    run = fsdp(folder, world=world, num_sanity_val_steps=2)
    local = {name: mask.numel() for name, mask in run[1].pruner.masks().items()}
    return whole(*run), local


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_fsdp2_trains_the_network_of_one_process(tmp_path, world):
    expected = whole(*single(tmp_path))
    results = launch(sharded_run, world, tmp_path, world)
    assert_as_whole(results[0][0], expected)
    for result, _ in results:
        assert_as_whole(result, expected, "weights")
        assert result["report"] == expected["report"]
    assert sum(local["fc1.weight"] for _, local in results) == 32 * 128, "each process has its part of the mask alone"


class FailEverywhere(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            raise RuntimeError("the disk is full")


def sharded_pages(folder):
    found = {}
    for name, others in {"whole": [], "failed": [FailEverywhere()]}.items():
        place = Path(folder) / f"{name}.html"
        pruning = MagnitudePruningCallback(RULES, show_plan=False, page=place, log_figures=True)
        logger = TensorBoardLogger(folder, name=name, version=0)
        try:
            fsdp(folder, *others, world=2, pruning=pruning, logger=logger)
        except RuntimeError as error:
            assert "the disk is full" in str(error)  # noqa: PT017 — some of the processes of a run that fails in all
        found[name] = (pruning.page_error, pruning.report().sparsity)
    return found


def test_the_first_of_the_processes_that_share_a_model_writes_its_page_also_after_a_failure(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("matplotlib")
    first, second = launch(sharded_pages, 2, tmp_path)
    assert first == second
    for name, updates in (("whole", 4), ("failed", 3)):
        error, sparsity = first[name]
        assert error is None
        page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert f"{sparsity:.1%}" in page
        assert "The masks of a sharded model are not drawn." in page
        assert ("Interrupted after 7 optimizer steps by RuntimeError: the disk is full" in page) == (name == "failed")
        events = accumulators.EventAccumulator(str(tmp_path / name / "version_0"), {accumulators.IMAGES: 0}).Reload()
        figures = events.Tags()["images"]
        assert figures
        assert all(len(events.Images(tag)) >= updates for tag in figures)


def ranked_together() -> MagnitudePruningCallback:
    config = {"global_config": RULES["global_config"]}
    return MagnitudePruningCallback(config, scope="global", show_plan=False)


def sharded_run_in_global_scope(folder, world):
    return whole(*fsdp(folder, pruning=ranked_together(), world=world))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_global_ranking_does_not_depend_on_how_weights_are_sharded(tmp_path, world):
    expected = whole(*single(tmp_path, pruning=ranked_together()))
    sparsities = {layer["name"]: layer["sparsity"] for layer in expected["report"]}
    assert sparsities["global"] == pytest.approx(0.75, abs=1e-3)
    assert len(set(sparsities.values())) == len(sparsities)
    results = launch(sharded_run_in_global_scope, world, tmp_path, world)
    assert_as_whole(results[0], expected)
    for result in results:
        assert_as_whole(result, expected, "weights")
        assert result["report"] == expected["report"]


def straight_through() -> MagnitudePruningCallback:
    """Masks of single weights and 2:4, chosen anew at every other step; what is pruned is trained."""
    settings = {
        "scheduler": {"begin_step": 1, "frequency": 2},
        "pruned_gradient": "straight_through",
        "decay": 0.05,
    }
    rules = {"global_config": settings, "module_name_configs": {"fc2": {**settings, "n_m_ratio": (2, 4)}}}
    return MagnitudePruningCallback(rules, show_plan=False)


def sharded_straight_through_run(folder, world):
    return whole(*fsdp(folder, world=world, pruning=straight_through()))


def test_gradients_of_shards_pass_straight_through_as_those_of_whole_weights(tmp_path):
    expected = whole(*single(tmp_path, pruning=straight_through()))
    results = launch(sharded_straight_through_run, 2, tmp_path, 2)
    for result in results:
        assert [layer["zeros"] for layer in result["report"]] == [layer["zeros"] for layer in expected["report"]]
        if IS_EXACT:  # else rounding decides on a weight
            assert_same(result, expected, "weights")
            assert result["report"] == expected["report"]
    if IS_EXACT:
        assert_same(results[0], expected)


def ddp_straight_through(folder):
    run = fit(folder, strategy="ddp", devices=2, pruning=straight_through())
    return outcome(*run)


def test_replicas_pass_gradients_straight_through_as_one_process_does(tmp_path):
    expected = outcome(*fit(tmp_path, pruning=straight_through()))
    for result in launch(ddp_straight_through, 2, tmp_path):
        assert_same(result, expected)


def rewinding() -> MagnitudePruningCallback:
    """Rounds from which everything goes back to the values of the second step."""
    scheduler = GeometricDecayScheduler([4, 8, 12])
    return MagnitudePruningCallback({"global_config": {"scheduler": scheduler}}, show_plan=False, rewind=2)


def ddp_rewinds(folder):
    return outcome(*fit(folder, strategy="ddp", devices=2, pruning=rewinding()))


def test_replicas_go_back_to_the_same_early_values(tmp_path):
    expected = outcome(*fit(tmp_path, pruning=rewinding()))
    for result in launch(ddp_rewinds, 2, tmp_path):
        assert_same(result, expected)


def rows_of_linear() -> MagnitudePruningCallback:
    rule = {**RULES["global_config"], "granularity": "per_channel"}
    blocks = {**rule, "block_size": 2, "target_sparsity": 0.5}
    names = {"conv": None, "fc2": blocks}
    return MagnitudePruningCallback(
        {"module_type_configs": {"Linear": rule}, "module_name_configs": names}, show_plan=False
    )


def sharded_run_of_rows(folder, world):
    return whole(*fsdp(folder, pruning=rows_of_linear(), world=world))


def test_rows_of_sharded_linear_layers_are_pruned_as_those_of_whole_ones(tmp_path):
    expected = whole(*single(tmp_path, pruning=rows_of_linear()))
    assert {name: tuple(mask.shape) for name, mask in expected["masks"].items()} == {
        "fc1.weight": (32, 1),
        "fc2.weight": (5, 1),
    }
    assert expected["report"][0]["zero_channels"] == 24
    results = launch(sharded_run_of_rows, 2, tmp_path, 2)
    assert_as_whole(results[0], expected)
    assert all(result["report"] == expected["report"] for result in results)


class ParallelToy(ShardedToy):
    """The same network with its linear layers cut over a mesh of tensor parallelism, and sharded over the rest."""

    def configure_model(self):
        if self._device_mesh is None or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)
        if self.device_mesh["data_parallel"].size() > 1:
            for module in (self.conv, self.fc1, self.fc2):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


def tensor_parallel_run(folder, data_parallel, tensor_parallel):
    strategy = ModelParallelStrategy(data_parallel_size=data_parallel, tensor_parallel_size=tensor_parallel)
    return whole(*fit(folder, model=ParallelToy(), strategy=strategy, devices=data_parallel * tensor_parallel))


@pytest.mark.parametrize(("data", "tensor"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_tensor_parallel_weights_are_pruned_as_whole_ones(tmp_path, data, tensor):
    expected = whole(*single(tmp_path))
    for result in launch(tensor_parallel_run, data * tensor, tmp_path, data, tensor):
        assert result["report"] == expected["report"]
        # sums over processes are rounded in another order, so that training differs in the last bits
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-3, atol=1e-4)
        for name in ("conv.weight", "fc1.weight", "fc2.weight"):
            assert torch.equal(result["weights"][name] == 0, expected["weights"][name] == 0)


# Checkpoints


def state_of(path) -> dict:
    """The pruning state in a checkpoint: a file, or the folder of a distributed one."""
    path = Path(path)
    checkpoint = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)
    (state,) = [callback for key, callback in checkpoint["callbacks"].items() if key.startswith("MagnitudePruning")]
    return state


def assert_same_states(ours: dict, theirs: dict) -> None:
    assert ours["step_count"] == theirs["step_count"]
    assert list(ours["parameters"]) == list(theirs["parameters"])
    for name, entry in ours["parameters"].items():
        for key, value in entry.items():
            other = theirs["parameters"][name][key]
            assert agree(value, other) if isinstance(value, torch.Tensor) else value == other, (name, key)


def saver_in(folder, name):
    return ModelCheckpoint(folder / name, save_top_k=-1, every_n_train_steps=3)


def fsdp_checkpoints(folder, world, is_distributed, resumes):
    name = f"distributed{world}" if is_distributed else f"full{world}"
    run = fsdp(
        folder,
        saver_in(folder, name),
        world=world,
        distributed_checkpoint=is_distributed,
        enable_checkpointing=True,
    )
    results = [whole(*run)]
    for path in resumes:
        results.append(whole(*fsdp(folder, world=world, distributed_checkpoint=is_distributed, ckpt_path=path)))
    return results


STEP = "epoch=0-step=3.ckpt"


def ddp_resume(folder, path):
    run = fit(folder, model=ShardedToy(), strategy="ddp", devices=2, ckpt_path=path)
    return whole(*run)


def test_a_run_resumes_bit_exactly_in_any_world_and_strategy(tmp_path):
    expected = whole(*single(tmp_path, saver_in(tmp_path, "single"), enable_checkpointing=True))
    from_single, full = tmp_path / "single" / STEP, tmp_path / "full2" / STEP
    for results in launch(fsdp_checkpoints, 2, tmp_path, 2, False, [full, from_single] if IS_EXACT else [full]):
        assert_same(results[1], results[0], "weights")
        for result in results:
            assert_as_whole(result, expected, "weights")
    assert_same_states(state_of(full), state_of(from_single))
    if not IS_EXACT:
        return
    for path in (tmp_path / "full2").glob("*.ckpt"):
        assert_same(whole(*single(tmp_path, ckpt_path=path)), expected)
    for result in launch(ddp_resume, 2, tmp_path, full):
        assert_same(result, expected)


@pytest.mark.slow
def test_a_distributed_checkpoint_resumes_in_another_world(tmp_path):
    expected = whole(*single(tmp_path, saver_in(tmp_path, "single"), enable_checkpointing=True))
    saved = tmp_path / "distributed2" / STEP
    for results in launch(fsdp_checkpoints, 2, tmp_path, 2, True, [saved]):
        assert_same(results[1], results[0], "weights")
        for result in results:
            assert_as_whole(result, expected, "weights")
    assert_same_states(state_of(saved), state_of(tmp_path / "single" / STEP))
    if not IS_EXACT:
        return
    for results in launch(fsdp_checkpoints, 4, tmp_path, 4, True, [saved]):
        for result in results:
            assert_same(result, expected, "weights")


class ReplicatedToy(ShardedToy):
    """The same network, sharded over two processes and held twice (HSDP)."""

    def configure_model(self):
        if self._device_mesh is None or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        for module in (self.conv, self.fc1, self.fc2, self):
            fully_shard(module, mesh=mesh)


def replicated_runs(folder):
    def run(*callbacks, **arguments):
        strategy = ModelParallelStrategy(
            data_parallel_size=4, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        return whole(*fit(folder, *callbacks, model=ReplicatedToy(), strategy=strategy, devices=4, **arguments))

    saved = run(saver_in(folder, "replicated"), enable_checkpointing=True)
    return saved, run(ckpt_path=folder / "replicated" / STEP)


@pytest.mark.slow
def test_shards_that_are_held_twice_train_the_network_of_one_process(tmp_path):
    expected = whole(*single(tmp_path, saver_in(tmp_path, "single"), enable_checkpointing=True))
    results = launch(replicated_runs, 4, tmp_path)
    for result in itertools.chain(*results):
        assert_as_whole(result, expected, "weights")
        assert result["report"] == expected["report"]
    assert_as_whole(results[0][0], expected)
    assert_same_states(state_of(tmp_path / "replicated" / STEP), state_of(tmp_path / "single" / STEP))


# What is refused


@pytest.mark.parametrize(
    ("name", "advice"), [("FSDPStrategy", "Use ModelParallelStrategy"), ("DeepSpeedStrategy", 'Use strategy="ddp"')]
)
def test_an_untested_strategy_is_refused_before_training_unless_allowed(tmp_path, name, advice):
    strategy = type(name, (SingleDeviceStrategy,), {})(torch.device("cpu"))
    model = ToyModule()
    with pytest.raises(ConfigError, match=f"Pruning was not tested with {name}.*{advice}.*allow_untested=True"):
        fit(tmp_path, strategy=strategy, model=model, accelerator="auto")
    assert not model.losses
    callback = MagnitudePruningCallback(RULES, show_plan=False, allow_untested=True)
    trainer = make_trainer(tmp_path, strategy=strategy, accelerator="auto", callbacks=[callback], max_epochs=1)
    trainer.fit(model, make_loader())
    assert callback.report().sparsity > 0.7


def test_a_strategy_that_derives_from_a_tested_one_is_tested():
    check_strategy(type("MyStrategy", (DDPStrategy,), {})())
    with pytest.raises(ConfigError, match="not tested with OtherStrategy. It was tested with SingleDeviceStrategy"):
        check_strategy(type("OtherStrategy", (), {})())


class ShardedNorm(ShardedToy):
    def __init__(self):
        super().__init__()
        torch.nn.utils.parametrizations.weight_norm(self.fc1)


def sharded_export_and_hook(folder):
    messages = []
    for kind, arguments in (
        (ShardedToy, {"export": folder / "model.mlpackage"}),
        (ShardedToy, {"masking": "hook"}),
        (ShardedNorm, {}),
        (ShardedToy, {"rewind": 1}),
    ):
        callback = MagnitudePruningCallback(RULES, show_plan=False, **arguments)
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = make_trainer(folder, callbacks=[callback], strategy=strategy, devices=2, max_epochs=1)
        try:
            trainer.fit(kind(), make_loader(2))
            messages.append("; ".join(row.reason for row in callback.pruner.plan.skipped))
        except ConfigError as error:
            messages.append(str(error))
    return messages


def test_what_cannot_be_done_with_shards_is_refused_or_left_dense(tmp_path):
    pytest.importorskip("coremltools")
    for export, hook, norm, rewind in launch(sharded_export_and_hook, 2, tmp_path):
        assert export.startswith("export needs the whole model in one process")
        assert 'Write masking="resident"' in hook
        assert "rows of a weight norm that is sharded over processes" in norm
        assert "rewind needs the whole of each parameter in one process" in rewind


# Odd moments


class Fail(Callback):
    """One rank fails, is killed, or has a weight of NaN, in the middle of training or of an update."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 5:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "killed in an update":
                lightning_prune.masks.structure.keep_groups = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
                return
            if self.how == "nan":
                with torch.no_grad():
                    local_part(pl_module.fc1.weight).view(-1)[0] = math.nan
                return
            raise RuntimeError("one rank fails")


def odd_moment(folder, how, is_sharded):
    saver = saver_in(folder, "saved")
    timeout = timedelta(seconds=8)
    model = ShardedToy()
    strategy = (
        ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, timeout=timeout, save_distributed_checkpoint=False
        )
        if is_sharded
        else DDPStrategy(timeout=timeout)
    )
    try:
        fit(folder, saver, Fail(how), strategy=strategy, devices=2, model=model, enable_checkpointing=True)
    except Exception as error:
        hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
        guards = [hook for module in model.modules() for hook in module._state_dict_pre_hooks.values()]
        hooks += sum(isinstance(hook, ProjectFirst) for hook in guards)
        return type(error).__name__, hooks, str(error)
    return None


@pytest.mark.slow
def test_a_nan_at_an_update_of_shards_is_the_error_that_all_processes_give(tmp_path):
    for kind, hooks, text in launch(odd_moment, 2, tmp_path, "nan", True, timeout=60):
        assert (kind, hooks) == ("PruningError", 0)
        assert re.match(r"\w+\.weight cannot be pruned: NaN", text)  # a step has spread it


@pytest.mark.slow
def test_a_process_that_is_killed_in_an_update_ends_the_other_with_the_true_error(tmp_path):
    first, second = launch(odd_moment, 2, tmp_path, "killed in an update", True, timeout=60, raises=False)
    assert first[:2] in (("RuntimeError", 0), ("DistBackendError", 0), ("DistNetworkError", 0))
    assert "expanded size" not in first[2]
    assert isinstance(second, WorkerError)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "killed"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_rank_that_is_lost_ends_the_others_with_an_error_and_the_run_resumes(tmp_path, how, is_sharded):
    expected = whole(*single(tmp_path))
    first, second = launch(odd_moment, 2, tmp_path, how, is_sharded, timeout=60, raises=False)
    assert first[0] in ("RuntimeError", "DistBackendError", "DistNetworkError")
    assert first[1] == 0, "a plain module is left"
    assert isinstance(second, WorkerError) if how == "killed" else second[:2] == ("RuntimeError", 0)
    if is_sharded and not IS_EXACT:
        return
    for result in launch(ddp_resume, 2, tmp_path, tmp_path / "saved" / STEP):
        assert_same(result, expected)


# Channels that can only go together


def coupled_fit(folder):
    rank = int(os.environ["RANK"])
    seed_everything(0)
    model = Residual()
    images = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(rank))  # each has its own batches
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(16) % 4), batch_size=4)
    callback = MagnitudePruningCallback({"global_config": channel_rule()}, slim=True, show_plan=False)
    trainer = make_trainer(
        folder, callbacks=[callback], strategy=DDPStrategy(), devices=2, max_steps=8, use_distributed_sampler=False
    )
    trainer.fit(model, loader)
    slim = None if callback.slim_result is None else callback.slim_result.slim_parameters
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}, callback.pruner.masks(), slim


def test_coupled_channels_are_the_same_in_all_processes_and_the_first_makes_the_slim_network(tmp_path):
    (first, masks, slim), (second, other_masks, none) = launch(coupled_fit, 2, tmp_path)
    assert list(masks) == list(other_masks)
    assert all(torch.equal(mask, other_masks[name]) for name, mask in masks.items())
    parameters = [name for name in first if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    assert masks["stem.weight"].sum() == 4
    assert (slim, none) == (36 + 4 + 8 + 108 + 3 + 6 + 12 + 4 + 16 + 4, None)
