"""Files that others made: no code of theirs runs, they take no memory or time without bound, and are shown as they are."""

import argparse
import enum
import io
import json
import os
import pickle
import re
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune import (
    CheckpointError,
    ConfigError,
    CosineDecayScheduler,
    FixedMasks,
    MagnitudePruner,
    MagnitudePrunerConfig,
    MagnitudePruningCallback,
    ModuleMagnitudePrunerConfig,
    convert_checkpoint,
    plan_pruning,
)
from lightning_prune.analysis.inspection import inspect_file, read_weights
from lightning_prune.analysis.plots import plot_layers, plot_mask, plot_sensitivity, plot_sparsity, plot_weights
from lightning_prune.basics.tables import as_text, new_table
from lightning_prune.cli.commands import main
from lightning_prune.errors import first_names, one_line, shown
from lightning_prune.masking.fingerprints import place_sum
from lightning_prune.pruner.report import SparsityReport
from lightning_prune.schedules import TrainingRun


def laughs(levels=9, width=9):
    """A list that is short as YAML and has ``width ** levels`` items."""
    anchors = ["&l0 [" + ", ".join(["x"] * width) + "]"]
    anchors += [f"&l{level} [" + ", ".join([f"*l{level - 1}"] * width) + "]" for level in range(1, levels)]
    return "[" + ", ".join(anchors) + "]"


def nest(levels=9, width=9):
    value = ["x"] * width
    for _ in range(levels - 1):
        value = [value] * width
    return value


@pytest.fixture
def quick():
    start, of_processor = time.monotonic(), time.process_time()
    yield
    assert time.process_time() - of_processor < 10
    assert time.monotonic() - start < 60  # on a machine that does much else


# values in errors


def test_a_value_is_shown_as_its_repr_where_that_is_short():
    for value in (1, -0.5, "text", b"x", None, True, [], [1, [2]], (), (1,), {}, {"a": [1, "b"]}, {1}, range(5)):
        assert shown(value) == repr(value)


@pytest.mark.usefixtures("quick")
def test_no_more_of_a_value_is_built_than_is_shown():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    endless: list = []
    endless.append(endless)
    for value in (nest(), {"a": nest()}, deep, endless, "x" * 10**7, 10**100_000, range(10**9), list(range(10**6))):
        assert len(shown(value)) <= 100
    assert shown(torch.zeros(1).expand(10**9)) == "Tensor of shape (1000000000,)"
    assert "\n" not in shown(nn.Sequential(nn.Linear(2, 2)))
    assert one_line("a\n  b  ") == "a b"
    assert len(one_line("x" * 10**6)) == 300
    assert first_names([f"layer{i}" for i in range(100)], most=2) == "layer0, layer1 and 98 more"


SETTINGS = [
    "scheduler",
    "initial_sparsity",
    "target_sparsity",
    "granularity",
    "block_size",
    "n_m_ratio",
    "dim",
    "param_name",
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "value", [nest(), "x" * 10**6, {"a": nest()}, [0.5] * 10**6], ids=["nested", "text", "dict", "list"]
)
@pytest.mark.parametrize("name", SETTINGS)
def test_an_error_of_a_setting_is_short(name, value):
    if name == "param_name" and isinstance(value, str):
        value += "("
    with pytest.raises(ConfigError) as caught:
        MagnitudePrunerConfig(global_config={name: value})
    assert len(str(caught.value)) < 600


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", ["begin", "end", "frequency", "update_steps", "begin_step", "power", "class_path", "x" * 10**6]
)
def test_an_error_of_a_schedule_is_short(name):
    with pytest.raises(ConfigError) as caught:
        ModuleMagnitudePrunerConfig({name: nest()})
    assert len(str(caught.value)) < 600


