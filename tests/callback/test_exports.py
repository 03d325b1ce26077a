"""Exports at the end of a fit: all are saved, the failure of each is kept, and none costs the model or another."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import POLYNOMIAL, ToyModule, assert_plain, make_loader, make_trainer, sparsity_of
from lightning.pytorch.loggers import CSVLogger

from lightning_prune import ConfigError, CoreMLExport, ExportError, ExportResult, MagnitudePruningCallback
from lightning_prune.basics import as_text


@dataclass
class Text:
    """An export of a user's own."""

    path: Path
    on_error: str = "warn"
    error: Exception | None = None

    def check(self, model=None):
        if "nowhere" in str(self.path):
            raise ConfigError("export.path must be somewhere")

    def save(self, model, *, masks=None):
        if self.error is not None:
            raise self.error
        self.path.write_text(" ".join(sorted(masks)))
        return ExportResult(self.path, self.path.stat().st_size, 100, (), format="Plain text file")


def fit(tmp_path, export, **arguments):
    model, callback = ToyModule(), MagnitudePruningCallback(POLYNOMIAL, export=export)
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[callback], **arguments)
    return model, callback, lambda: trainer.fit(model, make_loader())


def test_a_failing_export_costs_neither_the_model_nor_the_other_exports(tmp_path):
    first, broken, odd, last = (Text(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt", "d.txt"))
    broken.error, odd.error = ExportError("no room"), KeyError("what")
    model, callback, run = fit(tmp_path, [first, broken, odd, last], logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="failed") as caught:
        run()
    assert_plain(model)
    assert sparsity_of(model.fc1.weight) == pytest.approx(0.75, abs=1e-3)
    assert [result.path for result in callback.export_results] == [first.path, last.path]
    assert "conv.weight" in last.path.read_text()
    assert [export for export, _ in callback.export_errors] == [broken, odd]
    assert [str(error) for _, error in callback.export_errors] == ["no room", "KeyError: 'what'"]
    assert all(isinstance(error, ExportError) for _, error in callback.export_errors)
    assert callback.export_result is callback.export_results[0]
    assert callback.export_error is broken.error
    said = [str(item.message) for item in caught if "failed" in str(item.message)]
    assert "no room Retry with callback.export[1].save(model)." in said[0]
    assert "callback.export[2].save(model)" in said[1]
    logged = Path(callback.export_results[0].path.parent, "lightning_logs/version_0/metrics.csv").read_text()
    assert "plaintext/a/bytes" in logged, "two files of a format have names of their own"
    assert "plaintext/d/bytes" in logged


def test_an_export_that_raises_does_so_after_the_others(tmp_path):
    raises = Text(tmp_path / "a.txt", on_error="raise", error=ExportError("no room"))
    model, callback, run = fit(tmp_path, [raises, Text(tmp_path / "b.txt")])
    with pytest.raises(ExportError, match="no room"):
        run()
    assert_plain(model)
    assert callback.export_result.path == tmp_path / "b.txt"


def test_a_single_export_is_kept_as_it_was_given(tmp_path):
    export = Text(tmp_path / "a.txt")
    _, callback, run = fit(tmp_path, export)
    assert callback.export is export
    assert callback.export_result is None
    run()
    assert callback.export_results == [callback.export_result]
    assert callback.export_error is None
    assert callback.export_errors == []


def test_every_export_is_checked_before_training(tmp_path):
    model, _, run = fit(tmp_path, [Text(tmp_path / "a.txt"), Text(tmp_path / "nowhere.txt")])
    with pytest.raises(ConfigError, match="must be somewhere"):
        run()
    assert not model.losses


def test_two_exports_to_a_path_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="exports to different paths, got .*net.mlpackage twice"):
        MagnitudePruningCallback(export=["net.mlpackage", {"path": tmp_path / "a" / ".." / "net.mlpackage"}])


def test_exports_in_a_list_take_every_form_that_a_single_one_takes(tmp_path):
    written = {"class_path": "lightning_prune.CoreMLExport", "init_args": {"path": "c.mlpackage"}}
    callback = MagnitudePruningCallback(export=["a.mlpackage", {"path": "b.mlpackage"}, written])
    assert callback.export == [CoreMLExport(f"{name}.mlpackage", None) for name in "abc"]
    for wrong in ([3], ["a.mlpackage", None], [["a.mlpackage"]], CoreMLExport):
        with pytest.raises(ConfigError, match="export must be a CoreMLExport, .*, a path or None, got"):
            MagnitudePruningCallback(export=wrong)


def test_the_title_and_the_names_of_numbers_follow_the_format():
    result = ExportResult(Path("net.onnx"), 50, 100, (), format="ONNX model")
    assert result.as_dict() == {
        "onnx/bytes": 50.0,
        "onnx/dense_bytes": 100.0,
        "onnx/ratio": 2.0,
        "onnx/sparsity": 0.0,
        "onnx/not_checked": 0.0,
    }
    assert "ONNX model net.onnx" in as_text(result)
    assert ExportResult(Path("n"), 1, 1, (), "export").prefix == "coreml/"
    assert ExportResult(Path("n"), 1, 1, (), format="Core AI asset").prefix == "coreai/"
    assert ExportResult(Path("n"), 1, 1, (), format="safetensors file").prefix == "safetensors/"
