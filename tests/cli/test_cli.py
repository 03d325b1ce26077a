import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ToyModule, make_loader, make_trainer
from torch import nn

import lightning_prune
from lightning_prune import MagnitudePruner, MagnitudePrunerConfig, MagnitudePruningCallback, plan_pruning
from lightning_prune.analysis.inspection import inspect_file
from lightning_prune.cli.commands import build_parser, main
from lightning_prune.masking.foreign import convert_checkpoint

SOURCE = """
import torch
from lightning.pytorch import LightningModule
from torch import nn


class Net(LightningModule):
    def __init__(self, hidden: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 64, hidden)
        self.head = nn.Linear(hidden, classes)
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, images):
        return self.head(torch.relu(self.fc(torch.relu(self.norm(self.conv(images))).flatten(1))))


class Holder:
    Inner = Net


built = Net()
number = 7


def broken():
    raise OSError("no disk")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of models, as a user has it."""
    (tmp_path / "cli_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    yield tmp_path
    sys.modules.pop("cli_nets", None)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def pruned_net(sparsity: float = 0.75) -> nn.Module:
    from cli_nets import Net

    pruner = MagnitudePruner(Net(hidden=8), {"global_config": {"target_sparsity": sparsity}})
    pruner.prepare()
    pruner.step()
    return pruner.finalize()


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """A Lightning checkpoint with hyperparameters other than the defaults."""
    sys.path.insert(0, str(folder))
    model = pruned_net()
    content = {
        "pytorch-lightning_version": "2.6.0",
        "epoch": 3,
        "global_step": 40,
        "state_dict": model.state_dict(),
        "hyper_parameters": {"hidden": 8, "unknown": 1},
        "callbacks": {"MagnitudePruningCallback[global]": {"version": 1, "step_count": 40}},
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


# init and plan


def test_init_writes_a_configuration_that_can_be_edited_and_planned(folder, capsys):
    code, text, _ = run(capsys, "init", "cli_nets:Net", "--sparsity", 0.9, "--dense", "head", "--begin", "1 epoch")
    assert code == 0
    assert '# "fc": null  # Linear 16x512, 8,192 weights' in text
    config = MagnitudePrunerConfig.from_yaml(text)
    assert config.global_config.target_sparsity == 0.9
    assert (config.global_config.schedule.begin, config.global_config.schedule.end) == ("1 epoch", 0.6)
    assert config.module_name_configs == {"head": None}
    edited = text.replace('# "fc": null', '"fc": {n_m_ratio: [2, 4]}')
    assert MagnitudePrunerConfig.from_yaml(edited).module_name_configs["fc"].n_m_ratio == (2, 4)


@pytest.mark.parametrize("method", ["uniform", "global", "erdos_renyi_kernel"])
def test_init_spreads_a_sparsity_over_the_model(folder, capsys, method):
    code, text, _ = run(capsys, "init", "cli_nets:Net", "--sparsity", 0.9, "--spread", method, "--dense", "head")
    assert code == 0
    assert text.count("&schedule") == 1
    sys.path.insert(0, str(folder))
    from cli_nets import Net

    plan = plan_pruning(Net(), MagnitudePrunerConfig.from_yaml(text))
    weights = 72 + 8192 + 64
    assert sum(planned.target_zeros for planned in plan) == int(weights * 0.9)
    assert [planned.target_zeros for planned in plan if planned.label == "head"] == [0]


def test_init_writes_a_file_once(folder, capsys):
    target = folder / "pruning.yaml"
    arguments = ("init", "cli_nets:Net", "--output", target)
    assert run(capsys, *arguments)[0] == 0
    before = target.read_text()
    assert yaml.safe_load(before)["global_config"]["target_sparsity"] == 0.75
    code, _, error = run(capsys, *arguments, "--sparsity", 0.5)
    assert (code, target.read_text()) == (1, before)
    assert "exists. Write to another path, or add --overwrite." in error
    assert run(capsys, *arguments, "--overwrite", "--sparsity", 0.5)[0] == 0
    assert "target_sparsity: 0.5" in target.read_text()


def test_plan_says_what_is_pruned_and_what_not_and_why(folder, capsys):
    config = folder / "pruning.yaml"
    run(capsys, "init", "cli_nets:Net", "--dense", "head", "-o", config)
    code, text, _ = run(capsys, "plan", "cli_nets:Net", "--config", config, "--steps", 1000)
    assert code == 0
    for part in (
        "16x512",
        "6,144",
        "rank 1",
        "left dense by",
        "6,198 of 8,264 weights",
        "Sparsity over steps",
        "75.0%",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_plan_in_forms_that_programs_read(folder, capsys):
    code, text, _ = run(capsys, "plan", "cli_nets:Net", "--args", '{"hidden": 4}', "--steps", 10, "--format", "json")
    found = json.loads(text)
    assert code == 0
    assert {module["module"]: module["zeros"] for module in found["modules"]}["fc"] == 4 * 512 // 2
    assert found["sparsity"]["10"] == 0.5
    text = run(capsys, "plan", "cli_nets:Net", "--args", "[4, 2]", "--format", "csv")[1]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["module"]: row["shape"] for row in rows}["head"] == "2x4"


def test_plan_draws_the_curve(folder, capsys):
    pytest.importorskip("matplotlib")
    assert run(capsys, "plan", "cli_nets:Net", "--steps", 10, "--plot", "a.png")[0] == 0
    assert (folder / "a.png").stat().st_size > 5000
    code, _, error = run(capsys, "plan", "cli_nets:Net", "--plot", "a.png")
    assert code == 1
    assert "Write --steps 1000" in error
    code, _, error = run(capsys, "plan", "cli_nets:Net", "--steps", 10, "--plot", "a.abc")
    assert code == 1
    assert "must end in .png, .pdf or .svg, got 'a.abc'" in error


# inspect


def test_inspect_shows_each_weight(checkpoint, capsys):
    code, text, _ = run(capsys, "inspect", checkpoint)
    assert code == 0
    for part in (
        "fc.weight",
        "8x512",
        "per_scalar",
        "75.00%",
        "16,384",
        "Saved at epoch 3, optimizer step 40",
        "resumed",
    ):
        assert part in text
    assert "norm.weight" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "norm.weight" in run(capsys, "inspect", checkpoint, "--all")[1]


def test_inspect_exits_by_what_it_finds(checkpoint, capsys):
    assert run(capsys, "inspect", checkpoint, "--at-least", 0.75)[0] == 0
    code, _, error = run(capsys, "inspect", checkpoint, "--at-least", 0.9)
    assert code == 3
    assert "sparsity is 0.7500, less than 0.9" in error
    code, _, error = run(capsys, "inspect", checkpoint, "--at-least", 75)
    assert code == 1
    assert "Write 0.75 for 75 %" in error


def test_inspect_in_forms_that_programs_read(checkpoint, capsys):
    found = json.loads(run(capsys, "inspect", checkpoint, "--format", "json")[1])
    assert found["kind"] == "Lightning checkpoint"
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["fc.weight"]["zeros"] == 3072
    assert by_name["fc.weight"]["sparse_bytes"] == 4096 // 8 + 1024 * 2
    rows = list(csv.DictReader(io.StringIO(run(capsys, "inspect", checkpoint, "--format", "csv")[1])))
    assert [row["name"] for row in rows] == list(by_name)


def test_inspect_reads_what_other_tools_write(folder, tmp_path):
    layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.5)
    cases = {
        "state dict": layer.state_dict(),
        "checkpoint (model)": {"model": layer.state_dict(), "optimizer": {"state": {}}, "epoch": 1},
        "checkpoint (state_dict)": {"state_dict": layer.state_dict()},
    }
    for kind, content in cases.items():
        torch.save(content, tmp_path / "file.pt")
        found = inspect_file(tmp_path / "file.pt")
        assert found.kind == kind
        assert [(tensor.name, tensor.zeros) for tensor in found.tensors] == [("weight", 16)]
        assert "lightning-prune convert" in found.notes[-1]
    torch.save(torch.eye(4), tmp_path / "one.pt")
    assert inspect_file(tmp_path / "one.pt").tensors[0].name == "one"
    assert inspect_file(tmp_path / "one.pt").others == 0


def test_inspect_reads_safetensors(folder, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a.weight": torch.eye(8, dtype=torch.bfloat16), "a.bias": torch.ones(8)}, "a.safetensors")
    found = inspect_file("a.safetensors")
    assert [(tensor.name, tensor.zeros, tensor.dtype) for tensor in found.tensors] == [("a.weight", 56, "bfloat16")]
    assert found.others == 8
    Path("b.safetensors").write_bytes(b"nothing")
    code, _, error = run(capsys, "inspect", "b.safetensors")
    assert code == 1
    assert "cannot be read as safetensors" in error


def test_safetensors_without_its_package_say_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    code, _, error = run(capsys, "inspect", "a.safetensors")
    assert code == 1
    assert "pip install safetensors" in error


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_file_is_executed(folder, capsys):
    torch.save({"state_dict": {"weight": Payload()}}, "evil.ckpt")
    for command in (
        ("inspect", "evil.ckpt"),
        ("convert", "evil.ckpt", "out.ckpt"),
        ("export", "cli_nets:Net", "--checkpoint", "evil.ckpt", "-o", "a.mlpackage"),
        ("slim", "cli_nets:Net", "--checkpoint", "evil.ckpt", "-o", "a.safetensors"),
        ("plot", "layers", "evil.ckpt", "-o", "a.png"),
        ("page", "evil.ckpt", "-o", "a.html"),
    ):
        code, _, error = run(capsys, *command)
        assert code == 1
        assert "Traceback" not in error
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.ckpt", None, "missing.ckpt does not exist"),
        ("text.ckpt", b"hello", "text.ckpt cannot be read as a checkpoint: torch.save did not write it"),
        ("missing.mlpackage", None, "missing.mlpackage does not exist"),
        ("empty.pt", {}, "got a dict with nothing in it"),
        ("numbers.pt", {"epoch": 1, "loss": 0.5}, "got a dict with epoch, loss"),
        ("list.pt", [1], "got list"),
    ],
)
def test_files_without_weights_are_an_error_of_one_line(folder, capsys, name, content, message):
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)
    code, out, error = run(capsys, "inspect", name)
    assert (code, out) == (1, "")
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_a_folder_is_no_checkpoint(folder, capsys):
    code, _, error = run(capsys, "inspect", folder)
    assert code == 1
    assert "is a folder" in error


