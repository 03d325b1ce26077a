"""What Core ML Tools stumbles over is mended, and what comes out is proven; each of these fails without its mending."""

import contextlib

import numpy as np
import pytest
import torch
from coreml_nets import prune
from torch import Tensor, nn

import lightning_prune.export.coreml.conversion as conversion
from lightning_prune import CoreMLExport, ExportError

pytest.importorskip("coremltools")


class Flattened(nn.Module):
    """Computes with a size, which a trace holds as an array of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(4 * 36, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(images))
        return self.fc(hidden.view(hidden.size(0), hidden.size(1) // 4, -1))


class Aliased(nn.Module):
    """As attention of windows and of language models, with operations that do nothing, one of them the last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.ops.aten.alias(torch.relu(torch.ops.aten.alias(self.body(features))))
        return torch.ops.aten.alias(self.head(hidden)), hidden


class ResponseNorm(nn.Module):
    """As ConvNeXtV2 and the masks of language models: two operations without a converter, and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv(images)
        size = hidden.norm(p=2, dim=(2, 3), keepdim=True)
        hidden = hidden + torch.addcmul(self.scale, hidden, size / (size.mean(1, keepdim=True) + 1e-6))
        return self.fc(torch.diff(hidden.flatten(2)).mean(2))


IMAGES = torch.randn(2, 3, 8, 8)


def pruned(model: nn.Module) -> nn.Module:
    prune(model)
    return model


def test_a_number_is_read_out_of_an_array_of_one_element(tmp_path):
    result = CoreMLExport(tmp_path / "a.mlpackage", IMAGES, frontend="trace").save(pruned(Flattened()))
    assert result.not_checked == ()
    assert result.near_error < 5e-3
    assert [layer.stored for layer in result.layers] == ["sparse", "sparse"]
    assert result.attempts == ()


def test_operations_that_do_nothing_are_dropped(tmp_path, monkeypatch):
    export = CoreMLExport(tmp_path / "a.mlpackage", torch.randn(2, 16), frontend="export")
    model = pruned(Aliased())
    result = export.save(model)
    assert result.not_checked == ()
    assert result.near_error < 5e-3
    monkeypatch.setattr(conversion, "drop_aliases", lambda program: None)
    with pytest.raises(ExportError, match="alias"):
        export.save(model)


def test_only_operations_without_a_converter_are_broken_up(tmp_path):
    result = CoreMLExport(tmp_path / "a.mlpackage", IMAGES).save(pruned(ResponseNorm()))
    assert result.frontend == "export_needed"
    assert result.not_checked == ()
    assert result.near_error < 5e-3
    assert [attempt.split(":")[0] for attempt in result.attempts] == ["frontend export", "frontend trace"]
    assert all("addcmul" in attempt or "diff" in attempt for attempt in result.attempts)
    assert any("tried in vain: frontend export" in line for line in result.lines())


def test_a_network_that_the_converter_knows_is_not_broken_up(tmp_path):
    export = CoreMLExport(tmp_path / "a.mlpackage", IMAGES, frontend="export_needed")
    with pytest.raises(ExportError, match='knows every operation, so none is broken up. Write frontend="export"'):
        export.save(pruned(Flattened()))


def test_without_the_mending_numpy_refuses_an_array_of_one_element(tmp_path, monkeypatch):
    """If this fails, the converter or NumPy has mended it: ``whole_numbers`` can go."""
    if tuple(map(int, np.__version__.split(".")[:2])) < (2, 4):
        pytest.skip("NumPy before 2.4 takes it")
    monkeypatch.setattr(conversion, "whole_numbers", contextlib.nullcontext)
    with pytest.raises(ExportError, match="0-dimensional arrays"):
        CoreMLExport(tmp_path / "a.mlpackage", IMAGES, frontend="trace").save(pruned(Flattened()))
