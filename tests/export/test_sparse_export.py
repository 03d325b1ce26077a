"""Sparse files as an export of the callback, as checkpoints and back, and on the command line."""

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_prune import MagnitudePruner, MagnitudePruningCallback, SparseExport, load_sparse, save_sparse
from lightning_prune.analysis import inspect_file
from lightning_prune.cli import main
from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export import convert_sparse
from lightning_prune.export.sparse import export as module

pytest.importorskip("safetensors")


class Net(pl.LightningModule):
    def __init__(self, hidden=256, size=(3, 4), scale=0.5):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 8, bias=False))

    def training_step(self, batch, _):
        return self.body(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(16, 64), batch_size=4)


def zeroed(model):
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight[torch.rand_like(weight) < 0.75] = 0
    return model


def same(state, other):
    return list(state) == list(other) and all(torch.equal(value, other[name]) for name, value in state.items())


def fit(folder, **options):
    torch.manual_seed(0)
    callback = MagnitudePruningCallback(
        {"global_config": {"scheduler": {"begin_step": 1}, "target_sparsity": 0.75}}, **options
    )
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Net()
    trainer.fit(model)
    return trainer, model, callback


def test_the_callback_writes_a_sparse_file_and_it_becomes_a_checkpoint_and_back(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    trainer, model, callback = fit(tmp_path, export=SparseExport(path))
    assert same(load_sparse(path), model.state_dict())
    result = callback.export_result
    assert [(layer.name, layer.stored) for layer in result.layers] == [
        ("body.0.weight", "bitmask"),
        ("body.2.weight", "bitmask"),
    ]
    assert result.sparsity == 0.75
    assert result.layers[0].ratio > 3.4
    assert result.package_bytes == path.stat().st_size
    assert "every bit" in result.checks[0]
    full, small, back = (tmp_path / name for name in ("full.ckpt", "small.safetensors", "back.ckpt"))
    trainer.save_checkpoint(full)
    assert main(["convert", str(full), str(small)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "hyper_parameters['size']" in said  # a tuple
    assert "optimizer_states" in said
    assert "callbacks" in said
    assert same(load_sparse(small), model.state_dict())
    assert full.stat().st_size > 5 * small.stat().st_size
    assert main(["convert", str(small), str(back)]) == 0
    content = torch.load(back, weights_only=True)
    assert same(content["state_dict"], model.state_dict())
    assert content["hyper_parameters"] == {"hidden": 256, "scale": 0.5}
    assert content["global_step"] == 4
    assert same(Net.load_from_checkpoint(back).state_dict(), model.state_dict())


def test_state_dicts_and_dense_files_are_converted_too(tmp_path, capsys):
    from safetensors.torch import save_file

    state = zeroed(Net()).state_dict()
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "dense.safetensors")
    for source in ("a.pt", "dense.safetensors"):
        done = convert_sparse(tmp_path / source, tmp_path / "sparse.safetensors", overwrite=True)
        assert done.lost == ()
        assert same(
            load_sparse(tmp_path / "sparse.safetensors"),
            {name: state[name] for name in load_sparse(tmp_path / "sparse.safetensors")},
        )
    convert_sparse(tmp_path / "sparse.safetensors", tmp_path / "back.pt")
    assert torch.load(tmp_path / "back.pt", weights_only=True).keys() == state.keys()
    for arguments, message in (
        (["a.pt", "dense.safetensors", "--overwrite"], "is something else"),
        (["a.pt", "sparse.safetensors"], "exists"),
        (["sparse.safetensors", "back.pt"], "exists"),
        (["none.safetensors", "x.pt"], "does not exist"),
        (["none.pt", "x.safetensors"], "does not exist"),
    ):
        source, target, *rest = arguments
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *rest]) == 1
        assert message in " ".join(capsys.readouterr().err.split())


def test_masks_of_other_libraries_are_applied(tmp_path):
    layer = nn.Linear(64, 64)
    prune.l1_unstructured(layer, "weight", 0.75)
    torch.save(layer.state_dict(), tmp_path / "a.pt")
    convert_sparse(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert same(load_sparse(tmp_path / "a.safetensors"), {"bias": layer.bias, "weight": layer.weight})
    with pytest.raises(ExportError, match="must be finalized"):
        SparseExport(tmp_path / "b.safetensors").save(layer)


def test_the_command_line_exports_it_by_its_ending(tmp_path, capsys):
    torch.save(zeroed(nn.Linear(64, 64)).state_dict(), tmp_path / "a.pt")
    command = ["export", "torch.nn:Linear", "--args", "[64, 64]", "--checkpoint", str(tmp_path / "a.pt"), "-o"]
    assert main([*command, str(tmp_path / "a.safetensors")]) == 0
    assert "every bit" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(tmp_path / "a.safetensors"), "--at-least", "0.7"]) == 0
    assert (
        main(
            [
                "export",
                "torch.nn:Linear",
                "--args",
                "[64, 64]",
                "--checkpoint",
                str(tmp_path / "a.safetensors"),
                "-o",
                str(tmp_path / "b.safetensors"),
            ]
        )
        == 0
    )
    assert same(load_sparse(tmp_path / "b.safetensors"), torch.load(tmp_path / "a.pt"))