# export and convert


def test_a_checkpoint_goes_through_export_and_inspect(checkpoint, capsys, coremltools):
    arguments = ("export", "cli_nets:Net", "--checkpoint", checkpoint, "--output", "net.mlpackage")
    code, text, error = run(capsys, *arguments, "--frontend", "export")
    assert code == 0, error
    assert "fc.weight" in text
    code, text, _ = run(capsys, "inspect", "net.mlpackage")
    assert code == 0
    assert "sparse" in text
    assert "75.00%" in text
    code, _, error = run(capsys, *arguments)
    assert code == 1
    assert "net.mlpackage" in error
    code, _, error = run(capsys, *arguments[:-1], "net.mlmodel")
    assert code == 1
    assert "must end in .mlpackage" in error


def test_a_damaged_package_is_an_error_of_one_line(folder, capsys, coremltools):
    (folder / "a.mlpackage").mkdir()
    code, _, error = run(capsys, "inspect", "a.mlpackage")
    assert code == 1
    assert "cannot be read as a Core ML package" in error


def test_export_and_convert_speak_of_their_own_options(checkpoint, capsys, tmp_path):
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "linear.pt")
    command = ["export", "torch.nn:Linear", "--args", "[4, 2]", "--checkpoint", tmp_path / "linear.pt"]
    command += ["-o", tmp_path / "a.mlpackage"]
    code, _, error = run(capsys, *command)
    assert code == 1
    assert "Write --input-shape 1,3,224,224" in error
    (tmp_path / "a.mlpackage").mkdir()
    assert "add --overwrite" in run(capsys, *command, "--input-shape", "1,4")[2]
    assert "add --overwrite" in run(capsys, "convert", checkpoint, tmp_path / "a.mlpackage")[2]
    assert "missing.ckpt cannot be read" in run(capsys, "convert", "missing.ckpt", tmp_path / "b.ckpt")[2]