# configurations


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"global_config:\n  n_m_ratio: {laughs(4)}\n", "n_m_ratio must be two whole numbers"),
        (f"global_config:\n  n_m_ratio: {laughs(30)}\n", "at most 1,000,000 values with every alias"),
        ("a: &a {b: 1}\n" + "".join(f"{c}: &{c} {{<<: [*{p}, *{p}, *{p}, *{p}]}}\n" for p, c in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)), "at most 1,000,000 values"),
        ("global_config: &a [*a]", r"an alias \(\*\) to what it lies in itself"),
        ("global_config: " + "[" * 5000 + "]" * 5000, "at most 100 levels"),
        ("global_config: " + "[" * 200 + "]" * 200, "at most 100 levels"),
        ("global_config: {x: 2024-99-99}", "not valid YAML: month must be in 1..12"),
        ("global_config: !!bool maybe", "not valid YAML"),
        ("global_config: !!timestamp never", "not valid YAML"),
        ("global_config: !!python/object/apply:os.system [exit]", "not valid YAML: could not determine a constructor"),
        ("global_config: {\n", "not valid YAML: .*, at line 2, column 1"),
        ("# " + "x" * 2**20 + "\n", "at most 1,048,576 bytes"),
    ],
    ids=["aliases", "too many aliases", "merges", "endless", "too deep", "deep", "date", "bool", "timestamp", "code", "open", "long"],
)  # fmt: skip
def test_yaml_that_is_made_to_harm_is_a_short_error(text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        MagnitudePrunerConfig.from_yaml(text)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_aliases_serve_as_they_are_meant():
    text = "global_config: {scheduler: &s {begin: 0.1, end: 0.5}}\nmodule_name_configs: {fc: {scheduler: *s}}\n"
    config = MagnitudePrunerConfig.from_yaml(text)
    assert config.module_name_configs["fc"].scheduler == config.global_config.scheduler


@pytest.mark.parametrize("name", ["checkpoint", "large", "zeros", "NUL", "long name", "folder"])
def test_what_is_no_configuration_file_is_a_config_error(tmp_path, name):
    path: object = tmp_path / "file"
    if name == "checkpoint":
        torch.save({"w": torch.zeros(3)}, path)
    elif name == "large":
        path.write_bytes(b"\xff" * 2**21)
    path = {"zeros": "/dev/zero", "NUL": "a\0b", "long name": "x" * 10_000, "folder": str(tmp_path)}.get(name, path)
    with pytest.raises(
        ConfigError, match="must be YAML, a text in UTF-8|at most 1,048,576 bytes|cannot be read"
    ) as caught:
        MagnitudePruningCallback(path)
    assert len(str(caught.value)) < 400


def test_an_open_file_is_read_within_the_same_bounds():
    assert MagnitudePrunerConfig.from_yaml(io.BytesIO(b"global_config: {}")) == MagnitudePrunerConfig()
    with pytest.raises(ConfigError, match="at most 1,048,576 bytes"):
        MagnitudePrunerConfig.from_yaml(io.StringIO("#" * 2**21))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "scheduler",
    [
        {"update_steps": "range(0, 1000000000000)"},
        {"update_steps": range(10**15)},
        {"update_steps": torch.zeros(1, dtype=torch.int64).expand(10**10)},
    ],
    ids=["text", "range", "stride 0"],
)
def test_a_schedule_has_at_most_a_million_updates(scheduler):
    with pytest.raises(ConfigError, match="update_steps must give at most 1,000,000 updates"):
        ModuleMagnitudePrunerConfig(scheduler)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("frequency", [1, "0.000001 epochs"])
def test_a_schedule_in_units_of_the_run_has_as_many(frequency):
    schedule = CosineDecayScheduler(begin=0, end=10**12, frequency=frequency)
    with pytest.raises(ConfigError, match="frequency must give at most 1,000,000 updates"):
        schedule.resolve(TrainingRun(None, steps_per_epoch=100))


@pytest.mark.parametrize("path", ["os.system;x", "os.path.", ".x", "a b", "../planted.X", "", 3, None, ["a"]])
def test_a_class_path_that_is_no_dotted_name_is_refused_before_an_import(path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigError, match="class_path must be the name of a schedule"):
        ModuleMagnitudePrunerConfig({"class_path": path})


