"""An ONNX model is executed, has the model's zeros, and gives its numbers in other sizes too; what is not, is refused."""

import sys

import pytest
import torch
from torch import nn

from lightning_prune import ONNXExport
from lightning_prune.errors import CheckpointError, ConfigError, ExportError
from lightning_prune.export.onnx import export as module
from lightning_prune.export.onnx.dynamic import row_of_shapes
from lightning_prune.export.onnx.zeros import _has_rows, _scaled
from lightning_prune.export.structures import take_apart

Dim = torch.export.Dim


def has_packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def zeroed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand_like(parameter) < 0.75] = 0
    return model


def run(path, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [
        torch.from_numpy(out)
        for out in session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x, scale):
        return {"y": self.head(self.norm(self.conv(x)).relu().mean((2, 3))) * scale["by"], "pooled": x.mean((2, 3))}


def test_a_network_is_executed_with_its_zeros_and_in_other_sizes(path, capsys):
    has_packages()
    model, inputs = zeroed(Net()), (torch.randn(2, 3, 8, 8), {"by": torch.ones(2, 1)})
    model.train()
    batch = Dim("batch", min=1, max=64)
    export = ONNXExport(
        path, inputs, dynamic_shapes={"x": {0: batch}, "scale": {"by": {0: batch}}}, output_names=["y", "p"]
    )
    export.check(model)
    result = export.save(model)
    assert capsys.readouterr() == ("", "")
    assert model.training
    assert result.format == "ONNX model"
    assert result.path == path
    assert result.package_bytes == result.dense_package_bytes == path.stat().st_size
    assert {layer.name: (layer.scaled, layer.stored) for layer in result.layers} == {
        "conv.weight": (True, "dense"),
        "head.weight": (False, "dense"),
    }
    assert result.near_error < 1e-5
    assert result.not_checked == ()
    assert any("2 pruned parameters found in the file, with all zeros" in line for line in result.checks)
    assert any("neither smaller nor faster" in line and "fewer channels" in line for line in result.notes)
    model.eval()
    other = torch.randn(5, 3, 8, 8), {"by": torch.randn(5, 1)}
    found = run(path, other[0], other[1]["by"])
    assert torch.allclose(found[0], model(*other)["y"], atol=1e-5)
    mended = ONNXExport(path, inputs, overwrite=False)
    with pytest.raises(ConfigError, match="overwrite=False"):
        mended.check(model)


def test_recurrent_tied_and_half_precision_weights_are_found(path):
    has_packages()

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm, self.head = (
                nn.Embedding(30, 16),
                nn.LSTM(16, 16, batch_first=True),
                nn.Linear(16, 30, bias=False),
            )
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.lstm(self.table(tokens))[0])

    result = ONNXExport(path, torch.randint(0, 30, (2, 5)), opset_version=18).save(zeroed(Words()).bfloat16())
    assert result.not_checked == ()
    assert {layer.name for layer in result.layers} == {
        "table.weight",
        "head.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    }


def test_a_part_of_a_model_is_exported_alone(path):
    has_packages()
    model = zeroed(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)))
    masks = {"0.weight": model[0].weight != 0, "1.weight": model[1].weight != 0}
    result = ONNXExport(path, torch.randn(2, 8), submodule="1", input_names=["a"], output_names=["b"]).save(
        model, masks=masks
    )
    assert [layer.name for layer in result.layers] == ["weight"]


def test_inspect_lists_a_constant_without_dimensions(path):
    has_packages()
    from onnx import TensorProto, helper, save

    from lightning_prune.analysis import inspect_file

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    constant = helper.make_tensor("c", TensorProto.FLOAT, [], [2.0])
    save(
        helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [x], [y], [constant])),
        path,
    )
    assert [(tensor.name, tensor.shape, tensor.zeros) for tensor in inspect_file(path, all_tensors=True).tensors] == [
        ("c", (), 0)
    ]