def test_export_says_which_weights_do_not_fit(checkpoint, capsys):
    code, _, error = run(
        capsys, "export", "cli_nets:Net", "--args", "[32]", "--checkpoint", checkpoint, "-o", "a.mlpackage"
    )
    assert code == 1
    assert "does not fit Net: other shapes have fc.weight, fc.bias, head.weight." in error
    torch.save({"fc.weight": torch.ones(2, 2), "more": torch.ones(1)}, "few.pt")
    code, _, error = run(capsys, "export", "cli_nets:Net", "--checkpoint", "few.pt", "-o", "a.mlpackage")
    assert (
        "it lacks conv.weight, conv.bias, norm.weight, norm.bias and 6 more; it has, but the model has not, more"
        in error
    )


def test_convert_gives_plain_names(folder, capsys):
    layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.5)
    torch.save(layer.state_dict(), "theirs.pt")
    code, text, _ = run(capsys, "convert", "theirs.pt", "plain.pt")
    assert code == 0
    assert "weight: 50.00% zero" in text
    nn.Linear(8, 4).load_state_dict(torch.load("plain.pt", weights_only=True))
    code, _, error = run(capsys, "convert", "theirs.pt", "plain.pt")
    assert code == 1
    assert "exists" in error
    assert run(capsys, "convert", "theirs.pt", "plain.pt", "--overwrite")[0] == 0


