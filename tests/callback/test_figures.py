"""Pictures at updates: of TensorBoard itself, of loggers like those of Weights & Biases and MLflow, and of none."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from conftest import POLYNOMIAL, ToyModule, make_loader, make_trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lightning_prune import ConfigError, MagnitudePruningCallback
from lightning_prune.callback.figures import _takes, find_sink

NAMES = ["layers", "mask/conv.weight", "mask/fc1.weight", "mask/fc2.weight", "plan"]
UPDATES = [2, 4]


class Plain(Logger):
    """A logger that takes numbers."""

    name, version, experiment = "plain", 0, None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments, **settings):
        pass


class LikeWandb(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **settings: Any) -> None:
        self.seen.append((key, step, images))


class LikeMLflow(Plain):
    run_id = "a1"

    class Client:
        def __init__(self) -> None:
            self.seen: list[tuple[str, str, Any]] = []

        def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
            self.seen.append((run_id, artifact_file, figure))

    def __init__(self) -> None:
        super().__init__()
        self.experiment = self.Client()


def fit(tmp_path, logger, steps=(2, 4), **settings):
    model, settings = ToyModule(), {"max_epochs": 2, **settings}
    rule = {"scheduler": {"update_steps": list(steps)}, "target_sparsity": 0.75}
    callback = MagnitudePruningCallback({"global_config": rule}, show_plan=False, log_figures=True)
    trainer = make_trainer(tmp_path, callbacks=[callback], logger=logger, log_every_n_steps=1, **settings)
    trainer.fit(model, make_loader())
    return model


def test_tensorboard_has_the_pictures_of_every_update(tmp_path):
    pytest.importorskip("matplotlib")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, logger)
    events = accumulators.EventAccumulator(logger.log_dir, size_guidance={accumulators.IMAGES: 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == [f"sparsity_figures/{name}" for name in NAMES]
    for name in NAMES:
        images = events.Images(f"sparsity_figures/{name}")
        assert [image.step for image in images] == UPDATES
        assert len({image.encoded_image_string for image in images}) == len(UPDATES), "pictures that do not change"


def test_a_logger_like_that_of_weights_and_biases_gets_images(tmp_path):
    pytest.importorskip("matplotlib")
    logger = LikeWandb()
    fit(tmp_path, [CSVLogger(tmp_path), logger])  # one that takes pictures is enough
    assert sorted({key for key, _, _ in logger.seen}) == [f"sparsity_figures/{name}" for name in NAMES]
    assert sorted({step for _, step, _ in logger.seen}) == UPDATES
    for _, _, (image,) in logger.seen:
        assert image.size[0] > 300
        assert image.convert("RGB").getcolors(2**24) is not None


def test_a_client_like_that_of_mlflow_gets_figures_of_its_run(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    logger = LikeMLflow()
    fit(tmp_path, logger)
    assert len(logger.experiment.seen) == len(NAMES) * len(UPDATES)
    assert {run for run, _, _ in logger.experiment.seen} == {"a1"}
    assert "sparsity_figures/mask/fc1.weight/step_00000004.png" in {file for _, file, _ in logger.experiment.seen}
    assert all(isinstance(figure, figures.Figure) for _, _, figure in logger.experiment.seen)


@pytest.mark.parametrize(
    ("loggers", "named"), [(lambda path: [CSVLogger(path), Plain()], "CSVLogger, Plain"), (lambda _: False, "none")]
)
def test_loggers_that_take_no_pictures_are_refused_before_training(tmp_path, loggers, named):
    pytest.importorskip("matplotlib")
    model = ToyModule()
    callback = MagnitudePruningCallback(POLYNOMIAL, log_figures=True)
    trainer = make_trainer(tmp_path, callbacks=[callback], logger=loggers(tmp_path), max_epochs=1)
    with pytest.raises(ConfigError, match=f"needs a logger that takes pictures: .*The Trainer's loggers: {named}\\."):
        trainer.fit(model, make_loader())
    assert not model.losses


def test_without_matplotlib_they_are_refused_before_training(tmp_path, monkeypatch):
    load = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    model = ToyModule()
    callback = MagnitudePruningCallback(POLYNOMIAL, log_figures=True)
    trainer = make_trainer(tmp_path, callbacks=[callback], logger=LikeWandb(), max_epochs=1)
    with pytest.raises(ConfigError, match=r'log_figures=True needs matplotlib: pip install "lightning-prune\[plot\]"'):
        trainer.fit(model, make_loader())
    assert not model.losses


def test_a_logger_that_fails_is_told_of_once_and_costs_nothing(tmp_path):
    pytest.importorskip("matplotlib")

    class Offline(LikeWandb):
        def log_image(self, key, images, step=None):
            super().log_image(key, images, step)
            raise ConnectionError("no route to host")

    logger = Offline()
    with pytest.warns(UserWarning, match="No more figures are logged: ConnectionError: no route to host") as warned:
        model = fit(tmp_path, logger)
    assert len([each for each in warned if "No more figures" in str(each.message)]) == 1
    assert len(logger.seen) == 1
    assert len(model.losses) == 16


def test_things_that_only_look_like_it_take_no_pictures():
    class Shop(Plain):
        def log_image(self, image):
            raise AssertionError("called")

    class Without(LikeMLflow):
        run_id = None

    assert find_sink(Shop()) is None
    assert find_sink(Without()) is None
    assert find_sink(LikeMLflow()) is not None


def test_the_logger_of_weights_and_biases_takes_what_it_is_given():
    assert _takes(WandbLogger.log_image, "key", "images", "step")


def test_a_rehearsal_draws_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    logger = LikeWandb()
    fit(tmp_path, logger, fast_dev_run=2)
    assert logger.seen == []
