"""Each kernel against torch: through an export where a converter makes the operation, else by hand."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil import kernels as mil_kernels
from lightning_prune.export.coreml.mil import recurrent as mil_recurrent
from lightning_prune.export.coreml.mil import shapes as mil_shapes
from lightning_prune.export.coreml.mil import windows as mil_windows
from lightning_prune.export.coreml.mil.kernels import KERNELS
from lightning_prune.export.coreml.mil.program import Block, Operation, Package, read_package, walk
from lightning_prune.export.coreml.mil.run import run
from lightning_prune.export.coreml.mil.shapes import CannotRun

SEEDED = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 6, 8, generator=SEEDED)
POSITIVE = torch.rand(2, 4, 6, 8, generator=SEEDED) + 0.5
INDEX = torch.randint(0, 4, (2, 4, 6, 8), generator=SEEDED)
CONV, UP = torch.randn(2, 4, 3, 3, generator=SEEDED), torch.randn(4, 2, 3, 3, generator=SEEDED)

# What a converter makes of torch functions; ``x`` is any, ``p`` positive, ``i`` integer.
FUNCTIONS = {
    "arithmetic": lambda x, p, i: (x + p, x - p, x * p, x / p, x // p, p**0.5, x % p, -x, x.abs(), x.sign()),
    "functions": lambda x, p, i: (
        *(x.sin(), x.cos(), x.tan(), x.tanh(), x.atan(), x.tanh().asin(), x.tanh().acos(), x.exp(), x.erf()),
        *(p.log(), p.sqrt(), p.rsqrt(), x.square(), x.floor(), x.ceil(), x.round(), torch.clamp(x, -0.5, 0.5)),
    ),
    "comparisons": lambda x, p, i: (
        *(x > p, x < p, x >= p, x <= p, i == i.flip(1), x != p, torch.where(x > 0, x, p), torch.maximum(x, p)),
        *(torch.minimum(x, p), torch.logical_and(x > 0, p > 1), torch.logical_or(x > 0, p > 1), ~(x > 0)),
    ),
    "activations": lambda x, p, i: (
        *(F.relu(x), F.relu6(x), F.leaky_relu(x, 0.2), F.elu(x), F.gelu(x), F.gelu(x, approximate="tanh"), F.silu(x)),
        *(F.softplus(x), F.softsign(x), F.hardswish(x), F.hardsigmoid(x), F.hardtanh(x), F.mish(x), F.selu(x)),
        *(x.sigmoid(), F.softmax(x, 1), F.log_softmax(x, -1)),
    ),
    "pooling": lambda x, p, i: (
        *(F.max_pool2d(x, 2, 2), F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
        *(F.avg_pool2d(x, 2, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
        *(F.avg_pool2d(x, 3, 2, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
        *(F.adaptive_avg_pool2d(x, (3, 4)), F.adaptive_max_pool2d(x, 1)),
    ),
    "norms": lambda x, p, i: (
        *(F.layer_norm(x, [8]), F.layer_norm(x, [6, 8]), F.group_norm(x, 2), F.instance_norm(x)),
        F.normalize(x, dim=1),
    ),
    "shapes": lambda x, p, i: (
        *(x.reshape(2, -1), x.permute(0, 2, 3, 1), x.flatten(1), x.unsqueeze(1), x[:, :1].squeeze(1)),
        *(x.repeat(1, 2, 1, 1), x[:, :1].expand(2, 3, 6, 8), torch.cat([x, p], 1), torch.stack([x, p], 1)),
        *(*x.chunk(2, 1), *x.split([1, 3], 1), x.unbind(1)[2], F.unfold(x, 2)),
    ),
    "slices": lambda x, p, i: (
        *(x[:, 1:3], x[..., ::2], x[:, -1], x[:, :, 1:-1, 2:], x[0], x.narrow(2, 1, 3), x.flip(2), x.roll(1, 2)),
        *(torch.tril(x), torch.triu(x, 1), x),
    ),
    "padding": lambda x, p, i: (
        *(F.pad(x, (1, 2)), F.pad(x, (1, 2, 3, 4), value=2.0), F.pad(x, (1, 2, 2, 1), mode="reflect")),
        F.pad(x, (1, 2, 2, 1), mode="replicate"),
    ),
    "reductions": lambda x, p, i: (
        *(x.sum(1), x.mean((2, 3)), x.amax(1), x.amin((1, 2)), x.max(), x.sum(), x.norm(dim=1), x.var(1)),
        *(x.std((2, 3)), torch.logsumexp(x, 1), x.argmax(1), x.argmin(2), x.cumsum(1), x.max(1)[0]),
    ),
    "picking": lambda x, p, i: (
        *(torch.gather(x, 1, i), x.index_select(1, i[0, 0, 0, :3]), x[:, i[0, 0, 0, :3]], torch.sort(x, 1)[0]),
        *(torch.topk(x, 3).values, torch.topk(x, 3).indices, x.argsort(-1), F.one_hot(i, 5).float()),
        *(x.masked_fill(x > 0, 0.0), x.scatter(1, i, p), x.scatter_add(1, i, p)),
    ),
    "images": lambda x, p, i: (
        *(F.interpolate(x, scale_factor=2), F.interpolate(x, scale_factor=2, mode="bilinear")),
        *(F.interpolate(x, size=(9, 5), mode="bilinear"), F.interpolate(x, size=(9, 5), mode="nearest")),
        *(F.interpolate(x, size=(9, 5), mode="bilinear", align_corners=True), F.pixel_shuffle(x, 2)),
        F.pixel_unshuffle(x, 2),
    ),
    "products": lambda x, p, i: (
        *(x @ p.transpose(2, 3), torch.einsum("abcd,abed->abce", x, p), torch.bmm(x[0], p[0].transpose(1, 2))),
        *(F.scaled_dot_product_attention(x, p, p), F.scaled_dot_product_attention(x, p, p, is_causal=True)),
        F.scaled_dot_product_attention(x, p, p, attn_mask=torch.ones(6, 6).tril().bool()),
    ),
    "convolutions": lambda x, p, i: (
        *(F.conv2d(x, CONV, torch.ones(2), padding=pad) for pad in (0, 1, "same")),
        *(F.conv2d(x, CONV, torch.ones(2), dilation=2), F.conv2d(x, CONV[:, :2], torch.ones(2), groups=2)),
        F.conv_transpose2d(x, UP, torch.ones(2), stride=2, padding=1),
        F.conv_transpose2d(x, UP, torch.ones(2), stride=2, padding=1, output_padding=1),
        F.conv_transpose2d(x, UP, torch.ones(4), groups=2, dilation=2),
    ),
    "made tensors": lambda x, p, i: (
        *(torch.zeros_like(x) + x, torch.full((2, 3), 2.0) + x[0, 0, 0, 0], torch.arange(8) + x, i.float()),
        *(x.to(torch.int32), torch.meshgrid(x[0, 0, 0], p[0, 0, :, 0], indexing="ij")[0]),
    ),
}


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, p, i):
        return self.function(x, p, i)


CASES = [(name, "export", "iOS16") for name in FUNCTIONS]
CASES += [(name, "trace", "iOS16") for name in ("pooling", "shapes", "slices", "products")]
CASES += [(name, "export", "iOS18") for name in ("picking", "images", "products")]


@pytest.mark.parametrize(("name", "frontend", "target"), CASES)
def test_what_a_converter_makes_of_torch_functions_runs_to_the_same_results(name, frontend, target, tmp_path):
    pytest.importorskip("coremltools")
    path = tmp_path / "net.mlpackage"
    export = CoreMLExport(path, (X, POSITIVE, INDEX), frontend=frontend, minimum_deployment_target=target)
    result = export.save(Calls(FUNCTIONS[name]))
    assert result.not_checked == ()
    assert result.max_error < 1e-3
    assert {op.type for op in walk(read_package(path).main)} <= KERNELS.keys()


def t(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("pad_type", "before"), [("same", 0), ("same_lower", 1)])
def test_same_padding_puts_the_odd_element_where_its_name_says(pad_type, before, size):
    x, weight = torch.randn(1, 1, size), torch.randn(1, 1, 4)
    total = max((math.ceil(size / 2) - 1) * 2 + 4 - size, 0)
    left = total // 2 + (before if total % 2 else 0)
    expected = F.conv1d(F.pad(x, (left, total - left)), weight, stride=2)
    assert torch.equal(mil_windows.conv(x, weight, strides=t(2), pad_type=pad_type), expected)


def test_a_transposed_convolution_is_cut_to_the_asked_shape():
    x, weight = torch.randn(1, 2, 5), torch.randn(2, 3, 3)
    expected = F.conv_transpose1d(x, weight, stride=2, padding=1, output_padding=1)
    arguments = {"strides": t(2), "pad_type": "custom", "pad": t(1, 1), "output_shape": t(1, 3, 10)}
    torch.testing.assert_close(mil_windows.conv_transpose(x, weight, **arguments), expected)
    same = mil_windows.conv_transpose(x, weight, strides=t(2), pad_type="same")
    assert same.shape == (1, 3, 10)
    beyond = mil_windows.conv_transpose(x, weight, strides=t(2), output_shape=t(1, 3, 12))
    torch.testing.assert_close(beyond, F.pad(F.conv_transpose1d(x, weight, stride=2), (0, 1)))


def test_l2_pooling_is_the_root_of_the_sum_of_squares():
    x = torch.randn(1, 2, 6)
    expected = F.lp_pool1d(x.abs(), 2, 3, 2)
    torch.testing.assert_close(mil_windows.l2_pool(x, t(3), "valid", strides=t(2)), expected)


@pytest.mark.parametrize(
    ("mode", "given", "asked", "expected"),
    [  # the examples of Core ML's documentation
        ("UNALIGN_CORNERS", 2, 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 2, 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", 2, 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 2, 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("DEFAULT", 2, 6, [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("ALIGN_CORNERS", 3, 1, [1.0]),
    ],
)
def test_grids_of_bilinear_sampling(mode, given, asked, expected):
    assert mil_windows.grid(given, asked, mode).tolist() == pytest.approx(expected)


def test_resize_takes_sizes_from_the_input_where_the_shape_has_zeros():
    x = torch.randn(1, 2, 4, 6)
    done = mil_windows.resize(x, t(1, 8, 0), t(2), "NEAREST_NEIGHBOR")
    assert torch.equal(done, F.interpolate(x, size=(8, 6), mode="nearest"))
    smooth = mil_windows.resize(x, t(8, 3), t(2), "LINEAR", "UNALIGN_CORNERS")
    torch.testing.assert_close(smooth, F.interpolate(x, size=(8, 3), mode="bilinear"))
    with pytest.raises(CannotRun, match="resize of other than two dimensions"):
        mil_windows.resize(x, t(2, 8, 6), t(3))
    assert torch.equal(mil_windows.crop(x, t(1, 0), t(2, 1)), x[..., 1:, 2:-1])


def test_reshape_reads_zeros_from_the_right():
    x = torch.arange(100).reshape(2, 50)
    assert mil_shapes.reshape(x, t(1, 0, -1, 0)).shape == (1, 1, 2, 50)
    assert mil_shapes.reshape_like(x, [torch.zeros(5, 20, 3)], [0], [2], [torch.tensor(False)]).shape == (5, 20)


def test_slices_go_backwards_and_drop_dimensions():
    x = torch.arange(24).reshape(2, 3, 4)
    masks = {"begin_mask": [False, True, False], "end_mask": [False, True, True]}
    backwards = mil_shapes.slice_by_index(x, t(0, 2, 3), t(1, 0, 0), t(1, -1, -2), **masks)
    assert torch.equal(backwards, x[0:1].flip(1)[:, :, [3, 1]])
    row = mil_shapes.slice_by_index(x, t(-1, 0, 0), t(0, 3, 4), squeeze_mask=[True, False, False])
    assert torch.equal(row, x[-1])
    updated = mil_shapes.slice_update(x, torch.zeros(1, 3, 2, dtype=torch.long), t(1, 0, 1), t(2, 3, 3))
    assert int((updated != x).sum()) == 6
    assert torch.equal(mil_shapes.slice_by_size(x, t(0, 1, 2), t(1, 2, -1)), x[:1, 1:, 2:])


def test_windows_slide_along_a_dimension():
    x = torch.arange(10).reshape(1, 5, 2)
    windows = mil_shapes.sliding_windows(x, t(1)[0], 3, 2)
    assert torch.equal(windows, torch.stack([x[:, 0:3], x[:, 2:5]], 1))


def test_depth_to_space_takes_the_block_before_the_channels():
    x = torch.randn(1, 8, 2, 3)
    moved = mil_shapes.depth_to_space(x, 2)
    expected = F.pixel_shuffle(x.reshape(1, 4, 2, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3), 2)
    assert torch.equal(moved, expected)
    assert torch.equal(mil_shapes.space_to_depth(moved, 2), x)


def test_gathering_in_batches_and_with_negative_indices():
    x = torch.randn(2, 3, 5)
    index = torch.tensor([[0, 2], [1, -1]])
    expected = torch.stack([x[0][index[0]], x[1][index[1]]])
    assert torch.equal(mil_shapes.gather(x, index, 1, 1), expected)
    assert torch.equal(mil_shapes.gather_nd(x, torch.tensor([[0, 1], [-1, 2]])), torch.stack([x[0, 1], x[1, 2]]))
    with pytest.raises(CannotRun, match="batch_dims"):
        mil_shapes.gather_nd(x, index, 1)


@pytest.mark.parametrize(("mode", "expected"), [("add", [3, 1, 1]), ("update", [2, 0, 1]), ("max", [2, 1, 1])])
def test_scattering_by_mode(mode, expected):
    data, index = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0, 1])
    updates = torch.tensor([2.0, 0.0])
    assert mil_shapes.scatter_along_axis(data, index, updates, 0, mode).tolist() == expected
    assert mil_shapes.scatter(data, index, updates, 0, mode).tolist() == expected
    if mode != "max":
        assert mil_shapes.scatter_nd(data, index[:, None], updates, mode).tolist() == expected
    else:
        with pytest.raises(CannotRun, match="scatter_nd with mode max"):
            mil_shapes.scatter_nd(data, index[:, None], updates, mode)
    with pytest.raises(CannotRun, match="scatter with mode div"):
        mil_shapes.scatter(data, index, updates, 0, "div")
    with pytest.raises(CannotRun, match="more than one dimension"):
        mil_shapes.scatter(torch.ones(2, 2), torch.ones(2, 2).long(), torch.ones(2, 2))


def test_small_kernels_by_hand():
    x = torch.tensor([[-2.0, 0.0, 3.0]])
    alpha, beta = torch.tensor(0.5), torch.tensor(2.0)
    expected = {
        "clamped_relu": [-1.0, 0.0, 2.0],
        "linear_activation": [1.0, 2.0, 3.5],
        "scaled_tanh": [0.5 * math.tanh(-4), 0.0, 0.5 * math.tanh(6)],
        "sigmoid_hard": [1.0, 1.0, 1.0],
    }
    for name, values in expected.items():
        assert KERNELS[name](x, alpha, beta).reshape(-1).tolist() == pytest.approx(values), name
    assert KERNELS["thresholded_relu"](x, alpha).tolist() == [[0.0, 0.0, 3.0]]
    assert KERNELS["threshold"](x, alpha).tolist() == [[0.5, 0.5, 3.0]]
    assert KERNELS["inverse"](torch.tensor([2.0]), 0.0).tolist() == [0.5]
    assert KERNELS["flatten2d"](torch.ones(2, 3, 4), 2).shape == (6, 4)
    assert KERNELS["reduce_l1_norm"](x, [1]).tolist() == [5.0]
    assert KERNELS["reduce_log_sum"](x.abs(), [1]).tolist() == pytest.approx([math.log(5)])
    assert KERNELS["reduce_prod"](torch.full((2, 3), 2.0), [-1, 0], True).tolist() == [[64.0]]
    assert KERNELS["cumsum"](torch.tensor([1, 2, 3]), 0, True, True).tolist() == [5, 3, 0]
    assert KERNELS["real_div"](torch.tensor([-7, 7]), torch.tensor([2, 2])).tolist() == [-3, 3]
    assert KERNELS["range_1d"](t(9)[0], t(1)[0], t(4)[0]).tolist() == [1, 5]
    assert KERNELS["gelu"](x, "SIGMOID_APPROXIMATION").tolist() == (x * (1.702 * x).sigmoid()).tolist()
    assert KERNELS["l2_norm"](torch.full((1, 2, 2, 1), 3.0), 0.0).reshape(-1).tolist() == [0.5] * 4
    torch.testing.assert_close(
        KERNELS["local_response_norm"](X, 3, 1e-2, 0.5, 2.0), F.local_response_norm(X, 3, 1e-2, 0.5, 2.0)
    )
    act = nn.PReLU(4)
    torch.testing.assert_close(KERNELS["prelu"](X, act.weight), act(X))
    scale = torch.full((4,), 0.5)
    torch.testing.assert_close(KERNELS["softplus_parametric"](X, scale, 2 * scale), 0.5 * F.softplus(X))
    norm = nn.BatchNorm2d(4).eval()
    torch.testing.assert_close(KERNELS["batch_norm"](X, norm.running_mean, norm.running_var), norm(X))
    pair = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])]
    assert mil_shapes.concat(pair, 0, torch.tensor(True)).tolist() == [[1, 2], [5, 6], [3, 4], [7, 8]]
    assert mil_shapes.concat(pair, torch.tensor(-1), torch.tensor(True)).tolist() == [[1, 5, 2, 6], [3, 7, 4, 8]]
    assert mil_shapes.concat([torch.tensor(2), torch.tensor(3)], 0).tolist() == [2, 3]


def test_nearest_neighbours_are_found_by_factors_that_give_whole_sizes():
    x = torch.arange(4.0).reshape(1, 1, 1, 4)
    assert mil_windows.upsample_nearest_neighbor(x, 1, 1.5).flatten().tolist() == [0, 0, 1, 2, 2, 3]
    with pytest.raises(CannotRun, match=r"a factor that makes 6\.80 of 4"):
        mil_windows.upsample_nearest_neighbor(x, 1, 1.7)


def test_lists_grow_and_are_never_changed_in_place():
    start = KERNELS["make_list"](init_length=1)
    written = KERNELS["list_write"](start, t(1)[0], torch.ones(2))
    scattered = KERNELS["list_scatter"](written, t(0), torch.zeros(1, 2))
    assert start == [None]
    assert int(KERNELS["list_length"](scattered)) == 2
    assert KERNELS["list_gather"](scattered, t(1, 0)).tolist() == [[1, 1], [0, 0]]
    assert KERNELS["list_read"](scattered, 0).tolist() == [0, 0]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_in_every_direction(direction):
    layer = nn.LSTM(3, 4, bidirectional=direction == "bidirectional")
    x = torch.randn(5, 2, 3)

    def ifog(name):
        i, f, g, o = getattr(layer, name).detach().chunk(4)
        return torch.cat([i, f, o, g])

    weights = [ifog("weight_ih_l0"), ifog("weight_hh_l0"), ifog("bias_ih_l0") + ifog("bias_hh_l0")]
    arguments = dict(zip(("weight_ih", "weight_hh", "bias"), weights, strict=True))
    if direction == "bidirectional":
        arguments["weight_ih_back"] = ifog("weight_ih_l0_reverse")
        arguments["weight_hh_back"] = ifog("weight_hh_l0_reverse")
        arguments["bias_back"] = ifog("bias_ih_l0_reverse") + ifog("bias_hh_l0_reverse")
    zero = torch.zeros(2, 8 if direction == "bidirectional" else 4)
    expected, (h, c) = layer(x.flip(0) if direction == "reverse" else x)
    found = mil_recurrent.lstm(x, zero, zero, **arguments, direction=direction, output_sequence=True)
    torch.testing.assert_close(found[0].flip(0) if direction == "reverse" else found[0], expected)
    torch.testing.assert_close(found[1], torch.cat(list(h), -1))
    torch.testing.assert_close(found[2], torch.cat(list(c), -1))
    last = mil_recurrent.lstm(x, zero, zero, **arguments, direction=direction)
    assert torch.equal(last[0][0], found[1])
    with pytest.raises(CannotRun, match="peephole or clip"):
        mil_recurrent.lstm(x, zero, zero, **arguments, clip=torch.tensor(1.0))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_and_rnn_in_both_directions(direction):
    x, zero = torch.randn(5, 2, 3), torch.zeros(2, 4)
    given = x.flip(0) if direction == "reverse" else x
    layer = nn.GRU(3, 4, bias=False)
    r, z, n = layer.weight_ih_l0.detach().chunk(3)
    hr, hz, hn = layer.weight_hh_l0.detach().chunk(3)
    options = {"direction": direction, "output_sequence": True}
    steps, h = mil_recurrent.gru(x, zero, torch.cat([r, n, z]), torch.cat([hr, hn, hz]), **options)
    expected, last = layer(given)
    torch.testing.assert_close(steps.flip(0) if direction == "reverse" else steps, expected)
    torch.testing.assert_close(h, last[0])
    layer = nn.RNN(3, 4, bias=False)
    steps, h = mil_recurrent.rnn(x, zero, layer.weight_ih_l0, layer.weight_hh_l0, **options)
    expected, last = layer(given)
    torch.testing.assert_close(steps.flip(0) if direction == "reverse" else steps, expected)
    torch.testing.assert_close(h, last[0])
    with pytest.raises(CannotRun, match="reset_after"):
        mil_recurrent.gru(x, zero, r, hr, reset_after=torch.tensor(True))


def package(*operations, outputs, inputs=(("x", "fp32", (2,)),)):
    """A package that was never on disk."""
    return Package(None, Block(inputs, operations, outputs), {}, {}, 7)


def op(kind, output, shape=(2,), dtype="fp32", blocks=(), **inputs):
    names = {key: (value,) if not isinstance(value, tuple) else value for key, value in inputs.items()}
    return Operation(kind, names, ((output, dtype, shape),), blocks=blocks)


def test_what_cannot_be_run_is_named_and_the_rest_is_run():
    found = run(
        package(op("warp", "a", x="x"), op("relu", "b", x="a"), op("relu", "c", x="x"), outputs=("b", "c")),
        {"x": torch.tensor([-1.0, 1.0])},
    )
    assert found.skipped == ["op 'warp'"]
    assert list(found.outputs) == ["c"]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (op("relu", "a", shape=(3,), x="x"), r"op 'relu' \(named 'a': computed shape \(2,\), declared \(3,\)\)"),
        (op("relu", "a", y="x"), r"op 'relu' \(named 'a': TypeError"),
        (
            op("scatter", "a", data="x", indices="x", updates="x", mode=np.array("div", object)),
            r"op 'scatter' \(scatter with",
        ),
        (op("topk", "a", shape=(1,), x="x"), r"op 'topk' \(named 'a': 2 results for 1 outputs\)"),
    ],
)
def test_an_operation_that_fails_or_gives_another_shape_counts_as_not_run(operation, reason):
    found = run(package(operation, outputs=("a",)), {"x": torch.ones(2)})
    assert found.outputs == {}
    assert len(found.skipped) == 1
    assert re.match(reason, found.skipped[0])


def test_results_too_large_for_float16_are_named_but_not_infinities_put_in_on_purpose():
    big = package(op("square", "a", dtype="fp16", x="x"), outputs=("a",))
    assert run(big, {"x": torch.tensor([300.0, 1.0])}).overflowed == ["square 'a'"]
    assert run(big, {"x": torch.tensor([math.inf, 1.0])}).overflowed == []


def test_branches_and_loops_are_followed():
    yes = Block((), (op("add", "more", x="x", y="x"),), ("more",))
    no = Block((), (op("relu", "same", x="x"),), ("same",))
    branch = package(
        op("greater", "p", (), "bool", x="first", y=np.float32(0.0)),
        op("cond", "out", pred="p", blocks=(yes, no)),
        outputs=("out",),
    )
    for first, expected in ((1.0, [-2.0, 4.0]), (-1.0, [0.0, 2.0])):
        inputs = {"x": torch.tensor([-1.0, 2.0]), "first": torch.tensor(first)}
        assert run(branch, inputs).outputs["out"].tolist() == expected
    condition = Block(
        (("v", "fp32", (2,)),),
        (op("reduce_max", "m", (), x="v"), op("less", "go", (), x="m", y=np.float32(9.0))),
        ("go",),
    )
    body = Block((("v", "fp32", (2,)),), (op("add", "w", x="v", y="v"),), ("w",))
    loop = package(op("while_loop", "out", loop_vars="x", blocks=(condition, body)), outputs=("out",))
    assert run(loop, {"x": torch.tensor([1.0, 3.0])}).outputs["out"].tolist() == [4.0, 12.0]
    lost = package(
        op("warp", "a", x="x"), op("while_loop", "out", loop_vars="a", blocks=(condition, body)), outputs=("out",)
    )
    assert run(lost, {"x": torch.ones(2)}).skipped == ["op 'warp'"]


def test_every_kernel_is_in_the_table_once():
    assert list(KERNELS) == sorted(KERNELS)
    assert {("concat", "values"), ("stack", "values")} <= mil_kernels.TUPLE_INPUTS
