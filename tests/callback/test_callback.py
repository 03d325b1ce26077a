import copy
import csv
import pickle
import subprocess
import sys
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from conftest import POLYNOMIAL, ToyModule, assert_plain, make_loader, make_trainer, sparsity_of
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_prune import ConfigError, LifecycleError, MagnitudePruner, MagnitudePruningCallback, PruningScheduler
from lightning_prune.config import load_config

WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]


def fit(tmp_path, callback, *, model=None, batches=8, callbacks=(), **arguments):
    model = model or ToyModule()
    trainer = make_trainer(tmp_path, callbacks=[callback, *callbacks], **{"max_epochs": 2, **arguments})
    trainer.fit(model, make_loader(batches), make_loader(2))
    return model, trainer


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_fit_leaves_a_plain_sparse_module(tmp_path, masking):
    callback = MagnitudePruningCallback(POLYNOMIAL, masking=masking)
    model, trainer = fit(tmp_path, callback)
    assert_plain(model)
    for name in WEIGHTS:
        assert sparsity_of(model.state_dict()[name]) == pytest.approx(0.75, abs=0.01)
    assert callback.pruner.step_count == trainer.global_step == 16
    assert callback.report().sparsity == pytest.approx(0.75, abs=1e-3)
    assert set(callback.report()) == {"conv", "fc1", "fc2", "global"}