def test_a_path_may_begin_with_the_home_folder(folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    torch.save(nn.Linear(8, 4).state_dict(), "theirs.pt")
    assert run(capsys, "convert", "~/theirs.pt", "~/plain.pt")[0] == 0
    convert_checkpoint("~/theirs.pt", "~/plain.pt", overwrite=True)
    assert (folder / "plain.pt").is_file()
    assert not (folder / "~").exists()


def test_convert_into_a_missing_folder_is_one_line(folder, capsys):
    torch.save(ToyModule().state_dict(), folder / "dense.pt")
    code, _, error = run(capsys, "convert", "dense.pt", "no/such/plain.pt")
    assert code == 1
    assert "there is no folder 'no/such'. Make it first." in error
    assert len(error.splitlines()) == 1


# Help


@pytest.mark.parametrize("command", ["", "init", "plan", "inspect", "export", "slim", "convert", "plot", "page"])
@pytest.mark.parametrize("columns", ["40", "200"])
def test_every_help_fits_80_columns(monkeypatch, capsys, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 80] == []


# plot


@pytest.mark.parametrize("name", ["pic", "pic.", ".png", "folder.png/pic"])
def test_a_picture_needs_an_ending_of_its_own(folder, capsys, name):
    pytest.importorskip("matplotlib")
    torch.save(ToyModule().state_dict(), folder / "dense.pt")
    before = sorted(folder.rglob("*"))
    for arguments in (
        ("plot", "layers", "dense.pt", "-o", name),
        ("plan", "cli_nets:Net", "--steps", 9, "--plot", name),
    ):
        code, text, error = run(capsys, *arguments)
        assert (code, text) == (1, "")
        assert f"must end in .png, .pdf or .svg, got {name!r}" in error
        assert sorted(folder.rglob("*")) == before
    assert run(capsys, "plot", "layers", "dense.pt", "-o", "PIC.PNG")[0] == 0
    assert (folder / "PIC.PNG").read_bytes().startswith(b"\x89PNG")
    assert "there is no folder 'no'" in run(capsys, "plot", "layers", "dense.pt", "-o", "no/pic.svg")[2]


def test_plot_draws_what_a_training_run_leaves(folder, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="logs", version="a")
    config = {"global_config": {"scheduler": {"update_steps": [2, 4, 6, 8]}, "target_sparsity": 0.75}}
    callback = MagnitudePruningCallback(config, show_plan=False)
    trainer = make_trainer(tmp_path, max_epochs=1, logger=logger, callbacks=[callback], enable_checkpointing=False)
    trainer.fit(ToyModule(), make_loader())
    trainer.save_checkpoint("toy.ckpt")
    torch.save(ToyModule().state_dict(), "dense.pt")
    metrics = Path(logger.log_dir) / "metrics.csv"
    for arguments in (
        ("sparsity", metrics),
        ("sparsity", metrics, "--layers"),
        ("layers", "toy.ckpt"),
        ("weights", "toy.ckpt", "--before", "dense.pt"),
        ("weights", "toy.ckpt"),
        ("mask", "toy.ckpt", "--tensor", "conv.weight"),
    ):
        code, text, error = run(capsys, "plot", *arguments, "-o", "figure.png")
        assert (code, text, error) == (0, "Wrote figure.png\n", "")
        assert Path("figure.png").read_bytes().startswith(b"\x89PNG")
        Path("figure.png").unlink()
    assert "holds the pruning state" in run(capsys, "inspect", "toy.ckpt")[1].lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sparsity", "log.csv"), "log.csv has no rows with sparsity/global"),
        (("sparsity", "missing.csv"), "missing.csv: No such file or directory."),
        (("sparsity", "a.pt"), "cannot be read as a table of metrics"),
        (("mask", "a.pt"), "--tensor must name a weight in a.pt, got None. There are fc.weight."),
        (("mask", "a.pt", "--tensor", "fc.wight"), "Did you mean 'fc.weight'"),
        (("layers", "biases.pt"), "holds no weights of rank 2 or more"),
    ],
)
def test_what_cannot_be_drawn_says_why(folder, capsys, arguments, message):
    Path("log.csv").write_text("step,loss\n1,0.5\n")
    torch.save({"fc.weight": torch.eye(3)}, "a.pt")
    torch.save({"fc.bias": torch.ones(3)}, "biases.pt")
    code, _, error = run(capsys, "plot", *arguments, "-o", "figure.png")
    assert code == 1
    assert message in error


