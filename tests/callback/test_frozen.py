"""In a fit, what no optimizer trains waits: frozen weights, and those that no optimizer holds."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from conftest import ResumableLoader, ToyModule, assert_plain, make_loader, make_trainer, sparsity_of
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_prune import MagnitudePruningCallback, plan_pruning

RULE = {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75}
MASKINGS = pytest.mark.parametrize("masking", ["hook", "resident"])


class Distilled(ToyModule):
    """A student beside a frozen teacher and a frozen stem."""

    def __init__(self, names: tuple[str, ...] = ("teacher", "stem")) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False))


class Thaw(Callback):
    """Freezes one layer until some optimizer steps are done."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, {}

    def setup(self, trainer, pl_module, stage):
        pl_module.fc1.requires_grad_(False)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.global_step] = round(sparsity_of(pl_module.fc1.weight), 2)
        if trainer.global_step == self.step:
            pl_module.fc1.requires_grad_(True)


def fit(tmp_path, *callbacks, model=None, config=None, masking="resident", ckpt_path=None, **arguments):
    model = model or ToyModule()
    config = config or {"global_config": {**RULE}}
    pruning = MagnitudePruningCallback(config, masking=masking, show_plan=False, **arguments)
    trainer = make_trainer(tmp_path, callbacks=[*callbacks, pruning], max_epochs=2, enable_checkpointing=True)
    trainer.fit(model, ResumableLoader(list(make_loader())), ckpt_path=ckpt_path)
    return model, pruning


def advice(message: str) -> str:
    return re.search(r'module_name_configs: {"(.+?)": None}', message).group(1)


@MASKINGS
@pytest.mark.parametrize("initial", [0.0, 0.25])
def test_what_is_frozen_is_left_as_it_is_and_named_at_the_end_with_advice_that_works(tmp_path, masking, initial):
    model = Distilled()
    before = {name: value.clone() for name, value in model.state_dict().items() if "teacher" in name or "stem" in name}
    config = {"global_config": {**RULE, "initial_sparsity": initial}}
    with pytest.warns(UserWarning, match=r"frozen at their updates: teacher.0.weight, .*stem.1.weight") as caught:
        _, pruning = fit(tmp_path, model=model, config=config, masking=masking)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
    assert [layer.name for layer in pruning.report().layers] == ["conv", "fc1", "fc2"]
    assert pruning.report().sparsity == pytest.approx(0.75, abs=1e-3)
    reasons = {row.name: row.reason for row in pruning.pruner.plan.skipped}
    assert "waits" in reasons["teacher.0"]
    assert sparsity_of(model.fc1.weight) == 0.75
    (message,) = [str(warning.message) for warning in caught if "frozen" in str(warning.message)]
    left_out = {**config, "module_name_configs": {advice(message): None}}
    assert [planned.label for planned in plan_pruning(Distilled(), left_out)] == ["conv", "fc1", "fc2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", message=".*isinstance|.*val_dataloader|.*workers|.*logging interval|.*Checkpoint"
        )
        fit(tmp_path, model=Distilled(), config=left_out, masking=masking)


def test_advice_names_what_is_frozen_and_nothing_beside_it(tmp_path):
    class Mixed(ToyModule):
        def __init__(self):
            super().__init__()
            self.net = nn.ModuleDict({"stem": nn.Linear(4, 4).requires_grad_(False), "head": nn.Linear(4, 4)})
            self.loss = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)

    with pytest.warns(UserWarning, match="frozen") as caught:
        fit(tmp_path, model=Mixed())
    pattern = advice(next(str(warning.message) for warning in caught if "frozen" in str(warning.message)))
    plan = plan_pruning(Mixed(), {"global_config": {}, "module_name_configs": {pattern: None}})
    assert [planned.label for planned in plan] == ["conv", "fc1", "fc2", "net.head"]


@MASKINGS
def test_a_rule_that_names_it_in_full_prunes_what_is_frozen(tmp_path, masking):
    config = {"global_config": None, "module_name_configs": {"teacher.0": RULE, "fc1": RULE}}
    model, _ = fit(tmp_path, model=Distilled(("teacher",)), config=config, masking=masking)
    assert sparsity_of(model.teacher[0].weight) == 0.75
    with pytest.warns(UserWarning, match="frozen at their updates: teacher.0.weight, teacher.1.weight"):
        model, _ = fit(
            tmp_path,
            model=Distilled(("teacher",)),
            config={"global_config": RULE, "module_name_configs": {r"teacher\.\d": RULE}},
            masking=masking,
        )
    assert sparsity_of(model.teacher[0].weight) == 0.0


@MASKINGS
@pytest.mark.parametrize(
    ("thawed_at", "expected"),
    [
        (1, {2: 0.0, 4: 0.53, 6: 0.72, 8: 0.75}),
        (5, {4: 0.0, 5: 0.0, 6: 0.72, 8: 0.75}),
        (7, {7: 0.0, 8: 0.75}),
        (10, {8: 0.0, 10: 0.0, 11: 0.75}),  # no update is left: at once
    ],
)
def test_what_is_unfrozen_catches_up_at_the_next_update(tmp_path, masking, thawed_at, expected):
    thaw = Thaw(thawed_at)
    model, pruning = fit(tmp_path, thaw, masking=masking)
    assert {step: thaw.seen[step] for step in expected} == expected
    assert sparsity_of(model.fc1.weight) == 0.75
    assert pruning.pruner.untrained == []
    assert_plain(model)


@MASKINGS
def test_a_global_ranking_leaves_out_what_waits_and_takes_it_in_later(tmp_path, masking):
    thaw = Thaw(5)
    model, pruning = fit(tmp_path, thaw, masking=masking, scope="global")
    assert thaw.seen[5] == 0.0
    weights = [model.conv.weight, model.fc1.weight, model.fc2.weight]
    zeros, numel = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    assert zeros == numel * 3 // 4


@pytest.mark.parametrize("saved_at", [3, 6, 9, 12])
def test_a_run_in_which_a_layer_waits_resumes_bit_exactly(tmp_path, saved_at):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, _ = fit(tmp_path, Thaw(5), saver)
    thaw = Thaw(5 if saved_at < 5 else saved_at)
    model, _ = fit(tmp_path, thaw, ckpt_path=tmp_path / f"step={saved_at}.ckpt")
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@MASKINGS
def test_what_is_frozen_only_for_a_part_of_each_batch_does_not_wait(tmp_path, masking):
    class Toggles(ToyModule):
        """As adversarial networks do: a part is frozen whenever another part is stepped, and at the end of a batch."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.fc1.requires_grad_(True)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()
            self.fc1.requires_grad_(False)

    model, _ = fit(tmp_path, model=Toggles(), masking=masking)
    assert sparsity_of(model.fc1.weight) == 0.75


@MASKINGS
def test_a_module_that_is_frozen_as_a_whole_ends_dense_and_is_told_of(tmp_path, masking):
    class Head(ToyModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.bn.parameters(), lr=0.1)

    model = Head()
    for layer in (model.conv, model.fc1, model.fc2):
        layer.requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen at their updates: conv.weight, fc1.weight, fc2.weight"):
        model, pruning = fit(tmp_path, model=model, masking=masking)
    assert sparsity_of(model.fc1.weight) == 0.0
    assert pruning.report().sparsity == 0.0
    assert len(pruning.report().layers) == 0
