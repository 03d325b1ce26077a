import sys

import pytest
import torch
from torch import nn

from lightning_prune.cli.commands import main
from lightning_prune.slim import load_slim

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up = nn.Linear(6, width)
        self.middle = nn.Linear(width, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.middle(torch.relu(self.up(x)))))


class NetWithExample(Net):
    example_input_array = torch.zeros(2, 6)


class Doubting(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x[:, :3]
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A network with 12 of 16 and 6 of 12 channels dead, its weights in ``a.pt`` of the current folder."""
    (tmp_path / "slim_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "slim_nets", raising=False)
    from slim_nets import Net

    model = Net()
    with torch.no_grad():
        for layer, dead in ((model.up, 12), (model.middle, 6)):
            layer.weight[:dead] = 0
            layer.bias[:dead:2] = 0  # of the others a constant is left
    torch.save(model.state_dict(), "a.pt")
    yield model
    sys.modules.pop("slim_nets", None)


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


SLIM = ("slim", "slim_nets:Net", "--checkpoint", "a.pt", "--input-shape", "2,6", "-o")


@pytest.mark.parametrize("name", ["slim.pt", "slim.safetensors"])
def test_a_new_network_of_the_class_becomes_slim_by_the_file(net, capsys, name):
    from slim_nets import Net

    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    code, text, error = run(capsys, *SLIM, name)
    assert code == 0, error
    assert "12 -> 6" in text
    assert "verified: outputs equal" in text
    assert "pinned: 3 channels (an output of the model)" in text
    assert text.splitlines()[-1] == f"Wrote {name}"
    slim = load_slim(Net(), name)
    assert (slim.up.out_features, slim.middle.out_features, slim.head.out_features) == (4, 6, 3)
    x = torch.randn(5, 6)
    torch.testing.assert_close(slim(x), net(x))


def test_modules_named_in_keep_stay_whole(net, capsys):
    from slim_nets import Net

    code, text, error = run(capsys, *SLIM, "slim.pt", "--keep", "up", "--keep", "middle")
    assert code == 0, error
    assert "pinned: 28 channels (named in keep)" in text
    assert load_slim(Net(), "slim.pt").middle.weight.shape == (12, 16)
    code, _, error = run(capsys, *SLIM, "other.pt", "--keep", "midle")
    assert code == 1
    assert "has no 'midle'" in error


def test_the_models_own_example_is_taken_and_arguments_are_passed(net, capsys):
    torch.save(net.state_dict(), "b.pt")
    command = ("slim", "slim_nets:NetWithExample", "--args", '{"width": 16}', "--checkpoint", "b.pt", "-o", "slim.pt")
    assert run(capsys, *command)[0] == 0
    code, _, error = run(capsys, "slim", "slim_nets:Net", "--checkpoint", "b.pt", "-o", "other.pt")
    assert code == 1
    assert "Net has no example_input_array, so the shape of an input must be said. Write --input-shape" in error


def test_a_file_that_is_there_is_replaced_on_request_and_only_by_its_like(net, capsys, tmp_path):
    assert run(capsys, *SLIM, "slim.pt")[0] == 0
    code, _, error = run(capsys, *SLIM, "slim.pt")
    assert code == 1
    assert "slim.pt exists. Write to another path, or add --overwrite." in error
    assert run(capsys, *SLIM, "slim.pt", "--overwrite")[0] == 0
    before = (tmp_path / "a.pt").read_bytes()
    code, _, error = run(capsys, *SLIM, "a.pt", "--overwrite")
    assert code == 1
    assert "a.pt is something else" in error
    assert (tmp_path / "a.pt").read_bytes() == before
    code, _, error = run(capsys, *SLIM, "no/such/slim.pt")
    assert code == 1
    assert "there is no folder 'no/such'. Make it first." in error


def test_a_network_that_cannot_be_captured_is_an_error_of_one_line(net, capsys, tmp_path):
    arguments = list(SLIM)
    arguments[1] = "slim_nets:Doubting"
    code, text, error = run(capsys, *arguments, "slim.pt")
    assert (code, text) == (1, "")
    assert "Doubting cannot be captured by torch.export" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "slim.pt").exists()


def test_weights_of_another_size_are_named(net, capsys):
    torch.save(nn.Linear(3, 2).state_dict(), "linear.pt")
    code, _, error = run(capsys, "slim", "slim_nets:Net", "--checkpoint", "linear.pt", "-o", "x.pt")
    assert code == 1
    assert "linear.pt does not fit Net" in error
