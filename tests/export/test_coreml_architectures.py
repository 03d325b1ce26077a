"""Networks of real structure, exported, and read back by a second reader that knows nothing of the first."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coreml_nets import Attention, Audio, MobileNet, ResNet, Tagger, TwoInputs, UNet, ViT, prune, settle
from torch import Tensor, nn

from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil.program import read_package, walk

pytest.importorskip("coremltools")

NETS = {
    "resnet": (ResNet, torch.randn(2, 3, 64, 64), 9),
    "mobilenet": (MobileNet, torch.randn(1, 3, 32, 32), 10),
    "vit": (ViT, torch.randn(2, 3, 32, 32), 0),
    "attention": (Attention, (torch.randn(2, 6, 32), torch.randn(2, 9, 32)), 0),
    "lstm": (Tagger, torch.randint(0, 50, (2, 7)), 0),
    "gru": (lambda: Tagger("GRU"), torch.randint(0, 50, (2, 7)), 0),
    "rnn": (lambda: Tagger("RNN", bidirectional=False, layers=1), torch.randint(0, 50, (2, 7)), 0),
    "unet": (UNet, torch.randn(1, 1, 32, 32), 6),
    "two inputs": (TwoInputs, {"image": torch.randn(2, 3, 16, 16), "features": torch.randn(2, 7)}, 0),
    "audio": (Audio, torch.randn(2, 4, 20), 0),
}
CASES = [pytest.param(name, "auto", id=f"{name}-auto") for name in NETS] + [
    pytest.param("resnet", "trace", id="resnet-trace"),
    pytest.param("vit", "export_full", id="vit-export_full"),
    pytest.param("lstm", "export_full", id="lstm-export_full", marks=pytest.mark.slow),
]


def blobs(package: Path) -> Iterator[bytes]:
    """The data of every record of the weight file, found by its sentinel alone."""
    content = (package / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    for at in range(64, len(content) - 64, 64):
        sentinel, _, size, offset = struct.unpack_from("<IIQQ", content, at)
        if sentinel == 0xDEADBEEF and offset == at + 64:
            yield content[offset : offset + size]


def stored_sparse(package: Path, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every ``(mask, values)`` of the weight file that could be a sparse weight of this shape, of either precision."""
    found = []
    records = list(blobs(package))
    for record in records:
        if len(record) != math.ceil(math.prod(shape) / 8):
            continue
        bits = np.unpackbits(np.frombuffer(record, np.uint8), bitorder="little")[: math.prod(shape)].astype(bool)
        for kind in (np.float16, np.float32):
            found += [
                (bits.reshape(shape), np.frombuffer(data, kind))
                for data in records
                if len(data) == bits.sum() * kind().itemsize
            ]
    return found


def assert_in_the_weight_file(package: Path, weight: np.ndarray, keep: np.ndarray) -> None:
    """The mask lies in the file bit by bit, and behind it the nonzero values, times at most a factor per channel."""
    for mask, values in stored_sparse(package, weight.shape):
        if not np.array_equal(mask, keep) or not np.isfinite(values).all():
            continue
        dense = np.zeros(weight.shape)
        dense[mask] = values
        for axis in (0, 1):
            rows, exact = (np.moveaxis(array, axis, 0).reshape(weight.shape[axis], -1) for array in (dense, weight))
            scale = (rows * exact).sum(1, keepdims=True) / np.maximum((exact**2).sum(1, keepdims=True), 1e-30)
            if np.allclose(rows, scale * exact, rtol=2e-3, atol=1e-6):
                return
    raise AssertionError(f"a weight of shape {weight.shape} is not in the file with its mask")