def test_a_fit_equals_a_plain_loop_with_core_ml_tools(tmp_path, coremltools):
    callback = MagnitudePruningCallback(POLYNOMIAL)
    torch.manual_seed(0)
    model, _ = fit(tmp_path, callback, model=ToyModule())
    torch.manual_seed(0)
    other = ToyModule()
    theirs = coremltools.optimize.torch.pruning
    pruner = theirs.MagnitudePruner(other, theirs.MagnitudePrunerConfig.from_dict(POLYNOMIAL))
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for images, labels in make_loader(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(images), labels).backward()
            optimizer.step()
            pruner.step()
    pruner.finalize(inplace=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_one_schedule_step_is_one_optimizer_step_under_accumulation(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((callback.pruner.step_count, trainer.global_step))

    callback = MagnitudePruningCallback(POLYNOMIAL)
    fit(tmp_path, callback, callbacks=[Watch()], accumulate_grad_batches=3, max_epochs=3)
    assert all(steps in (total, total - 1) for steps, total in seen), "before or after it in the order of callbacks"
    assert callback.pruner.step_count == 9


class TwoOptimizers(ToyModule):
    """Manual optimization: both optimizers step in a batch, one of them every other time."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()

    def configure_optimizers(self):
        body = [*self.conv.parameters(), *self.bn.parameters()]
        head = [*self.fc1.parameters(), *self.fc2.parameters()]
        return torch.optim.SGD(body, lr=0.05, momentum=0.9), torch.optim.Adam(head)


def test_several_optimizers_and_manual_optimization(tmp_path):
    callback = MagnitudePruningCallback(POLYNOMIAL)
    model, trainer = fit(tmp_path, callback, model=TwoOptimizers(), max_epochs=1)
    assert callback.pruner.step_count == trainer.global_step == 12
    for name in WEIGHTS:
        assert sparsity_of(model.state_dict()[name]) == pytest.approx(0.75, abs=0.01)


def test_sparsity_is_logged_at_updates_and_epoch_ends(tmp_path):
    logger, callback = CSVLogger(tmp_path), MagnitudePruningCallback(POLYNOMIAL)
    _, trainer = fit(tmp_path, callback, logger=logger, log_every_n_steps=50)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        rows = [row for row in csv.DictReader(file) if row["sparsity/global"]]
    curve = {int(row["step"]): round(float(row["sparsity/global"]), 2) for row in rows}
    assert curve == {2: 0.0, 4: 0.53, 6: 0.72, 8: 0.75, 16: 0.75}
    assert float(trainer.callback_metrics["sparsity/global"]) == pytest.approx(0.75, abs=1e-3)
    assert {"sparsity/conv", "sparsity/fc1", "sparsity/fc2"} <= set(trainer.callback_metrics)
    changes = {int(row["step"]): row for row in rows if row["sparsity_churn/global"]}
    assert list(changes) == [2, 4, 6, 8], "at updates alone"
    weights = callback.report().total.weights
    zeros = {step: float(row["sparsity/global"]) * weights for step, row in changes.items()}
    for before, after in ((2, 4), (4, 6), (6, 8)):
        churn = float(changes[after]["sparsity_churn/global"]) * weights
        returned = float(changes[after]["sparsity_returned/global"])
        assert churn - 2 * returned == pytest.approx(zeros[after] - zeros[before], abs=1)


def test_other_callbacks_can_monitor_sparsity(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", monitor="sparsity/global", mode="max")
    callback = MagnitudePruningCallback(POLYNOMIAL, best_at_target=False)
    fit(tmp_path, callback, callbacks=[saver], enable_checkpointing=True)
    assert float(saver.best_model_score) == pytest.approx(0.75, abs=1e-3)
    stopper = EarlyStopping("sparsity/global", mode="max", stopping_threshold=0.7, check_on_train_epoch_end=True)
    _, trainer = fit(tmp_path, MagnitudePruningCallback(POLYNOMIAL), callbacks=[stopper], max_epochs=5)
    assert trainer.current_epoch < 5


def test_what_is_planned_and_reported_is_shown_once(tmp_path, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr("lightning_prune.callback.logs.rank_zero_info", shown.append)
    fit(tmp_path, MagnitudePruningCallback(POLYNOMIAL))
    text = "\n".join(shown)
    assert text.count("Pruning plan") == 1
    assert "its parameters have rank 1" in text
    assert text.count("75.0") >= 4


class Late(PruningScheduler):
    """A user's schedule, that ends late."""

    last_update_step = 400

    def compute_sparsity(self, step_count, prev_sparsity, config):
        return prev_sparsity


def test_a_schedule_beyond_the_run_warns_at_the_start_and_at_the_end(tmp_path):
    late = {"global_config": {"scheduler": {"update_steps": [2, 400]}, "target_sparsity": 0.75}}
    with (
        pytest.warns(UserWarning, match="last pruning update is at optimizer step 400, but this run has 16"),
        pytest.warns(UserWarning, match="ended after 16 optimizer steps, before the last pruning update at 400"),
    ):
        fit(tmp_path, MagnitudePruningCallback(late))


@pytest.mark.parametrize(
    ("scheduler", "advice"),
    [
        ({"update_steps": [2, 400]}, "let update_steps end at 16 or before"),
        ({"begin_step": 400}, "write an earlier begin_step: at most 16"),
        ({"begin": 0, "end": "4 epochs"}, None),
        (Late(), "let Late end at step 16 or before"),
    ],
)
def test_what_to_write_in_a_schedule_that_ends_after_the_run_fits_the_schedule(tmp_path, scheduler, advice):
    callback = MagnitudePruningCallback({"global_config": {"scheduler": scheduler}}, show_plan=False)
    if advice is None:  # refused before training
        with pytest.raises(ConfigError, match="Train longer, or write an earlier end"):
            fit(tmp_path, callback)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, callback)
    (told,) = (str(warning.message) for warning in caught if "but this run has 16" in str(warning.message))
    assert told.startswith("global_config.scheduler: the last pruning update is at optimizer step 400")
    assert advice in told
    assert "end=0.8" not in told


def change_target(callback):
    callback.config.global_config.target_sparsity = 0.95


def change_a_level(callback):
    callback.config.global_config = None


def change_a_rule_by_name(callback):
    callback.config.module_name_configs["fc2"].initial_sparsity = 0.25


def add_a_rule(callback):
    callback.config.module_name_configs["fc1"] = None


def set_a_rule(callback):
    callback.config.set_module_type(nn.Linear, None)


def update_rules(callback):
    callback.config.module_type_configs.update({"Linear": None})


def change_all(callback):
    callback.config = POLYNOMIAL


@pytest.mark.parametrize(
    "change",
    [change_target, change_a_level, change_a_rule_by_name, add_a_rule, set_a_rule, update_rules, change_all],
)
def test_a_configuration_cannot_be_changed_amid_a_fit_and_can_after_it(tmp_path, change):
    class Changes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            change(callback)

    config = {**POLYNOMIAL, "module_name_configs": {"fc2": {"scheduler": {"update_steps": [2, 5]}}}}
    callback = MagnitudePruningCallback(config, show_plan=False)
    with pytest.raises(ConfigError, match="cannot be changed now: the fit has begun.* Change it when the fit is over"):
        fit(tmp_path, callback, callbacks=[Changes()])
    change(callback)
    model, _ = fit(tmp_path, callback)
    rule = callback.config.get_module_config("fc1", model.fc1)
    assert sparsity_of(model.fc1.weight) == pytest.approx(0.0 if rule is None else rule.target_sparsity, abs=0.01)


FIXED = {
    "masking": "hook",
    "scope": "global",
    "keep_zeros": False,
    "best_at_target": False,
    "allow_untested": True,
}


@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_train_end"])
def test_what_a_fit_has_read_cannot_be_set_while_it_runs_and_can_whatever_its_ending(tmp_path, hook, ending):
    class Sets(ToyModule):
        refused: list[str] = []

    def change(*_):
        for name, value in FIXED.items():
            with pytest.raises(ConfigError, match=rf"^{name} cannot be changed now: the fit has begun.* fit is over"):
                setattr(callback, name, value)
            assert getattr(callback, name) != value
            Sets.refused.append(name)
        callback.log_layers, callback.show_plan = False, False  # these are read whenever something is logged
        if ending is not None:
            raise ending("stop")

    setattr(Sets, hook, change)
    callback = MagnitudePruningCallback(POLYNOMIAL, show_plan=False)
    trainer = make_trainer(tmp_path, callbacks=[callback], max_epochs=1)
    with nullcontext() if ending is None else pytest.raises((ending, SystemExit)):
        trainer.fit(Sets(), make_loader())
    assert set(Sets.refused) == set(FIXED)
    for name, value in FIXED.items():
        setattr(callback, name, value)
    model, _ = fit(tmp_path, callback)
    sparsities = {round(sparsity_of(layer.weight), 2) for layer in (model.fc1, model.fc2)}
    assert len(sparsities) == 2, "the scope is global now"


@pytest.mark.parametrize("can_undo", [True, False])
def test_a_fit_that_fails_before_it_trains_unlocks_the_callback(tmp_path, can_undo):
    class Fails(ToyModule):
        def on_fit_start(self):
            with pytest.raises(ConfigError, match="scope cannot be changed now"):
                callback.scope = "global"
            if not can_undo:
                callback.pruner.undo = self.on_train_start
            raise RuntimeError("stop")

        def on_train_start(self):
            raise RuntimeError("no way back")

    callback = MagnitudePruningCallback(POLYNOMIAL, show_plan=False)
    with pytest.raises(RuntimeError, match="stop" if can_undo else "no way back"):
        make_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Fails(), make_loader(2))
    callback.scope = "global"
    callback.config = {"global_config": {"target_sparsity": 0.25}}


