"""Masks as pictures and curves as charts: which pixel says what, and where the ticks lie."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from lightning_prune.page import Curve
from lightning_prune.page.charts import chart_of, round_numbers
from lightning_prune.page.pictures import draw_mask


def pixels(picture):
    """The colours of a picture, (height, width, 4), as another library reads them."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(picture.png))
    assert image.size == picture.size
    return np.asarray(image.convert("RGBA"))


def test_a_pixel_of_a_linear_layer_is_a_weight():
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.uint8)
    image = pixels(draw_mask("fc", mask, (2, 5)))
    assert ((image[..., 3] == 255) == mask.numpy().astype(bool)).all()


def test_kernels_are_tiles_with_lines_between_them():
    mask = torch.tensor([1, 0], dtype=torch.uint8).view(2, 1, 1, 1)  # one byte a channel
    picture = draw_mask("conv", mask, (2, 3, 2, 2))
    image = pixels(picture)
    assert image.shape[:2] == (5, 8)  # two channels of two rows, three of two columns, and a line between them
    assert (image[:2, [0, 1, 3, 4, 6, 7], 3] == 255).all()
    assert (image[3:, [0, 1, 3, 4, 6, 7], 3] == 46).all()
    assert (image[2, :, 3] == 0).all()
    assert (image[:, [2, 5], 3] == 0).all()
    assert picture.channels == (2, 3)


@pytest.mark.parametrize(
    ("shape", "size", "channels"),
    [
        ((300, 784), (72, 72), (72, 72)),
        ((64, 64, 3, 3), (71, 71), (18, 18)),
        ((4, 2, 100), (72, 7), (4, 1)),
        ((8, 2, 2, 3, 4), (9, 55), (8, 2)),
    ],
)
def test_a_large_mask_is_cut_to_its_first_channels(shape, size, channels):
    picture = draw_mask("w", torch.ones(shape, dtype=torch.bool), shape)
    assert picture.size == size
    assert picture.channels == channels
    assert pixels(picture).shape[:2] == size[::-1]


def test_a_curve_of_sparsity_steps_from_corner_to_corner():
    chart = chart_of("s", {"actual": Curve((0, 10), (0.0, 1.0))}, last_step=10, is_fraction=True, is_stepped=True)
    (line,) = chart.lines
    assert line.path == f"M{chart.left}.0 {chart.bottom}.0H{chart.right}.0V{chart.top}.0"
    assert [tick.text for tick in chart.up] == ["0%", "25%", "50%", "75%", "100%"]
    assert line.dots[-1][2] == "actual: 100.0% at step 10"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.9312, 0.9871), ["0.92", "0.94", "0.96", "0.98", "1.00"]),
        ((5.0, 5.0), ["2", "4", "6", "8"]),
        ((0.0, 0.0), ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        ((-3e8, 2e8), ["-3.0e+08", "-2.0e+08", "-1.0e+08", "0", "1.0e+08", "2.0e+08"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, texts):
    chart = chart_of("m", {"m": Curve((1, 2), values)}, last_step=2)
    assert [tick.text for tick in chart.up] == texts
    assert all(chart.top <= dot[1] <= chart.bottom for dot in chart.lines[0].dots)


def test_every_range_has_a_few_round_numbers():
    generator = np.random.default_rng(0)
    for _ in range(500):
        low, width = generator.normal() * 10.0 ** generator.integers(-6, 7), 10.0 ** generator.uniform(-3, 9)
        numbers = round_numbers(low, low + width)
        assert 2 <= len(numbers) <= 6
        assert numbers[0] <= low + 1e-6 * width
        assert numbers[-1] >= low + width - 1e-6 * width


def test_nothing_to_draw_is_no_chart():
    assert chart_of("m", {"m": Curve()}, last_step=3) is None
