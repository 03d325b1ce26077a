"""Straight-through gradients in a Trainer: the same as in plain PyTorch, clipped, accumulated, resumed."""

from __future__ import annotations

import pytest
import torch
from conftest import ResumableLoader, make_trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from straight_through_reference import (
    EVERY_STEP,
    OPTIMIZERS,
    STEPS,
    batches,
    network,
    reference,
    zeroes_half,
    zeroes_two_of_four,
)

from lightning_prune import CheckpointError, ConfigError, MagnitudePruningCallback

RULE = {"scheduler": EVERY_STEP, "n_m_ratio": [2, 4], "pruned_gradient": "straight_through", "decay": 0.05}


class Module(LightningModule):
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.net, self.optimizer = network(), optimizer

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.net(inputs) - targets).square().mean()

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


class DenseAtEnd(Callback):
    """Keeps what the pruner has at the end of training: masks, and the weights without them."""

    def on_train_end(self, trainer, pl_module):
        (pruning,) = [callback for callback in trainer.callbacks if isinstance(callback, MagnitudePruningCallback)]
        masks = pruning.pruner.masks()
        pruned = pruning.pruner.state_dict()["parameters"]
        self.weights, self.masks = [], [mask.float() for mask in masks.values()]
        for name, parameter in pruning.pruner.parameters().items():
            dense = parameter.detach().clone()
            dense[~masks[name]] = pruned[name]["pruned_values"]
            self.weights.append(dense)


def fit(folder, *callbacks, optimizer="sgd", rule=None, accumulate=1, ckpt_path=None, pruning=None, **arguments):
    model, dense = Module(optimizer), DenseAtEnd()
    pruning = pruning or MagnitudePruningCallback({"global_config": rule or RULE}, show_plan=False)
    trainer = make_trainer(
        folder,
        callbacks=[pruning, dense, *callbacks],
        accumulate_grad_batches=accumulate,
        **{"max_epochs": 1, **arguments},
    )
    loader = ResumableLoader(batches(STEPS * accumulate))
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    biases = [model.net[0].bias.detach(), model.net[2].bias.detach()]
    return pruning, model, [*dense.weights, *biases, *dense.masks]


def assert_same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fit_is_the_reference_bit_for_bit(tmp_path, optimizer, clip, accumulate):
    options = {"optimizer": optimizer, "accumulate": accumulate}
    pruning, model, ours = fit(tmp_path, gradient_clip_val=clip, **options)
    assert_same(ours, reference(choose=zeroes_two_of_four, decay=0.05, clip=clip, **options))
    assert pruning.report().sparsity == 0.5
    for weight, mask in zip((model.net[0].weight, model.net[2].weight), ours[-2:], strict=True):
        assert torch.equal(weight != 0, mask == 1)


@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fit_resumes_bit_exactly_from_every_step(tmp_path, optimizer, frequency):
    rule = {
        "scheduler": {"begin_step": 1, "frequency": frequency},
        "pruned_gradient": "straight_through",
        "decay": 0.05,
    }
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    options = {"optimizer": optimizer, "rule": rule, "gradient_clip_val": 0.05}
    _, _, ours = fit(tmp_path, saver, enable_checkpointing=True, **options)
    assert_same(ours, reference(optimizer, zeroes_half, frequency=frequency, decay=0.05, clip=0.05))
    for step in (1, 2, 5, 9):
        _, _, resumed = fit(tmp_path, ckpt_path=tmp_path / "saved" / f"step={step}.ckpt", **options)
        assert_same(resumed, ours)


def test_a_schedule_in_units_of_the_run_resumes_bit_exactly(tmp_path):
    rule = {
        "scheduler": {"begin_step": 0.1, "frequency": 0.25},
        "pruned_gradient": "straight_through",
        "decay": 0.05,
    }
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    _, _, ours = fit(tmp_path, saver, enable_checkpointing=True, rule=rule)
    assert_same(ours, reference("sgd", zeroes_half, frequency=3, decay=0.05))
    _, _, resumed = fit(tmp_path, ckpt_path=tmp_path / "saved" / "step=6.ckpt", rule=rule)
    assert_same(resumed, ours)


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_train_steps=4)
    fit(tmp_path, saver, enable_checkpointing=True)
    path = tmp_path / "saved" / "step=4.ckpt"
    with pytest.raises(CheckpointError, match=r"decay was 0.05 in the checkpoint and is 0.1 now"):
        fit(tmp_path, ckpt_path=path, rule={**RULE, "decay": 0.1})
    zero = {"scheduler": EVERY_STEP, "n_m_ratio": [2, 4]}
    with pytest.raises(CheckpointError, match=r"pruned_gradient was straight_through in the checkpoint and is zero"):
        fit(tmp_path, ckpt_path=path, rule=zero)
    pruning = MagnitudePruningCallback({"global_config": zero}, show_plan=False, allow_config_change=True)
    _, _, ours = fit(tmp_path, ckpt_path=path, pruning=pruning)
    assert sum(int(mask.sum()) for mask in ours[-2:]) == (128 + 32) // 2


def test_the_state_of_a_rule_without_the_settings_is_as_it_was(tmp_path):
    pruning, _, _ = fit(tmp_path, rule={"scheduler": EVERY_STEP})
    (parameter, _) = pruning.state_dict()["parameters"].values()
    assert "pruned_gradient" not in parameter["rule"]
    assert "decay" not in parameter["rule"]


def test_hooks_are_refused_where_the_callback_is_made():
    with pytest.raises(
        ConfigError, match=r"global_config.pruned_gradient='straight_through' needs masking=\"resident\""
    ):
        MagnitudePruningCallback({"global_config": RULE}, masking="hook")


def test_a_mixed_precision_fit_trains_what_is_pruned(tmp_path):
    _, _, ours = fit(tmp_path, precision="bf16-mixed")
    theirs = reference("sgd", zeroes_two_of_four, decay=0.05)
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)


class CountingPruner(MagnitudePruningCallback):
    """Notes at which steps an update was logged."""

    def __init__(self, *args, **arguments):
        super().__init__(*args, **arguments)
        self.logged = []

    def _log(self, trainer, pl_module, *, with_changes=False):
        if with_changes:
            self.logged.append(trainer.global_step)
        super()._log(trainer, pl_module, with_changes=with_changes)


def test_updates_at_every_step_are_logged_as_often_as_the_trainer_logs(tmp_path):
    pruning = CountingPruner({"global_config": {**RULE, "scheduler": {"begin_step": 2, "frequency": 1}}})
    fit(tmp_path, pruning=pruning, log_every_n_steps=4)
    assert pruning.logged == [2, 6, 10]
    ending = CountingPruner({"global_config": {**RULE, "scheduler": {"update_steps": [1, 2, 3, 4, 5]}}})
    make_trainer(tmp_path, callbacks=[ending], max_epochs=1, log_every_n_steps=4).fit(
        Module(), ResumableLoader(batches(STEPS))
    )
    assert ending.logged == [1, 2, 3, 4, 5]