def test_a_copy_of_a_locked_configuration_can_be_changed_and_saved(tmp_path):
    class Copies(Callback):
        def on_train_start(self, trainer, pl_module):
            for copied in (copy.deepcopy(callback).config, load_config(callback.config)):
                assert copied == callback.config
                copied.global_config.target_sparsity = 0.9
                copied.module_name_configs["fc1"] = None
                copied.set_global({"target_sparsity": 0.25})
            assert pickle.loads(pickle.dumps(callback.config)) == callback.config
            copies.append(copied)

    copies, callback = [], MagnitudePruningCallback(POLYNOMIAL, show_plan=False)
    fit(tmp_path, callback, callbacks=[Copies()])
    assert len(copies) == 1
    callback.config = {"global_config": {"target_sparsity": 0.25}}
    assert callback.plan(ToyModule()).records()[0]["target_sparsity"] == 0.25
    with pytest.raises(ConfigError, match=r"global_config.target_sparsity must be"):
        callback.config = {"global_config": {"target_sparsity": 25}}


@pytest.mark.parametrize("is_same", [True, False])
def test_the_same_pruner_twice_is_refused_when_the_trainer_is_built(tmp_path, is_same):
    first = MagnitudePruningCallback(POLYNOMIAL)
    second = first if is_same else MagnitudePruningCallback({"global_config": {"target_sparsity": 0.25}})
    with pytest.raises(
        ConfigError, match=r"has 2 pruning callbacks with rules of the same names, .*\[global\]: one parameter"
    ):
        make_trainer(tmp_path, callbacks=[first, second])
    make_trainer(tmp_path, callbacks=[first])

    class Configures(ToyModule):
        def configure_callbacks(self):
            return [second]

    if is_same:  # a callback of the module takes the place of one of its class
        make_trainer(tmp_path, callbacks=[first], max_epochs=5).fit(Configures(), make_loader(2))


@pytest.mark.parametrize("name", ["log_layers", "keep_zeros", "best_at_target", "allow_config_change", "show_plan"])
def test_a_text_is_no_flag(name):
    with pytest.raises(ConfigError, match=rf"{name} must be True or False, got 'no'. Write False."):
        MagnitudePruningCallback(**{name: "no"})
    with pytest.raises(ConfigError, match=rf"{name} must be True or False, got 1"):
        MagnitudePruningCallback(**{name: 1})
    assert getattr(MagnitudePruningCallback(**{name: np.bool_(False)}), name) is False
    with pytest.raises(ConfigError, match="log_prefix must be a text"):
        MagnitudePruningCallback(log_prefix=5)


def test_schedules_in_units_of_the_run_are_resolved_at_fit_start(tmp_path):
    config = {"global_config": {"scheduler": {"begin": 0.25, "end": "3 epochs", "frequency": 2}}}
    callback = MagnitudePruningCallback(config)
    fit(tmp_path, callback, max_epochs=4, accumulate_grad_batches=2)
    assert callback.pruner.schedules["fc1.weight"].update_steps == (4, 6, 8, 10, 12)
    with pytest.raises(ConfigError, match="the length of the run is not known in advance"):
        fit(tmp_path, MagnitudePruningCallback(config), max_epochs=-1, max_time={"seconds": 5})