def test_inspect_reads_it_and_only_onnx_is_replaced(path):
    has_packages()
    import onnx

    from lightning_prune.analysis import inspect_file

    model = zeroed(nn.Linear(8, 4))
    ONNXExport(path, torch.randn(2, 8)).save(model)
    found = inspect_file(path)
    assert found.kind == "ONNX model"
    assert [(tensor.shape, tensor.zeros, tensor.dtype) for tensor in found.tensors] == [
        ((4, 8), int((model.weight == 0).sum()), "float32")
    ]
    assert found.others == 4
    ONNXExport(path, torch.randn(2, 8)).save(model)
    damaged = onnx.load(path)
    damaged.graph.initializer[0].dims[0] = 10**9
    damaged.graph.initializer[1].dims[0] = 10**9
    onnx.save(damaged, path.with_name("damaged.onnx"))
    with pytest.raises(CheckpointError, match="is damaged"):
        inspect_file(path.with_name("damaged.onnx"))
    for content in (b"", b"a text", b"\x08\x07"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="hold an ONNX model, but .* is something else"):
            ONNXExport(path).check()
        with pytest.raises(CheckpointError, match="must be an ONNX model"):
            inspect_file(path)
        assert path.read_bytes() == content


def test_a_network_that_cannot_be_captured_says_why_and_leaves_no_file(path, capsys):
    has_packages()

    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    # torch 2.8 falls back to a trace, of which the proof says what is wrong
    captured = r"No ONNX model could be made of Branches.*\n.*torch\.onnx\.export: \w+: .*data-dependent"
    with pytest.raises(ExportError, match=f"{captured}|capturing fixed a branch on the values of a tensor"):
        ONNXExport(path, torch.ones(2, 2)).save(Branches())
    assert capsys.readouterr() == ("", "")
    assert list(path.parent.iterdir()) == []


def test_other_numbers_and_other_zeros_are_refused(path, monkeypatch):
    has_packages()
    import onnx
    from onnx import numpy_helper

    model = zeroed(nn.Linear(8, 4))
    write, spoiled = ONNXExport.write, [0]

    def spoil(self, standalone, place):
        write(self, standalone, place)
        saved = onnx.load(place)
        for initializer in saved.graph.initializer:
            if len(initializer.dims) == spoiled[-1]:
                initializer.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(initializer) + 0.1, initializer.name)
                )
        onnx.save(saved, place)

    monkeypatch.setattr(ONNXExport, "write", spoil)
    for dims, message in ((1, "The model computes something else"), (2, "has other zeros or values than weight")):
        spoiled.append(dims)
        with pytest.raises(ExportError, match=message):
            ONNXExport(path, torch.randn(2, 8)).save(model)
    assert list(path.parent.iterdir()) == []


