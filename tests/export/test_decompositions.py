"""Operations by simpler ones: the same numbers, and networks that a converter would refuse without."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune.export import CoreAIExport, CoreMLExport
from lightning_prune.export.decompositions import SIMPLER

aten = torch.ops.aten


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


ONES_AND_TIES = torch.tensor([[1.0, -2.0, 1.0, -2.0], [0.0, 3.0, -0.5, 0.0]])
CALLS = [
    *((aten.argmin.default, (ONES_AND_TIES, *rest), {}) for rest in ((), (1,), (0, True))),
    *((aten.bucketize.Tensor, (ONES_AND_TIES, torch.tensor([-2.0, 0.0, 1.0])), {"right": right}) for right in (0, 1)),
    (aten.bucketize.Tensor, (ONES_AND_TIES, torch.tensor([-2.0, 0.0])), {"out_int32": True}),
    *(
        (aten._cdist_forward.default, (numbers(2, 5, 3), numbers(2, 4, 3), p, None), {})
        for p in (0, 1, 2, 3.5, math.inf)
    ),
    (aten.col2im.default, (numbers(2, 12, 42), [7, 8], [2, 2], [1, 1], [0, 0], [1, 1]), {}),
    (aten.erfc.default, (numbers(3, 4),), {}),
    *((aten.fmod.Scalar, (ONES_AND_TIES, number), {}) for number in (0.75, -0.75)),
    (aten.fmod.Tensor, (numbers(3, 4), numbers(4).abs() + 0.5), {}),
    (aten.hypot.default, (numbers(3, 4), numbers(4)), {}),
    (aten.isnan.default, (torch.tensor([1.0, math.nan, math.inf]),), {}),
    *(
        (aten._native_batch_norm_legit.no_stats, (numbers(3, 4, *rest), *affine, True, 0.1, 1e-5), {})
        for rest in ((), (5,), (5, 6))
        for affine in ((None, None), (numbers(4), numbers(4) + 1))
    ),
    (aten.pad.default, (numbers(2, 3), [1, 2], "constant", 0.5), {}),
    (aten.pad.default, (numbers(2, 3), [1, 2]), {}),
    (aten.remainder.Scalar, (ONES_AND_TIES, -0.75), {}),
    (aten.signbit.default, (ONES_AND_TIES,), {}),
    *((aten.sort.default, (numbers(3, 5), *rest), {}) for rest in ((), (0,), (1, True))),
    (aten.sort.default, (torch.tensor(2.0),), {}),
    *(
        (operation, (numbers(3, 4, 5), dims), {"correction": correction, "keepdim": keep})
        for operation in (aten.var.correction, aten.var_mean.correction)
        for dims in (None, [1], [-1, 0])
        for correction in (None, 0, 1.5)
        for keep in (False, True)
    ),
]


@pytest.mark.parametrize(("operation", "arguments", "options"), CALLS, ids=lambda value: str(value)[:40])
def test_simpler_operations_give_the_same(operation, arguments, options):
    wanted, found = operation(*arguments, **options), SIMPLER[operation](*arguments, **options)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "padding", "stride"),
    [
        ([6, 7], [3, 2], [1, 2], [1, 0], [2, 1]),
        ([8, 8], [2, 2], [1, 1], [0, 0], [2, 2]),
        ([9, 8], [3, 3], [2, 1], [2, 1], [3, 2]),  # rows at the end that no place reaches
    ],
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_columns_are_laid_over_an_image_as_by_fold(size, kernel, dilation, padding, stride, batch):
    places = functional.unfold(torch.zeros(1, 1, *size), kernel, dilation, padding, stride).shape[-1]
    columns = numbers(*batch, 3 * math.prod(kernel), places)
    wanted = functional.fold(columns, size, kernel, dilation, padding, stride)
    torch.testing.assert_close(SIMPLER[aten.col2im.default](columns, size, kernel, dilation, padding, stride), wanted)


def test_every_operation_is_tried():
    tried = {operation for operation, _, _ in CALLS}
    assert {operation for operation in SIMPLER if operation.namespace == "aten"} == tried


class Between(nn.Module):
    """Two convolutions, and something between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.behind = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.between = between

    def forward(self, images):
        return self.behind(self.between(self.before(images)))


def sampled(features):
    places = functional.affine_grid(0.9 * torch.eye(2, 3)[None], features.shape, align_corners=False)
    return functional.grid_sample(features, places, align_corners=False)


def nearest(features):
    rows = features.flatten(2)[:, :, :8]
    return features * torch.cdist(rows, rows).argmin(-1)[..., None, None].to(features.dtype)


def standardised(features):
    variances, means = torch.var_mean(features, 1, keepdim=True)
    return (features - means) / (variances + 1).sqrt()


def folded(features):
    return features + functional.fold(functional.unfold(features, 3, padding=1), features.shape[-2:], 3, padding=1)


BETWEEN = {
    "ELU": nn.ELU(),
    "samples of a grid": sampled,
    "nearest rows": nearest,
    "variances": standardised,
    "norm by the batch": nn.BatchNorm2d(8, track_running_stats=False),
    "remainders": lambda features: torch.fmod(features, 1.5).nan_to_num(),
}


@pytest.mark.parametrize("name", [*BETWEEN, "folded", "log of a sum"])
def test_core_ai_runs_what_its_converter_does_not_know(tmp_path, coreai, name):
    more = {"folded": folded, "log of a sum": lambda features: torch.logaddexp(features, features.flip(1))}
    model = Between((BETWEEN | more)[name])
    result = CoreAIExport(tmp_path / "net.aimodel", numbers(1, 3, 8, 8)).save(model)
    assert not result.not_checked
    assert result.near_error < 1e-4


def test_core_ai_runs_a_pooling_of_volumes(tmp_path, coreai):
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.MaxPool3d(2), nn.Conv3d(4, 2, 3))
    assert CoreAIExport(tmp_path / "net.aimodel", numbers(1, 1, 10, 10, 10)).save(model).near_error < 1e-4


@pytest.mark.parametrize("name", ["nearest rows", "variances", "remainders"])
def test_core_ml_computes_what_its_converter_does_not_know(tmp_path, coremltools, name):
    result = CoreMLExport(tmp_path / "net.mlpackage", numbers(1, 3, 8, 8)).save(Between(BETWEEN[name]))
    assert result.frontend == "export_needed"
    assert not result.not_checked
