"""A fit whose network is made slim: the copy and its file, exports of it, a resume amid it, failures that cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from coupled_nets import Residual, rule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import ConfigError, MagnitudePruningCallback
from lightning_prune.slim import Slim, load_slim


def fit(model: pl.LightningModule, *callbacks: pl.Callback, steps: int = 8, **settings: Any) -> pl.Trainer:
    images = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
    )
    trainer.fit(model, DataLoader(TensorDataset(images, torch.arange(32) % 4), batch_size=8), **settings)
    return trainer


def pruning(**settings: Any) -> MagnitudePruningCallback:
    return MagnitudePruningCallback({"global_config": rule()}, show_plan=False, **{"slim": True, **settings})


def test_the_slim_copy_is_there_at_the_end_and_its_file_loads_into_a_dense_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, callback = Residual(), pruning(slim=Slim(path=tmp_path / "slim.pt"))
    fit(model, callback)
    result = callback.slim_result
    assert result is not None
    assert callback.slim_error is None
    assert model.stem.out_channels == 8
    assert result.model.stem.out_channels == 4
    loaded, images = load_slim(Residual(), tmp_path / "slim.pt").eval(), torch.randn(3, 1, 6, 6)
    assert torch.equal(loaded(images), result.model.eval()(images))
    torch.testing.assert_close(loaded(images), model.eval()(images))


def test_a_run_resumed_amid_it_ends_in_the_same_slim_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, callback = Residual(), pruning()
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(whole, callback, saver)
    resumed, again = Residual(), pruning()
    fit(resumed, again, ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert callback.slim_result is not None
    assert again.slim_result is not None
    for name, tensor in callback.slim_result.model.state_dict().items():
        assert torch.equal(tensor, again.slim_result.model.state_dict()[name]), name


def test_an_export_writes_the_slim_network(tmp_path: Path) -> None:
    class Export:
        path, on_error = tmp_path / "slim.bin", "warn"
        widths: list[int] = []

        def check(self, model: Any = None) -> None:
            """Nothing to find."""

        def save(self, model: Any, *, masks: Any = None) -> Any:
            self.widths.append(model.stem.out_channels)
            assert masks is None
            raise RuntimeError("this is all that it shall do")

    callback = pruning(export=Export())
    with pytest.warns(UserWarning, match="this is all that it shall do"):
        fit(Residual(), callback)
    assert Export.widths == [4]


def test_a_slimming_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Residual):
        fails = False

        def forward(self, images: Tensor) -> Tensor:
            if self.fails and not self.training:
                raise ValueError("broken after training")
            return super().forward(images)

        def on_train_end(self) -> None:
            self.fails = True

    model, callback = Later(), pruning()
    with pytest.warns(UserWarning, match="The slim network was not made; the trained and pruned model is unharmed"):
        fit(model, callback)
    assert callback.slim_result is None
    assert "broken after training" in str(callback.slim_error)
    assert int((model.stem.weight.flatten(1).any(1)).sum()) == 4


def test_a_file_that_is_something_else_stays_and_the_slim_network_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "slim.pt"
    path.write_text("mine")
    callback = pruning(slim=Slim(path=path))
    with pytest.warns(UserWarning, match="its file was not written"):
        fit(Residual(), callback)
    assert callback.slim_result is not None
    assert callback.slim_error is not None
    assert path.read_text() == "mine"


def test_a_module_without_an_example_is_refused_before_training() -> None:
    model = Residual()
    model.example_input_array = None
    with pytest.raises(ConfigError, match=r"slim=Slim\(example_inputs="):
        fit(model, pruning())


def test_the_plan_shows_coupled_sets_before_any_fit() -> None:
    plan = pruning().plan(Residual())
    assert "coupled channels, set 1" in str(plan)
    assert "parameters" in plan.notes[0]