def test_a_frequency_that_leaves_few_updates_is_told_of(tmp_path):
    def rule(**schedule: object) -> dict[str, Any]:
        return {"global_config": {"scheduler": {"begin": 0.0, "end": 0.75, **schedule}, "target_sparsity": 0.75}}

    for schedule, message in (
        (
            {"frequency": 20},
            "3 updates in this run, at optimizer steps 0, 20, 24: .* Leave frequency out, or write a smaller",
        ),
        ({"begin": "1 epoch", "end": 28, "frequency": 6}, "3 updates .* 16, 22, 28: .* Leave frequency out"),
        ({"begin": 0, "end": 1}, "2 updates in this run, at optimizer steps 0, 1: .* end=1 is one step; write 1.0"),
        ({"begin": 0.7}, "3 updates .* Let begin and end lie further apart"),
        (
            {"begin": 0.74, "end": 0.745},
            "1 update in this run, at optimizer steps 24: .* Let begin and end lie further",
        ),
    ):
        with pytest.warns(UserWarning, match="global_config.scheduler makes " + message):
            fit(tmp_path, MagnitudePruningCallback(rule(**schedule)), batches=16)
    # enough updates, one on purpose, or no room for more
    for schedule, batches in (({"frequency": 3}, 16), ({}, 16), ({"begin": 0.75}, 16), ({"frequency": 20}, 4)):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*updates in this run")
            fit(tmp_path, MagnitudePruningCallback(rule(**schedule)), batches=batches)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"module_name_configs": {"fc3": {}}}, "matches no module of the model. Did you mean 'fc"),
        (
            {"module_name_configs": {"fc1": {"granularity": "per_kernel"}}},
            "needs a weight of rank 3 or more, got rank 2 in fc1.weight",
        ),
    ],
)
def test_what_does_not_fit_the_model_fails_before_training(tmp_path, config, message):
    model = ToyModule()
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, MagnitudePruningCallback(config), model=model)
    assert not model.losses
    assert_plain(model)


def test_wrong_arguments_fail_when_the_callback_is_built():
    with pytest.raises(ConfigError, match="target_sparsity must be a fraction"):
        MagnitudePruningCallback({"global_config": {"target_sparsity": 75}})
    with pytest.raises(ConfigError, match='masking must be "hook" or "resident"'):
        MagnitudePruningCallback(masking="mask")
    with pytest.raises(ConfigError, match="export must be a CoreMLExport, .*, a path or None, got True"):
        MagnitudePruningCallback(export=True)
    with pytest.raises(LifecycleError, match=r"Call trainer.fit\(model\) first"):
        MagnitudePruningCallback().report()


def test_a_configuration_may_be_a_yaml_file(tmp_path):
    path = tmp_path / "prune.yaml"
    path.write_text("global_config: {scheduler: {update_steps: 'range(2, 9, 2)'}, target_sparsity: 0.75}")
    assert MagnitudePruningCallback(path).config == MagnitudePruningCallback(POLYNOMIAL).config


def test_validation_and_test_see_pruned_weights(tmp_path):
    seen = []

    class Look(Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append(round(sparsity_of(pl_module.fc1.weight), 2))

        on_test_start = on_validation_start

    callback = MagnitudePruningCallback(POLYNOMIAL)
    model, trainer = fit(tmp_path, callback, callbacks=[Look()], val_check_interval=2, max_epochs=1)
    trainer.test(model, make_loader(2), verbose=False)
    assert seen == [0.0, 0.0, 0.53, 0.72, 0.75, 0.75]


def test_pytorch_lightning_works_too(tmp_path):
    # before 2.6 that Trainer refuses callbacks of the other package
    pytorch_lightning = pytest.importorskip("pytorch_lightning", minversion="2.6")

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.fc(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert not isinstance(Other(), LightningModule)
    callback, model = MagnitudePruningCallback(POLYNOMIAL), Other()
    saver = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=8)
    trainer = pytorch_lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver, callback],
    )
    trainer.fit(model, make_loader(8))
    assert sparsity_of(model.fc.weight) == 0.75
    saved = torch.load(saver.best_model_path, weights_only=True)
    assert sparsity_of(saved["state_dict"]["fc.weight"]) == 0.75


def test_the_pruner_inside_is_the_public_one(tmp_path):
    callback = MagnitudePruningCallback(POLYNOMIAL)
    fit(tmp_path, callback)
    assert isinstance(callback.pruner, MagnitudePruner)
    assert callback.pruner.is_finalized


def test_importing_the_library_loads_nothing_heavy():
    code = (
        "import sys, lightning_prune; "
        "print([name for name in ('lightning', 'pytorch_lightning', 'coremltools', 'matplotlib', 'sklearn', 'rich', 'yaml') "
        "if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