def test_what_cannot_work_is_found_before_training(path, monkeypatch):
    for options, message in (
        ({"opset_version": 9}, "at least 18"),
        ({"input_names": ["a", "a"]}, "must differ from each other, got 'a' more than once"),
        ({"output_names": "y"}, "output_names must be a list of texts, got 'y'"),
        ({"on_error": "stop"}, "on_error"),
        ({"overwrite": "maybe"}, "overwrite"),
    ):
        with pytest.raises(ConfigError, match=message):
            ONNXExport(path, **options)
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        ONNXExport(path.with_suffix(".pt"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r'pip install "lightning-prune\[onnx\]"'):
        ONNXExport(path).check()


def test_a_model_that_does_not_fit_is_refused_before_training(path, monkeypatch):
    has_packages()
    model = nn.Linear(8, 4)
    with pytest.raises(ConfigError, match="input_names must have one item for each of the 1 tensors"):
        ONNXExport(path, torch.ones(1, 8), input_names=["a", "b"]).check(model)
    with pytest.raises(ConfigError, match="example_input_array"):
        ONNXExport(path).check(model)
    with pytest.raises(ConfigError, match="must name arguments of the model, got 'inputs'. Did you mean 'input'"):
        ONNXExport(path, torch.ones(1, 8), dynamic_shapes={"inputs": {0: "batch"}}).check(model)
    with torch.device("meta"):
        large = nn.Linear(2**15, 2**14, dtype=torch.bfloat16)
    with pytest.raises(ExportError, match="holds less than 2 GiB, but the weights of Linear take 2,147,"):
        ONNXExport(path, torch.ones(1, 8)).check(large)


def test_dynamic_shapes_are_taken_as_torch_takes_them():
    class Nested(nn.Module):
        def forward(self, a, rest, *, mask=None):
            return a

    tensor = torch.ones(1)
    args, kwargs, _ = take_apart(Nested(), (tensor, [tensor, {"x": tensor}]))
    row = row_of_shapes(Nested(), args, kwargs, {"rest": [{0: "b"}, {"x": {1: "c"}}]})
    assert row == [None, {0: "b"}, {1: "c"}]
    assert row_of_shapes(Nested(), args, kwargs, ({0: "d"}, None)) == [{0: "d"}, None, None]
    assert row_of_shapes(Nested(), args, kwargs, None) == [None] * 3
    for wrong, message in (
        (({0: "d"},), "an entry for each of the 2 arguments"),
        ("batch", "an entry for each"),
        ({"rest": [{0: "b"}]}, r"no entry for rest\[1\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            row_of_shapes(Nested(), args, kwargs, wrong)


def test_weights_are_found_turned_scaled_and_in_other_rows():
    weight = zeroed(nn.Linear(6, 6)).weight.detach().numpy()
    keep = weight != 0
    factors = torch.rand(6, 1).numpy() + 0.5
    assert _scaled(weight, weight, keep) is False
    assert _scaled(weight.T, weight, keep) is False
    assert _scaled(weight * factors, weight, keep) is True
    assert _scaled(weight * factors.T, weight, keep) is True
    assert _scaled((weight * factors).T, weight, keep) is True
    assert _scaled(weight + 0.1 * keep, weight, keep) is None
    assert _scaled(weight + 0.1, weight, keep) is None
    assert _has_rows(weight[::-1][None], weight)
    assert _has_rows(weight.T.copy(), weight)
    assert not _has_rows(weight * 2, weight)
    assert not _has_rows(weight[:, 0], weight)


def test_the_module_says_that_zeros_bring_nothing():
    assert "neither smaller nor faster" in module.NO_GAIN


class Queries(nn.Module):
    """Learned queries through a layer of their own, which sees no input: a converter computes it once and for all."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 8))
        self.own, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.own(self.queries)) + x)


def test_a_layer_that_sees_no_input_is_said_to_be_folded_away(path):
    has_packages()
    model = zeroed(Queries())
    result = ONNXExport(path, torch.randn(4, 8)).save(model, masks={"own.weight": model.own.weight != 0})
    assert result.not_checked == ()
    assert [note for note in result.notes if note.startswith("own.weight meets only parameters and buffers, no input")]
    assert result.layers == ()


class Relative(nn.Module):
    """Attention with a bias by the distance of two tokens, which lies in memory by tokens first."""

    def __init__(self):
        super().__init__()
        self.projection, self.out = nn.Linear(24, 72), nn.Linear(24, 4)
        self.biases = nn.Parameter(torch.randn(9, 3))
        places = torch.arange(5)
        self.register_buffer("apart", places[:, None] - places + 4)

    def forward(self, tokens):
        batch, number, size = tokens.shape
        queries, keys, values = self.projection(tokens).reshape(batch, number, 3, 3, 8).permute(2, 0, 3, 1, 4)
        bias = self.biases[self.apart.view(-1)].view(5, 5, 3).permute(2, 0, 1)[None]
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.out(attended.transpose(1, 2).reshape(batch, number, size))


def test_attention_whose_result_lies_otherwise_in_memory_is_put_in_order(path):
    has_packages()
    model = zeroed(Relative())
    example = torch.randn(2, 5, 24)
    assert ONNXExport(path, example).save(model).near_error < 1e-5
    torch.testing.assert_close(run(path, example)[0], model(example))