@pytest.mark.parametrize("prefix", ["", "lightning_prune.", "lightning_prune.schedules."])
def test_one_of_our_schedules_is_found_without_an_import(prefix, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    config = ModuleMagnitudePrunerConfig({"class_path": f"{prefix}CosineDecayScheduler", "init_args": {"begin": 0.1}})
    assert isinstance(config.scheduler, CosineDecayScheduler)


def test_a_module_that_cannot_be_imported_is_a_config_error(tmp_path, monkeypatch):
    (tmp_path / "broken_schedule.py").write_text("raise RuntimeError('on purpose')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="class_path must be an importable schedule.*on purpose"):
        ModuleMagnitudePrunerConfig({"class_path": "broken_schedule.X"})


# files of tensors


@pytest.mark.usefixtures("quick")
def test_tensors_that_repeat_themselves_are_refused(tmp_path):
    file = tmp_path / "s.pt"
    for content in (
        {"w": torch.zeros(1).expand(200_000, 200_000)},
        {f"w{i}": torch.zeros(1).expand(10**4, 10**4) for i in range(50)},
        {"w_orig": torch.ones(1).expand(10**6, 10**6), "w_mask": torch.ones(1, 1)},
        {"state_dict": {"w": torch.zeros(1, 4).expand(10**9, 4)}},
    ):
        torch.save(content, file)
        for read in (inspect_file, read_weights, lambda path: convert_checkpoint(path, tmp_path / "out.pt")):
            with pytest.raises(CheckpointError, match=r"bytes of tensors, which stand for .* \(stride 0\)"):
                read(file)
    torch.save({"w": torch.zeros(1, 64).expand(64, 64), "v": torch.zeros(64, 64)}, file)
    assert len(inspect_file(file).tensors) == 2


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="it is compressed, and unpacks to"):
        inspect_file(tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="it is compressed, and unpacks to"):
        convert_checkpoint(tmp_path / "bomb.pt", tmp_path / "out.pt")


ODD = {
    "w": torch.eye(4),
    0: torch.zeros(4, 4),
    (1, 2): torch.ones(2, 2),
    "sparse": torch.eye(3).to_sparse(),
    "rows": torch.eye(3, 4).to_sparse_coo(),
    "meta": torch.empty(3, 3, device="meta"),
    "bits": torch.empty(3, 3, dtype=torch.bits8),
    "eighth": torch.eye(4).to(torch.float8_e4m3fn),
}


class _Command:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def _cut(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()[: file.tell() // 2]


def _archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


NO_CODE = "which is neither a tensor nor a plain value, and no code of a file is run here; save the state_dict() alone"


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (_Command(), rf"{os.system.__module__}\.system"),
        ({"hyper_parameters": argparse.Namespace(rate=0.1)}, r"argparse\.Namespace"),
        ({"hyper_parameters": {"data": Path("data")}}, r"pathlib\.\w+"),
        ({"loss": np.float64(3)}, r"numpy\.[\w.]+"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ],
    ids=["function", "namespace", "path", "numpy", "module"],
)
def test_what_a_file_would_have_to_run_is_named(tmp_path, monkeypatch, content, name, is_archive):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.ckpt", _use_new_zipfile_serialization=is_archive)
    reads = [lambda: FixedMasks("file.ckpt"), lambda: convert_checkpoint("file.ckpt", "out.pt")]
    if not isinstance(content, dict) or not is_archive:
        reads.append(lambda: read_weights("file.ckpt"))
    for read in reads:
        with pytest.raises((CheckpointError, ConfigError), match=f"it holds {name}, {re.escape(NO_CODE)}") as caught:
            read()
        assert "weights_only" not in str(caught.value)
    assert not Path("executed").exists()


class _Kind(enum.Enum):
    LARGE = "large"


class _Own:
    def __init__(self, values):
        self.values = values


def test_the_weights_of_a_checkpoint_are_read_beside_objects_that_are_not(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight = torch.eye(3)
    objects = {
        "root": Path("data"),
        "kind": _Kind.LARGE,
        "options": argparse.Namespace(rate=0.1, parts=[_Own({"a": np.arange(3)})]),
        "loss": nn.CrossEntropyLoss(weight=torch.ones(3)),
        "optimizer": torch.optim.SGD,
        "rate": np.float64(0.5),
        "_Own": _Own(_Own),
    }
    content = {"state_dict": {"weight": weight, "extra": _Own(1)}, "hyper_parameters": objects, "epoch": Path("1")}
    content |= {"pytorch-lightning_version": "2.6.0", "callbacks": {"Pruning": _Own(2)}, "global_step": np.int64(3)}
    torch.save(content, "last.ckpt")
    before = set(torch.serialization.get_safe_globals())
    assert torch.equal(read_weights("last.ckpt")["weight"], weight)
    assert set(torch.serialization.get_safe_globals()) == before
    inspected = inspect_file("last.ckpt")
    assert (inspected.kind, [row.name for row in inspected.tensors]) == ("Lightning checkpoint", ["weight"])
    assert "Not looked into: extra" in inspected.notes[-1]
    assert said(capsys, "page", "last.ckpt", "-o", "page.html")[0] == 0


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ({"in_features": 3, "out_features": 3, "bias": _Kind.LARGE}, "the hyperparameter 'bias' holds <"),
        ({"in_features": 3, "out_features": [{"size": _Own(3)}]}, "the hyperparameter 'out_features' holds <"),
        (_Own({"in_features": 3}), "hyper_parameters holds <"),
    ],
)
def test_a_model_is_not_built_from_objects_that_are_not_loaded(tmp_path, capsys, monkeypatch, saved, named):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": nn.Linear(3, 3).state_dict(), "hyper_parameters": saved}, "last.ckpt")
    code, text, error = said(capsys, "plan", "torch.nn:Linear", "--checkpoint", "last.ckpt")
    assert (code, text) == (1, "")
    assert f"In the checkpoint {named}" in error
    assert error.strip().endswith("Give the arguments of the model by --args as JSON.")
    assert said(capsys, "plan", "torch.nn:Linear", "--checkpoint", "last.ckpt", "--args", "[3, 3]")[0] == 0


def test_a_file_that_names_more_classes_than_any_program_is_refused(tmp_path, monkeypatch):
    classes = [type(f"Class{i}", (), {"__module__": __name__}) for i in range(300)]
    for one in classes:
        monkeypatch.setattr(sys.modules[__name__], one.__name__, one, raising=False)
    torch.save({"weight": torch.eye(3), "classes": classes}, tmp_path / "file.ckpt")
    with pytest.raises(CheckpointError, match="it names 300 classes and functions"):
        read_weights(tmp_path / "file.ckpt")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"hello there", "torch.save did not write it, or it was cut off"),
        (b"<html>404 Not Found</html>", "torch.save did not write it, or it was cut off"),
        (b"version https://git-lfs.github.com/spec/v1", "torch.save did not write it, or it was cut off"),
        (bytes(5000), "torch.save did not write it, or it was cut off"),
        (pickle.dumps({"a": 1}), "torch.save did not write it, or it was cut off"),
        (_cut({"weight": torch.ones(1000)}), "torch.save did not write it, or it was cut off"),
        (_archive("weight.npy"), "it is an archive, but torch.save did not write it"),
        (_archive("net/data.pkl", "net/constants.pkl"), "it is a program of TorchScript"),
        (_archive("net/data.pkl", "net/version"), "it is damaged, or holds more than tensors and plain values"),
    ],
    ids=["empty", "text", "page", "pointer", "zeros", "pickle", "cut", "numpy", "script", "damaged"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_checkpoint_is_told_in_plain_words(tmp_path, content, why):
    (tmp_path / "file.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"file.ckpt cannot be read as a checkpoint: {re.escape(why)}") as caught:
        read_weights(tmp_path / "file.ckpt")
    assert "weights_only" not in str(caught.value)


def test_inspect_names_what_it_cannot_look_into(tmp_path):
    torch.save(ODD, tmp_path / "odd.pt")
    found = inspect_file(tmp_path / "odd.pt", all_tensors=True)
    assert [(tensor.name, tensor.zeros) for tensor in found.tensors] == [
        ("w", 12),
        ("0", 16),
        ("(1, 2)", 0),
        ("eighth", 12),
    ]
    assert found.notes[0].startswith("Not looked into: sparse, rows, meta, bits (")


def test_numbers_that_are_stored_with_another_sign_are_read_as_they_are_meant(tmp_path):
    imaginary = torch.tensor([[1 + 2j, 0j], [3 + 4j, 0j]]).conj().imag  # a view that is to be negated
    torch.save({"w": imaginary}, tmp_path / "file.pt")
    (weight,) = read_weights(tmp_path / "file.pt").values()
    assert not weight.is_neg()
    assert weight.numpy().tolist() == [[-2.0, 0.0], [-4.0, 0.0]]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # where the test itself loads it
def test_convert_leaves_what_is_odd_as_it_is(tmp_path):
    layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.5)
    torch.save({**ODD, **layer.state_dict()}, tmp_path / "odd.pt")
    assert convert_checkpoint(tmp_path / "odd.pt", tmp_path / "out.pt") == {"weight": 0.5}
    assert set(torch.load(tmp_path / "out.pt", weights_only=True)) == {*ODD, "weight", "bias"}


@pytest.mark.parametrize("name", ["w_orig", "w_mask"])
@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, 3, device="meta")], ids=["sparse", "meta"])
def test_a_weight_that_cannot_be_masked_is_named(tmp_path, name, odd):
    torch.save({"w_orig": torch.eye(3), "w_mask": torch.eye(3), name: odd}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=f"{name} must hold its numbers one by one"):
        convert_checkpoint(tmp_path / "odd.pt", tmp_path / "out.pt")
    with pytest.raises(CheckpointError, match=f"{name} must hold its numbers one by one"):
        inspect_file(tmp_path / "odd.pt")