# The command itself


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("cli_nets", "must be written as package.module:Class, got 'cli_nets'"),
        ("cli_nets:", "must be written as package.module:Class"),
        ("no_such_module:Net", "The module 'no_such_module' of 'no_such_module:Net' cannot be imported"),
        ("cli_nets:Ne", "'cli_nets' has no 'Ne'. Did you mean 'Net'"),
        ("cli_nets:broken", "cli_nets:broken cannot be built: OSError: no disk"),
        ("cli_nets:number", "cli_nets:number cannot be built: TypeError"),
        ("pathlib:Path", "pathlib:Path must give a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_built_say_why(folder, capsys, model, message):
    code, _, error = run(capsys, "plan", model)
    assert code == 1
    assert message in error


def test_models_are_classes_functions_or_objects(folder, capsys):
    for model in ("cli_nets:Net", "cli_nets:Holder.Inner", "cli_nets:built"):
        assert run(capsys, "plan", model)[0] == 0
    for arguments, message in (
        (("cli_nets:built", "--args", "{}"), "--args has no use"),
        (("cli_nets:Net", "--args", "{"), "--args must be JSON"),
        (("cli_nets:Net", "--args", "3"), "a JSON object of keyword arguments or a list"),
        (("cli_nets:Net", "--args", '{"width": 3}'), "unexpected keyword argument 'width'"),
    ):
        code, _, error = run(capsys, "plan", *arguments)
        assert code == 1
        assert message in error


def test_errors_have_a_traceback_on_request(folder):
    with pytest.raises(lightning_prune.CheckpointError):
        main(["inspect", "missing.ckpt", "--debug"])


def test_an_interrupt_has_a_code_of_its_own(folder, capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_prune.analysis.inspect_file", interrupt)
    assert run(capsys, "inspect", "a.ckpt") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["plan"],
        ["export", "a:B", "-o", "c.mlpackage", "--input-shape", "a"],
        ["plan", "a:B", "--steps", "0"],
    ],
)
def test_what_is_not_a_command_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: lightning-prune" in capsys.readouterr().err


def test_every_command_has_help_with_examples(capsys):
    commands = next(action for action in build_parser()._actions if action.choices and "init" in action.choices).choices
    assert list(commands) == ["init", "plan", "inspect", "export", "slim", "convert", "plot", "page"]
    for name, parser in commands.items():
        text = parser.format_help()
        assert f"examples:\n  lightning-prune {name} " in text
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.strip() == f"lightning-prune {lightning_prune.__version__}"


def test_it_runs_as_a_module_of_its_own(checkpoint, request):
    warn = [f"-W{rule}" for rule in ("error", *(request.config.getoption("pythonwarnings") or ()))]  # as pytest does
    command = [sys.executable, *warn, "-m", "lightning_prune", "inspect", str(checkpoint), "--at-least", "0.9"]
    root = str(Path(lightning_prune.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": root, "COLUMNS": "80"}, check=False
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "fc.weight" in done.stdout
