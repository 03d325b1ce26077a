"""A slim network as a file: read back into a freshly made one to the bit, and refused where it is not right."""

import json
import pickle

import pytest
import torch
from dead_channels import answers, kill, stir
from torch import nn

from lightning_prune import SlimError
from lightning_prune.slim import load_slim, slim


def make(width=6, bias=False):
    return nn.Sequential(
        nn.Conv2d(2, width, 3),
        nn.InstanceNorm2d(width),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, 4, 1, bias=bias),
        nn.Flatten(),
        nn.Linear(36, 2),
    )


INPUTS = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result():
    net = stir(make())
    kill(net[0], [1, 4])
    kill(net[3], [2])
    return slim(net, INPUTS)


@pytest.fixture(params=["slim.safetensors", "slim.pt"])
def file(result, tmp_path, request):
    if request.param.endswith("safetensors"):
        pytest.importorskip("safetensors")
    return result.save(tmp_path / request.param)


def test_a_freshly_made_network_becomes_the_slim_one_to_the_bit(result, file):
    fresh = make().eval()
    assert load_slim(fresh, file) is fresh
    assert fresh[3].bias.shape == (3,)
    assert (fresh[1].num_features, fresh[2].num_features, fresh[3].in_channels, fresh[5].in_features) == (4, 4, 4, 27)
    assert str(fresh) == str(result.model)
    state = result.model.state_dict()
    assert fresh.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in fresh.state_dict().items())
    assert torch.equal(*answers(fresh, INPUTS), *answers(result.model, INPUTS))


def test_others_may_read_it_as_any_new_file(file):
    file.with_name("usual").touch()
    assert file.stat().st_mode == file.with_name("usual").stat().st_mode


def test_a_torch_file_holds_plain_tensors_and_text_alone(result, tmp_path):
    content = torch.load(result.save(tmp_path / "slim.pt"), weights_only=True)
    assert json.loads(content["recipe"])["new_biases"] == {"3.bias": "3"}


def test_what_is_frozen_stays_frozen_when_it_is_loaded(file):
    fresh = load_slim(make().requires_grad_(False), file)
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def _unchanged(model, file, match):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = str(model)
    with pytest.raises(SlimError, match=match):
        load_slim(model, file)
    assert str(model) == text
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_of_other_sizes_or_names_is_refused_and_not_changed(file, result):
    _unchanged(
        make(width=7), file, r"its 0.weight has shape \(7, 2, 3, 3\), that of the whole network had \(6, 2, 3, 3\)"
    )
    _unchanged(make(bias=True), file, "the file has no 3.bias")
    _unchanged(nn.Linear(3, 2), file, "it has no 0.bias, 0.weight")
    _unchanged(load_slim(make(), file), file, "the file has no 3.bias")


def test_a_second_save_replaces_a_recipe_and_nothing_else(result, file, tmp_path):
    assert result.save(file) == file
    other = tmp_path / "notes.pt"
    other.write_text("mine")
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2)}, weights)
    for place in (other, folder, weights):
        with pytest.raises(SlimError, match="path must be free or hold a recipe"):
            result.save(place)
    assert other.read_text() == "mine"
    assert torch.load(weights)["weight"].sum() == 2


def test_a_path_that_cannot_be_written_is_named(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SlimError, match="could not be written"):
        result.save(tmp_path / "file" / "slim.pt")