def said(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_what_cannot_be_written_or_read_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(4, 4).state_dict(), "in.pt")
    Path("binary").write_bytes(bytes(range(256)))
    Path("wide.csv").write_text("step,sparsity/global\n1," + "x" * 200_000)
    Path("far.csv").write_text("step,sparsity/global\n" + "9" * 400 + ",0.5\n")
    Path("broken.py").write_text("def :\n")
    torch.save({"x" * 10**6: torch.eye(3)}, "long.pt")
    for command, why in (
        (("convert", "in.pt", "binary/out.pt"), "cannot be written: "),
        (("convert", "in.pt", tmp_path, "--overwrite"), "cannot be written: "),
        (("convert", "in.pt", "no/such/out.pt"), "there is no folder 'no/such'"),
        (("convert", "binary", "out.pt"), "binary cannot be read as a checkpoint"),
        (("inspect", "/dev/zero"), "it is no file"),
        (("plan", "torch.nn:Linear", "--args", "[4, 4]", "--config", "in.pt"), "must be YAML, a text in UTF-8"),
        (("plan", "torch.nn:Linear", "--args", "[" * 100_000), "--args must be JSON, got '[[[["),
        (("plan", "no.such\nmodule:X"), "cannot be imported"),
        (("plot", "sparsity", "wide.csv", "-o", "a.png"), "cannot be read as a table of metrics"),
        (("plot", "sparsity", "far.csv", "-o", "a.png"), "step must be a whole number from 0 to 1000000000"),
        (("plot", "sparsity", "/dev/zero", "-o", "a.png"), "/dev/zero is no file"),
        (("plan", "torch.nn:Linear", "--args", "[4, 4]", "--checkpoint", "long.pt"), "xxx..."),
        (("plan", "broken:Net"), "cannot be imported: SyntaxError: "),
        (("plan", ".broken:Net"), "cannot be imported: "),
        (("plan", "sys:maxsize.conv"), "has no 'maxsize.conv'"),
        (("plot", "layers", "in.pt", "-o", "picture"), "must end in .png, .pdf or .svg, got 'picture'"),
    ):
        code, text, error = said(capsys, *command)
        assert (code, text, error.count("\n")) == (1, "", 1), command
        assert why in error
        assert len(error) < 600
    assert not Path("picture.png").exists()
    assert not Path("no").exists()
    assert not list(tmp_path.glob(".*partial"))


