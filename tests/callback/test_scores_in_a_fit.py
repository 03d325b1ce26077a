"""Scores of a user's own in a Trainer, and in a configuration that LightningCLI reads."""

import pytest
import torch
from conftest import ResumableLoader, ToyModule, make_loader, make_trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import ConfigError, MagnitudePruningCallback


def taylor(weight, parameter):
    return (weight * parameter.grad).abs()


class Sums(Callback):
    """Squared gradients, added up batch by batch; they travel with the checkpoint, so that a resume is bit-exact."""

    def __init__(self):
        self.sums, self.names = {}, {}

    def on_fit_start(self, trainer, pl_module):
        self.names = {parameter: name for name, parameter in pl_module.named_parameters()}

    def on_after_backward(self, trainer, pl_module):
        for name, parameter in pl_module.named_parameters():
            self.sums[name] = self.sums.get(name, 0.0) + parameter.grad.square()

    def __call__(self, weight, parameter):
        return weight.square() * self.sums[self.names[parameter]]

    def state_dict(self):
        return {name: value.clone() for name, value in self.sums.items()}

    def load_state_dict(self, state_dict):
        self.sums = dict(state_dict)


def fit(score, path, *, callbacks=(), ckpt_path=None):
    torch.manual_seed(0)
    module = ToyModule()
    rule = {"scheduler": {"update_steps": [3, 6, 9]}, "target_sparsity": 0.75, "score": score}
    callback = MagnitudePruningCallback({"global_config": rule}, show_plan=False)
    trainer = make_trainer(
        path, max_steps=12, callbacks=[callback, *callbacks], enable_checkpointing=len(callbacks) > 1
    )
    trainer.fit(module, ResumableLoader(list(make_loader())), ckpt_path=ckpt_path)
    return module, callback


def test_a_fit_ranks_by_the_gradients_of_the_last_batch(tmp_path):
    module, callback = fit(taylor, tmp_path)
    assert callback.report().sparsity == pytest.approx(0.75, abs=0.01)
    kept = module.fc1.weight.detach()
    other, _ = fit(None, tmp_path)
    largest = other.fc1.weight.detach()
    assert kept[kept != 0].abs().min() < largest[largest != 0].abs().min()  # small weights may stay


def test_a_resume_with_what_a_score_has_gathered_is_bit_exact(tmp_path):
    sums = Sums()
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole, _ = fit(sums, tmp_path, callbacks=[sums, checkpoints])
    other = Sums()
    resumed, _ = fit(other, tmp_path, callbacks=[other], ckpt_path=tmp_path / "step=5.ckpt")
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_text_in_a_configuration_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prune.yaml").write_text("global_config: {score: harmful.taylor}")
    with pytest.raises(ConfigError, match="No file names a function"):
        MagnitudePruningCallback(str(tmp_path / "prune.yaml"))