@pytest.mark.parametrize(("name", "frontend"), CASES)
def test_a_network_of_real_structure_is_stored_sparse_and_computes_the_same(name, frontend, tmp_path):
    make, inputs, folded = NETS[name]
    model = make()
    masks = prune(model)
    result = CoreMLExport(tmp_path / "net.mlpackage", inputs, frontend=frontend).save(model, masks=masks)

    assert [layer.name for layer in result.layers] == list(masks)
    assert all(layer.stored == "sparse" for layer in result.layers)
    assert [layer.zeros for layer in result.layers] == [int((~mask).sum()) for mask in masks.values()]
    assert sum(layer.scaled for layer in result.layers) == folded
    assert result.not_checked == ()
    assert result.max_error < 2e-3
    assert result.ratio > 1
    package = read_package(result.path)
    assert "batch_norm" not in {op.type for op in walk(package.main)}

    gates = {"lstm": [0, 1, 3, 2], "gru": None, "rnn": [0]}
    for parameter, mask in masks.items():
        if frontend == "export_full" or "attn." in parameter or "cross." in parameter:
            continue  # transposed or cut, which the first reader handles and the second one need not
        if mask.numel() <= 72:
            continue  # nine bytes of mask lie in the program, not in the weight file
        weight, keep = model.get_parameter(parameter).detach().numpy(), mask.numpy()
        if ".weight_" in f".{parameter}" and parameter.startswith("rnn."):
            order = gates[name]
            if order is None:
                continue
            weight, keep = (
                array.reshape(len(order), -1, array.shape[1])[order].reshape(array.shape) for array in (weight, keep)
            )
        assert_in_the_weight_file(result.path, weight, keep)


def keep_mask(shape: torch.Size, kind: str) -> Tensor:
    rows, columns = shape[0], shape[1]
    if kind == "n:m":  # of four neighbours along dim 1 two are zero; where they lie changes from row to row
        at = (torch.arange(columns)[None] + torch.arange(rows)[:, None]) % 4
        return (at < 2).reshape(rows, columns, *[1] * (len(shape) - 2))
    if kind == "block":  # two output channels together
        return (torch.rand(rows // 2, *shape[1:]) < 0.4).repeat_interleave(2, 0)
    if kind == "per_kernel":
        return torch.rand(rows, columns, *[1] * (len(shape) - 2)) < 0.5
    return torch.arange(rows).reshape(rows, *[1] * (len(shape) - 1)) % 2 == 0


def granular_masks(model: nn.Module, kind: str) -> dict[str, Tensor]:
    settle(model)
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                masks[name] = keep_mask(parameter.shape, kind)
                parameter.mul_(masks[name]).add_(0.0)
    return masks


@pytest.mark.parametrize("kind", ["n:m", "block", "per_kernel", "per_channel"])
def test_masks_of_every_granularity_arrive_as_they_are(kind, tmp_path):
    model = ResNet()
    masks = granular_masks(model, kind)
    result = CoreMLExport(tmp_path / "net.mlpackage", torch.randn(1, 3, 32, 32)).save(model, masks=masks)
    for layer, (name, mask) in zip(result.layers, masks.items(), strict=True):
        shape = model.get_parameter(name).shape
        assert layer.stored == "sparse"
        assert layer.zeros == int((mask.expand(shape) == 0).sum())
        weight = model.get_parameter(name).detach().numpy()
        assert_in_the_weight_file(result.path, weight, mask.expand(shape).bool().numpy())


def test_the_records_that_are_read_fill_the_weight_file(tmp_path):
    model = ResNet()
    result = CoreMLExport(tmp_path / "net.mlpackage", torch.randn(1, 3, 32, 32)).save(model, masks=prune(model))
    package = read_package(result.path)
    in_file = sum(constant.nbytes for constant in package.constants.values() if constant.values.size >= 10)
    assert in_file == pytest.approx(package.files["Data/com.apple.CoreML/weights/weight.bin"], rel=0.01)


def test_the_dense_size_is_that_of_a_dense_package(tmp_path):
    sparse_net, dense_net = ResNet(), settle(ResNet())
    inputs = torch.randn(1, 3, 32, 32)
    sparse = CoreMLExport(tmp_path / "sparse.mlpackage", inputs).save(sparse_net, masks=prune(sparse_net))
    dense = CoreMLExport(tmp_path / "dense.mlpackage", inputs).save(dense_net)
    assert dense.ratio == 1
    assert sparse.dense_package_bytes == pytest.approx(dense.package_bytes, rel=0.02)