def test_inspect_shows_how_each_tensor_lies_in_the_file(tmp_path):
    model = zeroed(nn.Linear(64, 64))
    save_sparse({"a": model.weight, "b": model.weight}, tmp_path / "a.safetensors")
    found = inspect_file(tmp_path / "a.safetensors")
    assert found.kind == "sparse safetensors file"
    assert [tensor.stored for tensor in found.tensors] == ["bitmask", "with a"]
    assert [tensor.nbytes for tensor in found.tensors] == [512 + 4 * int(model.weight.count_nonzero()), 0]
    assert "bitmask" in str(found.records())


def test_a_model_in_half_precision_keeps_its_type_and_masks_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    model = zeroed(nn.Linear(64, 64)).bfloat16()
    masks = {"weight": model.weight != 0}
    result = SparseExport(path).save(torch.compile(model, backend="eager"), masks=masks)
    assert load_sparse(path)["weight"].dtype == torch.bfloat16
    assert result.layers[0].zeros == int((~masks["weight"]).sum())
    before = path.read_bytes()
    with pytest.raises(ExportError, match="not zero in the model"):
        SparseExport(path).save(model, masks={"weight": ~masks["weight"]})
    with pytest.raises(ExportError, match="must belong to a parameter"):
        SparseExport(path).save(model, masks={"wight": masks["weight"]})
    assert path.read_bytes() == before


def test_a_file_that_does_not_hold_the_bits_is_not_put_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "write_sparse", lambda state, place: save_sparse({name: -value for name, value in state.items()}, place)
    )
    with pytest.raises(ExportError, match="weight was read back from the file with other bits"):
        SparseExport(tmp_path / "a.safetensors").save(nn.Linear(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_what_would_fail_is_found_before_training(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_text("a text")
    with pytest.raises(ConfigError, match="a file that save_sparse wrote, but .* is something else"):
        SparseExport(path).check()
    with pytest.raises(ConfigError, match="something else"):
        fit(tmp_path, export=SparseExport(path))
    for wrong in ({"on_error": "stop"}, {"overwrite": "maybe"}):
        with pytest.raises(ConfigError, match="export"):
            SparseExport(path, **wrong)

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(ExportError, match="'_extra_state' is {'seen': 3}"):
        SparseExport(tmp_path / "b.safetensors").check(Extra(2, 2))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ExportError, match="pip install safetensors"):
        SparseExport(tmp_path / "b.safetensors").check()
    assert path.read_text() == "a text"
    assert Path(SparseExport("~/a.safetensors").path).is_absolute()


@pytest.mark.parametrize("style", ["old", "new"])
def test_rows_of_which_a_weight_norm_keeps_nothing_are_zeros_though_its_v_is_not(tmp_path, style):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old style is deprecated
            norm = nn.utils.weight_norm if style == "old" else nn.utils.parametrizations.weight_norm
            return nn.Sequential(norm(nn.Linear(16, 16)))

    torch.manual_seed(0)
    rule = {"scheduler": {"update_steps": [1]}, "target_sparsity": 0.75, "granularity": "per_channel"}
    pruner = MagnitudePruner(make(), {"global_config": rule}, masking="resident")
    pruner.attach_optimizers(torch.optim.SGD(pruner.prepare(inplace=True).parameters(), 0.1))
    pruner.step()
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    model = pruner.finalize(inplace=True)
    result = SparseExport(tmp_path / "net.safetensors").save(model, masks=masks)
    assert [layer.zeros for layer in result.layers] == [192]
    load_sparse(result.path, into=(fresh := make()))
    assert same(fresh.state_dict(), model.state_dict())
    (name,) = masks
    with pytest.raises(ExportError, match="prunes 64 values that are not zero in the model"):
        SparseExport(result.path).save(model, masks={name: torch.zeros_like(masks[name])})
