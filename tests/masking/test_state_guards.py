"""State dicts amid a fit: whatever asks for one gets pruned weights under plain names, and may load such names."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import ToyModule, assert_plain, make_loader, make_trainer, sparsity_of
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_prune import MagnitudePruner, MagnitudePruningCallback

PLAIN = list(ToyModule().state_dict())
RULES = {"global_config": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75}}
MASKINGS = pytest.mark.parametrize("masking", ["hook", "resident"])


def fit(tmp_path, masking, *callbacks, model=None, config=None, **arguments):
    model = model or ToyModule()
    pruning = MagnitudePruningCallback(config or RULES, masking=masking, show_plan=False)
    trainer = make_trainer(tmp_path, callbacks=[pruning, *callbacks], **{"max_epochs": 2, **arguments})
    trainer.fit(model, make_loader())
    return model, pruning, trainer


class HiddenWrites(Callback):
    """Writes past the count that PyTorch keeps of writes."""

    def on_train_batch_end(self, trainer, module, *args):
        module.fc1.weight.data.add_(0.01)


@MASKINGS
def test_a_file_of_weights_alone_is_the_pruned_network(tmp_path, masking):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, save_weights_only=True, filename="{step}")
    hidden = [HiddenWrites()] if masking == "resident" else []
    fit(tmp_path, masking, *hidden, saver, enable_checkpointing=True)
    state = torch.load(tmp_path / "step=12.ckpt", weights_only=True)["state_dict"]
    assert list(state) == PLAIN
    assert sparsity_of(state["fc1.weight"]) == 0.75
    ToyModule().load_state_dict(state, strict=True)


@MASKINGS
def test_every_writer_in_a_fit_gets_plain_names_and_pruned_weights(tmp_path, masking):
    class Writer(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step != 12:
                return
            if masking == "resident":
                module.fc1.weight.data.add_(1.0)
            for state, prefix in ((module.state_dict(), "fc1."), (module.fc1.state_dict(), "")):
                assert sparsity_of(state[f"{prefix}weight"]) == 0.75
            assert list(module.state_dict()) == PLAIN
            assert list(module.fc1.state_dict()) == ["weight", "bias"]
            assert list(module.state_dict(prefix="net.")) == [f"net.{name}" for name in PLAIN]
            copied = copy.deepcopy(module.fc1)
            assert list(copied.state_dict()) == ["weight", "bias"]
            pickle.loads(pickle.dumps(module.fc1))
            self.state = {name: value.clone() for name, value in module.state_dict().items()}

    writer = Writer()
    model, _, _ = fit(tmp_path, masking, writer)
    assert writer.state["fc1.weight"].shape == model.fc1.weight.shape
    assert_plain(model)


@MASKINGS
def test_a_snapshot_that_is_loaded_again_changes_nothing(tmp_path, masking):
    class Snapshot(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, strict=True)

    torch.manual_seed(0)
    without, _, _ = fit(tmp_path, masking)
    torch.manual_seed(0)
    model, _, _ = fit(tmp_path, masking, Snapshot())
    for ours, theirs in zip(model.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_copy_with_hooks_shows_whatever_it_loads(tmp_path):
    """An average or a target network is a copy whose masks no pruner moves."""

    class Target(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 3:
                self.target = copy.deepcopy(module.fc1)
            if trainer.global_step == 7:
                self.target.load_state_dict(module.fc1.state_dict())
                inputs = torch.randn(2, 128)
                assert torch.equal(self.target(inputs), module.fc1(inputs))
                self.is_checked = True

    target = Target()
    fit(tmp_path, "hook", target)
    assert target.is_checked


def test_the_pruner_alone_keeps_the_names_of_core_ml_tools_unless_asked():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    pruner = MagnitudePruner(model, {"global_config": {"initial_sparsity": 0.5, "target_sparsity": 0.5}})
    pruner.prepare(inplace=True)
    assert list(model.state_dict())[:3] == ["0.weight_orig", "0.bias", "0.weight_mask"]
    pruner.guard_state_dicts()
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert sparsity_of(model.state_dict()["0.weight"]) == 0.5
    plain = pruner.finalize()
    assert not any(module._state_dict_hooks or module._load_state_dict_pre_hooks for module in plain.modules())


@MASKINGS
def test_what_does_not_fit_is_still_an_error_of_the_module_itself(masking):
    model = nn.Sequential(nn.Linear(8, 4))
    pruner = MagnitudePruner(model, {"global_config": {"initial_sparsity": 0.5}}, masking=masking)
    pruner.prepare(inplace=True)
    pruner.guard_state_dicts()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="size mismatch|Unexpected key"):
        model.load_state_dict({**state, "0.weight": torch.zeros(3, 3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"0.bias": state["0.bias"]})


# Weights that are written after the masks were attached


class Pretrained(ToyModule):
    """Loads its weights in a hook of its own, which runs behind those of the callbacks."""

    def __init__(self, hook: str, state: dict[str, torch.Tensor], how: str = "load") -> None:
        super().__init__()
        self.first: torch.Tensor | None = None

        def load(*args: object) -> None:
            if self.trainer.global_step:
                return
            if how == "load":
                self.load_state_dict(state)
            else:
                name = "weight_orig" if hasattr(self.fc1, "weight_orig") else "weight"
                getattr(self.fc1, name).data.copy_(state["fc1.weight"])

        setattr(self, hook, load)

    def training_step(self, batch, batch_idx):
        if self.first is None:
            self.first = self.fc1.weight.detach().clone()
        return super().training_step(batch, batch_idx)


@MASKINGS
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
@pytest.mark.parametrize("how", ["load", "data"])
def test_weights_that_are_loaded_late_are_pruned_by_their_own_magnitudes(tmp_path, masking, hook, how):
    torch.manual_seed(1)
    state = ToyModule().state_dict()
    config = {"global_config": {**RULES["global_config"], "initial_sparsity": 0.5}}
    model, pruning, _ = fit(tmp_path, masking, model=Pretrained(hook, state, how), config=config)
    magnitudes = state["fc1.weight"].abs()
    median = magnitudes.flatten().kthvalue(magnitudes.numel() // 2).values
    assert torch.equal(model.first, torch.where(magnitudes > median, state["fc1.weight"], 0.0))
    assert sparsity_of(model.fc1.weight) == 0.75
    assert pruning.pruner.step_count == 16
    assert_plain(model)


@MASKINGS
def test_zeros_of_weights_that_are_loaded_late_are_kept(tmp_path, masking):
    torch.manual_seed(1)
    state = ToyModule().state_dict()
    zeros = torch.rand(state["fc1.weight"].shape) < 0.6
    state["fc1.weight"][zeros] = 0.0
    model, _, _ = fit(tmp_path, masking, model=Pretrained("on_fit_start", state))
    assert torch.equal(model.first == 0, zeros)
