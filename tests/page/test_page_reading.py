"""The page of a run that is over, from a checkpoint, a file of weights, or a folder with both and a log."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import POLYNOMIAL, ToyModule, make_loader, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_prune import CheckpointError, MagnitudePruningCallback
from lightning_prune.cli.commands import main
from lightning_prune.page import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as a CSVLogger leaves it, with checkpoints of both epochs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    trainer = make_trainer(
        folder,
        max_epochs=2,
        logger=CSVLogger(folder, name="logs"),
        callbacks=[MagnitudePruningCallback(POLYNOMIAL, show_plan=False), ModelCheckpoint(save_top_k=-1)],
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    trainer.fit(ToyModule(), make_loader(), make_loader(2))
    return folder / "logs" / "version_0"


def test_a_checkpoint_shows_its_layers_plan_and_configuration(run):
    page = read_run(run / "checkpoints" / "epoch=0-step=8.ckpt")
    assert page.title == "epoch=0-step=8.ckpt"
    assert page.status.startswith("A checkpoint after 8 optimizer steps in epoch 0; page of ")
    assert [(layer.name, layer.target, layer.sparsity) for layer in page.layers] == [
        ("conv.weight", 0.75, 0.75),
        ("fc1.weight", 0.75, 0.75),
        ("fc2.weight", 0.75, 0.75),
    ]
    assert [mask.name for mask in page.masks] == ["conv.weight", "fc1.weight", "fc2.weight"]
    assert page.planned.steps == (0, 4, 6, 8, 16)
    assert page.actual.steps == (2, 4, 6, 8)
    assert "target_sparsity: 0.75" in page.configuration
    assert page.versions["Lightning (of the checkpoint)"]


def test_a_folder_gives_its_newest_checkpoint_and_its_log(run):
    newest = run / "checkpoints" / "epoch=1-step=16.ckpt"
    os.utime(newest, (2e9, 2e9))
    page = read_run(run)
    assert page.title == newest.name
    assert page.actual.steps == (2, 4, 6, 8, 16)
    assert set(page.metrics) == {"loss", "val_loss"}
    assert len(page.metrics["loss"].steps) >= 16  # the log has every step
    assert any("newest of 2 checkpoints" in note and "epoch=0-step=8.ckpt" in note for note in page.notes)
    assert read_run(run.parent).actual == page.actual


def test_a_file_of_weights_shows_what_is_sparse(tmp_path):
    model = ToyModule()
    with torch.no_grad():
        model.fc1.weight[:24] = 0
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    page = read_run(tmp_path / "weights.pt")
    assert [(layer.name, layer.structure, layer.target) for layer in page.layers] == [
        ("fc1.weight", "per_channel, block 8", None)
    ]
    assert page.dense[0].names == ("conv.weight", "fc2.weight")
    assert (page.planned.steps, page.actual.steps, page.metrics, page.configuration) == ((), (), {}, "")


def test_a_folder_without_a_checkpoint_and_a_damaged_log_are_clear_errors(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no checkpoint \(.ckpt\) in it or two folders below"):
        read_run(tmp_path)
    (tmp_path / "a.ckpt").write_bytes((run / "checkpoints" / "epoch=0-step=8.ckpt").read_bytes())
    (tmp_path / "metrics.csv").write_text("step,loss\n1,many\n")
    with pytest.raises(CheckpointError, match="metrics.csv cannot be read as a table of metrics: could not convert"):
        read_run(tmp_path)


@pytest.mark.parametrize("rule", [None, 7, "{", '{"target_sparsity": "x"}', '{"target_sparsity": 7}', "[]"])
def test_a_hostile_state_is_no_target(run, tmp_path, rule):
    content = torch.load(run / "checkpoints" / "epoch=0-step=8.ckpt", weights_only=True)
    (state,) = [state for key, state in content["callbacks"].items() if key.startswith("MagnitudePruning")]
    state["parameters"]["fc1.weight"]["rule"] = rule
    torch.save(content, tmp_path / "a.ckpt")
    assert [layer.target for layer in read_run(tmp_path / "a.ckpt").layers] == [0.75, None, 0.75]


def test_the_command_writes_a_page_and_never_over_another_file(run, tmp_path, capsys):
    path = tmp_path / "run.html"
    assert main(["page", str(run), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"Wrote {path}\n"
    assert "A checkpoint after 16 optimizer steps" in path.read_text()
    for arguments, message in (
        ([str(run), "-o", str(path)], "run.html exists. Write to another path, or add --overwrite."),
        ([str(run), "-o", str(tmp_path / "run.txt")], "--output must end in .html"),
        ([str(tmp_path / "lost.ckpt"), "-o", str(tmp_path / "b.html")], "lost.ckpt does not exist"),
    ):
        assert main(["page", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["page", str(run), "-o", str(path), "--overwrite"]) == 0
    (tmp_path / "mine.html").write_text("mine")
    assert main(["page", str(run), "-o", str(tmp_path / "mine.html"), "--overwrite"]) == 1
    assert "--output must be free or hold the page of another run" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "mine"
