"""The page of a fit: written at its end or where it was interrupted, refused before training, never costing the model."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import POLYNOMIAL, ResumableLoader, ToyModule, assert_plain, make_loader, make_trainer, sparsity_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import ConfigError, MagnitudePruningCallback, PageError, SparseExport
from lightning_prune.callback.fit import Fit
from lightning_prune.callback.pages import write_run_page
from lightning_prune.page import Curve


class Stop(Callback):
    """Raises at the start of a batch."""

    def __init__(self, step: int, exception: BaseException) -> None:
        self.step, self.exception = step, exception

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise self.exception


def pruning(path: Any, **settings: Any) -> MagnitudePruningCallback:
    return MagnitudePruningCallback(POLYNOMIAL, **{"show_plan": False, "page": path, **settings})


def fit(folder: Path, *callbacks: Callback, ckpt_path: str | None = None, **settings: Any) -> ToyModule:
    model, settings = ToyModule(), {"max_epochs": 2, **settings}
    trainer = make_trainer(folder, callbacks=list(callbacks), **settings)
    trainer.fit(model, ResumableLoader(list(make_loader())), make_loader(2), ckpt_path=ckpt_path)
    return model


def test_a_fit_leaves_a_page_with_its_numbers(tmp_path):
    path = tmp_path / "made" / "run.html"
    callback = pruning(path, export=SparseExport(tmp_path / "net.safetensors"))
    pytest.importorskip("safetensors")
    fit(tmp_path, callback)
    html = path.read_text()
    assert callback.page == path
    assert callback.page_error is None
    total = callback.report().total
    for part in (
        "<h1>ToyModule</h1>",
        "Finished after 16 optimizer steps",
        f"of {total.weights:,} weights",
        "val_loss",
        "<h3>safetensors file</h3>",
        "target_sparsity: 0.75",
    ):
        assert part in html, part
    assert html.count("data:image/png") == 3


def test_a_slim_network_is_on_the_page(tmp_path):
    rule = {**POLYNOMIAL["global_config"], "granularity": "per_channel", "target_sparsity": 0.5}
    callback = MagnitudePruningCallback({"global_config": rule}, slim=True, page=tmp_path / "run.html", show_plan=False)
    fit(tmp_path, callback)
    html, slim = (tmp_path / "run.html").read_text(), callback.slim_result
    assert f"{slim.slim_parameters:,} after" in html
    assert f"largest difference {slim.difference:.1e}" in html
    assert "coupled channels, set 1" in html


def test_what_a_fit_measured_is_in_its_history(tmp_path):
    callback = pruning(tmp_path / "run.html")
    fit(tmp_path, callback)
    history = callback._fit.history
    assert history.planned.steps == (0, 4, 6, 8, 16)
    assert history.planned.values[-1] == 0.75
    assert history.actual.steps == (2, 4, 6, 8, 16)
    assert history.actual.values[-1] == pytest.approx(callback.report().sparsity)
    assert {name: curve.steps for name, curve in history.metrics.items()} == {"loss": (8, 16), "val_loss": (8, 16)}


@pytest.mark.parametrize(
    ("exception", "raised", "said"),
    [
        (ValueError("out of <b>data</b>"), ValueError, "by ValueError: out of &lt;b&gt;data&lt;/b&gt;"),
        (KeyboardInterrupt(), SystemExit, "by KeyboardInterrupt"),
    ],
)
def test_an_interrupted_fit_leaves_what_is_known_and_its_own_error(tmp_path, exception, raised, said):
    callback, model = pruning(tmp_path / "run.html"), ToyModule()
    trainer = make_trainer(tmp_path, callbacks=[callback, Stop(5, exception)], max_epochs=2)
    with pytest.raises(raised) as caught:
        trainer.fit(model, make_loader())
    assert caught.value is exception or raised is SystemExit
    html = (tmp_path / "run.html").read_text()
    assert f"Interrupted after 5 optimizer steps {said}" in html
    assert "data:image/png" in html
    assert_plain(model)


def test_a_resumed_run_shows_what_came_before_and_replaces_its_page(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_top_k=-1, filename="{step}")
    whole = pruning(tmp_path / "whole.html")
    fit(tmp_path, whole)
    with pytest.raises(ValueError, match="enough"):
        fit(tmp_path, pruning(tmp_path / "run.html"), saver, Stop(10, ValueError("enough")), enable_checkpointing=True)
    assert "Interrupted" in (tmp_path / "run.html").read_text()
    resumed = pruning(tmp_path / "run.html")
    fit(tmp_path, resumed, ckpt_path=str(tmp_path / "saved" / "step=5.ckpt"))
    assert "Finished after 16 optimizer steps" in (tmp_path / "run.html").read_text()
    assert resumed._fit.history.actual == whole._fit.history.actual
    assert resumed._fit.history.planned == whole._fit.history.planned
    assert resumed._fit.history.metrics["loss"].steps[0] == 8


def test_a_checkpoint_without_a_history_is_resumed(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    fit(tmp_path, pruning(None), saver, enable_checkpointing=True)
    content = torch.load(tmp_path / "step=8.ckpt", weights_only=True)
    (state,) = [state for key, state in content["callbacks"].items() if key.startswith("MagnitudePruning")]
    file = io.BytesIO()
    torch.save(state.pop("history"), file)
    assert file.tell() < 4_000
    torch.save(content, tmp_path / "old.ckpt")
    resumed = pruning(tmp_path / "run.html")
    fit(tmp_path, resumed, ckpt_path=str(tmp_path / "old.ckpt"))
    assert resumed._fit.history.actual.steps == (16,)
    assert "Finished after 16 optimizer steps" in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize("name", ["mine.html", "mine.html/run.html"])
def test_a_page_that_cannot_be_written_is_refused_before_training(tmp_path, name):
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    model = ToyModule()
    trainer = make_trainer(tmp_path, callbacks=[pruning(tmp_path / name)], max_epochs=1)
    with pytest.raises(ConfigError, match="page must"):
        trainer.fit(model, make_loader())
    assert not model.losses
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_a_path_that_is_none_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"page must end in .html, got 'run'. Write 'run.html'"):
        MagnitudePruningCallback(page="run")
    with pytest.raises(ConfigError, match="page must be a path that ends in .html, got True"):
        MagnitudePruningCallback(page=True)


def test_a_page_that_fails_at_the_end_costs_nothing(tmp_path):
    class Occupy(Callback):
        def on_train_end(self, trainer, pl_module):
            (tmp_path / "run.html").write_text("<p>mine</p>")

    callback = pruning(tmp_path / "run.html")
    with pytest.warns(
        UserWarning, match=r"The page .*run.html was not written; the trained and pruned model is unharmed"
    ):
        model = fit(tmp_path, callback, Occupy())
    assert isinstance(callback.page_error, PageError)
    assert (tmp_path / "run.html").read_text() == "<p>mine</p>"
    assert_plain(model)
    assert sparsity_of(model.fc1.weight) == 0.75


def test_a_page_that_fails_does_not_hide_the_error_of_the_training(tmp_path, monkeypatch):
    callback = pruning(tmp_path / "run.html")
    monkeypatch.setattr("lightning_prune.callback.pages.gather_page", lambda **_: 1 / 0)
    with (
        pytest.warns(UserWarning, match="The page .* was not written"),
        pytest.raises(ValueError, match="out of data"),
    ):
        fit(tmp_path, callback, Stop(3, ValueError("out of data")))
    assert isinstance(callback.page_error.__cause__, ZeroDivisionError)


def test_a_failed_export_is_on_the_page(tmp_path):
    class Failing(SparseExport):
        def save(self, model, *, masks=None):
            raise OSError("the disk is full")

    pytest.importorskip("safetensors")
    callback = pruning(tmp_path / "run.html", export=Failing(tmp_path / "net.safetensors", on_error="raise"))
    with pytest.raises(Exception, match="the disk is full"):
        fit(tmp_path, callback)
    html = (tmp_path / "run.html").read_text()
    assert "net.safetensors: OSError: the disk is full" in html
    assert "Finished after 16 optimizer steps" in html


def test_a_rehearsal_and_processes_but_the_first_write_no_page(tmp_path):
    fit(tmp_path, pruning(tmp_path / "run.html"), fast_dev_run=2)
    other = SimpleNamespace(is_global_zero=False, fast_dev_run=False)
    assert write_run_page(tmp_path / "run.html", other, ToyModule(), Fit()) is None
    assert not (tmp_path / "run.html").exists()


def test_a_fit_that_fails_before_it_trains_leaves_the_page_of_the_last(tmp_path):
    callback = pruning(tmp_path / "run.html")
    model = fit(tmp_path, callback)
    before = (tmp_path / "run.html").read_text()
    model.make_optimizer = lambda parameters: 1 / 0
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, make_loader())
    assert (tmp_path / "run.html").read_text() == before
    assert callback._fit.history.actual != Curve()