# names that are markup, formulas or orders to a terminal


NAMES = [
    "run[red]",
    "[/x]",
    "[bold]w[/bold]",
    ":smile:",
    "a\x1b[2Jb",
    r"$\frac{1}{2}$",
    "[link=http://x]y[/link]",
    "_hidden",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_a_name_letter_for_letter(name):
    letters = name.replace("\x1b", r"\x1b")
    table = new_table(f"title {name}")
    table.add_column("name", min_width=60)
    table.add_row(name)
    table.caption = f"caption {name}"
    shown_lines = [line.strip() for line in as_text(table).splitlines()]
    assert shown_lines[0] == f"title {letters}"
    assert letters in shown_lines
    assert shown_lines[-1] == f"caption {letters}"


@pytest.mark.parametrize("name", NAMES)
def test_plans_and_reports_show_a_name_letter_for_letter(name):
    letters = name.replace("\x1b", r"\x1b")
    model = nn.ModuleDict({name: nn.Linear(4, 4), f"{name}n": nn.LayerNorm(4)})
    plan = plan_pruning(model)
    assert letters in str(plan)
    assert f"{letters}n" in str(plan)
    pruner = MagnitudePruner(model)
    pruner.prepare()
    report = pruner.report()
    assert letters in repr(report)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_inspect_shows_names_and_notes_letter_for_letter(tmp_path, capsys, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for number, name in enumerate(NAMES):
        key = f"MagnitudePruningCallback[{name}]"
        content = {"state_dict": {name: torch.zeros(3, 3)}, "callbacks": {key: {"step_count": 60}}}
        torch.save({**content, "epoch": 1, "global_step": 60, "pytorch-lightning_version": "2"}, f"run[b]{number}.ckpt")
        code, text, _ = said(capsys, "inspect", f"run[b]{number}.ckpt", "--format", form)
        assert code == 0
        letters = name.replace("\x1b", r"\x1b")
        if form == "json":
            assert json.loads(text)["tensors"][0]["name"] == name
        else:
            assert letters in text
        if form == "table":
            assert f"run[b]{number}.ckpt" in text
            assert f"MagnitudePruningCallback[{letters}]" in text
    code, _, error = said(capsys, "inspect", "[red]:smile:[/x]\x1b[2J.ckpt")
    assert (code, error) == (1, "error: [red]:smile:[/x]\\x1b[2J.ckpt does not exist.\n")


def test_what_a_checkpoint_says_of_itself_is_cut(tmp_path):
    content = {"state_dict": {"w": torch.zeros(3, 3)}, "callbacks": {"Pruning" + "x" * 10**6: {"step_count": nest(7)}}}
    torch.save({**content, "epoch": nest(7), "global_step": nest(7)}, tmp_path / "a.ckpt")
    assert max(map(len, inspect_file(tmp_path / "a.ckpt").notes)) < 500


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw_a_name_letter_for_letter(name):
    pytest.importorskip("matplotlib")
    weights = {name: torch.eye(4), "other": torch.eye(4)}
    pruner = MagnitudePruner(nn.ModuleDict({name: nn.Linear(4, 4)}))
    pruner.prepare()
    letters = name.replace("\x1b", r"\x1b")
    for figure in (
        plot_sparsity([1, 2], {name: [0.1, 0.2]}),
        plot_weights(weights, weights),
        plot_mask(torch.eye(4), name=name),
        plot_layers(SparsityReport(pruner.report().layers)),
        plot_sensitivity([0.5, 0.9], {name: [1.0, 0.5]}, baseline=1.0),
    ):
        file = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules["matplotlib"].rcParams, "svg.fonttype", "none")
            figure.savefig(file, format="svg")
        text = file.getvalue().replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert letters in text


# masks of replicas


def test_the_fingerprint_of_a_mask_tells_where_its_zeros_lie():
    masks = [torch.ones(64, dtype=torch.uint8) for _ in range(64)]
    for place, mask in enumerate(masks):
        mask[place] = 0
    assert len({place_sum(mask) for mask in masks}) == 64
    one, other = torch.ones(64, dtype=torch.uint8), torch.ones(64, dtype=torch.uint8)
    one[[0, 24]], other[[8, 16]] = 0, 0  # two zeros that move towards each other
    assert place_sum(one) != place_sum(other)


def test_the_fingerprint_of_a_mask_does_not_depend_on_its_layout():
    mask = (torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), mask.flatten()])[3:].view(mask.shape)
    for other in (
        mask.to(memory_format=torch.channels_last),
        shifted,
        mask.bool(),
        mask.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        assert place_sum(other) == place_sum(mask)
    assert place_sum(mask[:0]) == 0


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_replicas_of_one_weight_and_other_masks_differ(masking, monkeypatch):
    values: list[dict[str, int]] = []
    monkeypatch.setattr(
        "lightning_prune.pruner.restoring.require_same", lambda numbers, *_, **__: values.append(numbers)
    )
    for _ in range(2):
        torch.manual_seed(0)
        pruner = MagnitudePruner(nn.Linear(8, 4), masking=masking)
        pruner.prepare(inplace=True)
        pruner.fast_forward(1)
        pruner.check_replicas()
        mask = pruner.masks()["weight"]
        mask.copy_(mask.flip(0).flip(1))  # as many zeros, elsewhere
        pruner.check_replicas()
    same, moved, same_again, moved_again = (value["weight"] for value in values)
    assert same == same_again != moved == moved_again