def test_a_full_disk_is_named_and_leaves_nothing(result, tmp_path, monkeypatch):
    def fill(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")  # what torch says of it

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(SlimError, match=r"could not be written to .*slim.pt: PytorchStreamWriter failed"):
        result.save(tmp_path / "slim.pt")
    assert not list(tmp_path.iterdir())


def _change(content, change):
    recipe = json.loads(content["recipe"])
    change(recipe, content["tensors"])
    return {**content, "recipe": json.dumps(recipe)}


def _set(name, tensor):
    return lambda recipe, tensors: tensors.__setitem__(name, tensor)


def _put(key, value):
    return lambda recipe, tensors: recipe.__setitem__(key, value)


DAMAGES = {
    "indices beyond the axis": _set("kept/0/0.weight", torch.tensor([0, 2, 3, 9])),
    "negative indices": _set("kept/0/0.weight", torch.tensor([-1, 2, 3, 5])),
    "indices twice": _set("kept/0/0.weight", torch.tensor([0, 2, 2, 5])),
    "indices as floats": _set("kept/0/0.weight", torch.tensor([0.0, 2, 3, 5])),
    "a table of indices": _set("kept/0/0.weight", torch.tensor([[0, 2, 3, 5]])),
    "no indices": _set("kept/0/0.weight", torch.empty(0).long()),
    "indices on no device": _set("kept/0/0.weight", torch.empty(4, dtype=torch.long, device="meta")),
    "sparse indices": _set("kept/0/0.weight", torch.tensor([0, 2, 3, 5]).to_sparse()),
    "other sizes": _set("state/0.weight", torch.ones(5, 2, 3, 3)),
    "a sparse weight": _set("state/0.weight", torch.ones(4, 2, 3, 3).to_sparse()),
    "a weight without values": _set("state/0.weight", torch.empty(4, 2, 3, 3, device="meta")),
    "whole numbers": _set("state/0.weight", torch.ones(4, 2, 3, 3, dtype=torch.long)),
    "complex numbers": _set("state/0.weight", torch.ones(4, 2, 3, 3, dtype=torch.complex64)),
    "a tensor too many": _set("state/extra", torch.ones(2)),
    "no tensor": _set("state/0.weight", None),
    "a missing tensor": lambda recipe, tensors: tensors.pop("state/0.weight"),
    "missing indices": lambda recipe, tensors: tensors.pop("kept/0/0.weight"),
    "an axis that is not there": _put("kept", {"0.weight": [7]}),
    "a bias of nothing": _put("new_biases", {"3.bias": "9"}),
    "a bias of another layer": _put("new_biases", {"1.bias": "3"}),
    "a bias of a layer that has one": _put("new_biases", {"0.bias": "0"}),
    "features of no norm": _put("features", {"3": 4}),
    "features below one": _put("features", {"1": 0}),
    "features that are not left": _put("features", {"2": 5}),
    "another version": _put("version", 99),
    "no kept": lambda recipe, tensors: recipe.pop("kept"),
    "a list for a table": _put("kept", [1]),
    "words for sizes": _put("shapes", {"0.weight": "abc"}),
    "more features than there were": _put("features", {"1": 7}),
    "endless sizes": _put("features", {"1": 1e999}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_changes_nothing(result, tmp_path, damage):
    content = torch.load(result.save(tmp_path / "slim.pt"))
    torch.save(_change(content, DAMAGES[damage]), tmp_path / "slim.pt")
    _unchanged(make(), tmp_path / "slim.pt", "slim.pt")


class _Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_what_is_no_recipe_is_refused_and_no_code_in_it_runs(tmp_path):
    pytest.importorskip("safetensors")
    for name in ("none.pt", "none.safetensors"):
        _unchanged(make(), tmp_path / name, "does not exist")
    for content in ({"weight": torch.ones(2)}, [1, 2], "text", {"format": "lightning_prune.slim"}, _Code()):
        torch.save(content, tmp_path / "slim.pt")
        _unchanged(make(), tmp_path / "slim.pt", "cannot be read as a recipe")
    torch.save({"state_dict": make().state_dict()}, tmp_path / "last.ckpt")
    _unchanged(make(), tmp_path / "last.ckpt", "it is no recipe of a slim network")
    for data in (b"", b"hello", pickle.dumps(_Code()), b"\xff" * 64):
        for name in ("slim.pt", "slim.safetensors"):
            (tmp_path / name).write_bytes(data)
            _unchanged(make(), tmp_path / name, "cannot be read as a recipe")


def test_a_recipe_keeps_its_dtype_and_goes_to_the_device_of_the_model(result, tmp_path):
    file = result.save(tmp_path / "slim.pt")
    assert {parameter.dtype for parameter in load_slim(make().double(), file).parameters()} == {torch.float32}


def test_the_files_of_a_tied_network_load_tied(tmp_path):
    pytest.importorskip("safetensors")

    def tied():
        net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False))
        net[2].weight = net[0].weight
        return net

    net = tied()
    net[0].weight.data[:, 1] = 0.0
    kill(net[1], [1])
    words = torch.randint(0, 9, (2, 3))
    result = slim(net, words)
    for name in ("slim.pt", "slim.safetensors"):
        fresh = load_slim(tied(), result.save(tmp_path / name))
        assert fresh[2].weight is fresh[0].weight
        assert torch.equal(*answers(fresh, words), *answers(result.model, words))
