"""Operations of Core ML programs that look at neighbourhoods: convolution, pooling, padding, resizing.

See :mod:`lightning_prune.export.coreml.mil.kernels`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.export.coreml.mil.shapes import CannotRun, ints, number

__all__ = [
    "avg_pool",
    "conv",
    "conv_transpose",
    "crop",
    "grid",
    "interpolate",
    "l2_pool",
    "max_pool",
    "nearest",
    "pad",
    "pool_windows",
    "resize",
    "resize_bilinear",
    "resize_nearest_neighbor",
    "scaled",
    "torch_pad",
    "upsample_bilinear",
    "upsample_nearest_neighbor",
    "window_pad",
]


def torch_pad(pad: Sequence[int]) -> list[int]:
    """``(before, after)`` pairs in the order of ``F.pad``: last dimension first."""
    return [size for at in range(len(pad) - 2, -1, -2) for size in pad[at : at + 2]]


def window_pad(
    pad_type: str,
    pad: Any,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Padding before and after each spatial dimension."""
    if pad_type == "custom":
        return ints(pad)
    if pad_type == "valid":
        return [0] * (2 * len(kernel))
    result = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result += [large, small] if pad_type == "same_lower" else [small, large]
    return result


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    """Convolution over one to three spatial dimensions."""
    rank = x.ndim - 2
    stride = [1] * rank if strides is None else ints(strides)
    dilation = [1] * rank if dilations is None else ints(dilations)
    padding = window_pad(pad_type, pad, x.shape[2:], weight.shape[2:], stride, dilation)
    x = F.pad(x, torch_pad(padding))
    return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](x, weight, bias, stride, 0, dilation, int(groups))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Tensor:
    """Transposed convolution: the full result, cut at both ends by the padding or to the asked shape."""
    rank = x.ndim - 2
    stride = [1] * rank if strides is None else ints(strides)
    dilation = [1] * rank if dilations is None else ints(dilations)
    op = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    full = op(x, weight, None, stride, 0, 0, int(groups), dilation)
    cut = [0] * (2 * rank) if pad_type == "valid" else ints(pad) if pad_type == "custom" else []
    if pad_type.startswith("same"):
        for size, given, step in zip(full.shape[2:], x.shape[2:], stride, strict=True):
            total = max(size - given * step, 0)
            cut += [total // 2, total - total // 2]
    asked = None if output_shape is None else ints(output_shape)[-rank:]
    for axis in range(rank):
        length = full.shape[axis + 2] - cut[2 * axis] - cut[2 * axis + 1] if asked is None else asked[axis]
        short = cut[2 * axis] + length - full.shape[axis + 2]
        if short > 0:  # output_padding beyond the padding: nothing but the bias lies there
            full = F.pad(full, [0, 0] * (rank - 1 - axis) + [0, short])
        full = full.narrow(axis + 2, cut[2 * axis], length)
    return full if bias is None else full + bias.reshape([-1] + [1] * rank)


def pool_windows(
    x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any
) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides, and padding of a pooling; with ``ceil_mode`` the last window is padded to its end."""
    kernel = ints(kernel_sizes)
    stride = [1] * len(kernel) if strides is None else ints(strides)
    padding = window_pad(
        pad_type, [0] * 2 * len(kernel) if pad is None else pad, x.shape[2:], kernel, stride, [1] * len(kernel)
    )
    if ceil_mode is not None and bool(ceil_mode):
        for axis, (size, k, step) in enumerate(zip(x.shape[2:], kernel, stride, strict=True)):
            before, after = padding[2 * axis : 2 * axis + 2]
            windows = -(-(size + before + after - k) // step) + 1
            if (windows - 1) * step >= size + before:
                windows -= 1
            padding[2 * axis + 1] += max((windows - 1) * step + k - (size + before + after), 0)
    return kernel, stride, padding


def max_pool(
    x: Tensor, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = None
) -> Tensor:
    """The largest value of each window."""
    kernel, stride, padding = pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    result: Tensor = pool(F.pad(x, torch_pad(padding), value=-math.inf), kernel, stride)
    return result


def avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    pad_type: str,
    strides: Any = None,
    pad: Any = None,
    ceil_mode: Any = None,
    exclude_padding_from_average: Any = False,
) -> Tensor:
    """The mean of each window; padding counts as zeros or not at all, and what lies beyond it never counts."""
    kernel, stride, padding = pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    _, _, asked = pool_windows(x, kernel_sizes, strides, pad_type, pad, None)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    counted = torch.ones_like(x)
    if not bool(exclude_padding_from_average):
        counted = F.pad(counted, torch_pad(asked), value=1.0)
        padding_left = [total - had for total, had in zip(padding, asked, strict=True)]
    else:
        padding_left = padding
    total = pool(F.pad(x, torch_pad(padding)), kernel, stride)
    share = pool(F.pad(counted, torch_pad(padding_left)), kernel, stride)
    result: Tensor = total / share
    return result


def l2_pool(
    x: Tensor, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = None
) -> Tensor:
    """The root of the sum of squares of each window."""
    kernel, stride, padding = pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    result: Tensor = (pool(F.pad(x.square(), torch_pad(padding)), kernel, stride) * math.prod(kernel)).sqrt()
    return result


def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """Padding of the last dimensions by a value, by mirroring, or by repeating the edge."""
    sizes = ints(pad)
    if mode == "constant":
        return F.pad(x, torch_pad(sizes), value=number(constant_val))
    for axis, (before, after) in enumerate(zip(sizes[::2], sizes[1::2], strict=True), x.ndim - len(sizes) // 2):
        last = x.shape[axis] - 1
        at = torch.arange(-before, last + 1 + after)
        at = last - (last - at.abs()).abs() if mode == "reflect" else at.clamp(0, last)
        x = x.index_select(axis, at)
    return x


def grid(given: int, asked: int, mode: str) -> Tensor:
    """Where along the input each output element is sampled, in input elements."""
    at = torch.arange(asked, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        return ((at + 0.5) * (given / asked) - 0.5).clamp(0, given - 1)
    if mode == "OFFSET_CORNERS":
        return ((at + 0.5) * (max(1, given - 1) / asked)).clamp(0, given - 1)
    if mode == "ALIGN_CORNERS" and asked == 1:
        return torch.tensor([(given - 1) / 2], dtype=torch.float64)
    reach = given - given / asked if mode == "DEFAULT" else given - 1
    return (at * (reach / max(asked - 1, 1))).clamp(0, given - 1)


def interpolate(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Linear interpolation between neighbours along one dimension."""
    low = positions.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (positions - low).to(x.dtype).reshape([-1] + [1] * (-1 - axis))
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def resize_bilinear(
    x: Tensor, target_size_height: Any = 1, target_size_width: Any = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Bilinear resizing of the last two dimensions to a size."""
    x = interpolate(x, -2, grid(x.shape[-2], int(target_size_height), sampling_mode))
    return interpolate(x, -1, grid(x.shape[-1], int(target_size_width), sampling_mode))


def scaled(size: int, factor: Any) -> int:
    """A size times a factor, rounded down; the factor may have lost a bit as float16 or float32."""
    return math.floor(size * number(factor, 1.0) + 1e-3)


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Any = 1,
    scale_factor_width: Any = 1,
    align_corners: Any = True,
    half_pixel_centers: Any = None,
) -> Tensor:
    """Bilinear resizing of the last two dimensions by factors."""
    half = not bool(align_corners) if half_pixel_centers is None else bool(half_pixel_centers)
    mode = "STRICT_ALIGN_CORNERS" if bool(align_corners) else "UNALIGN_CORNERS" if half else "DEFAULT"
    return resize_bilinear(x, scaled(x.shape[-2], scale_factor_height), scaled(x.shape[-1], scale_factor_width), mode)


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbour resizing of the last two dimensions."""
    for axis, asked in ((-2, height), (-1, width)):
        given = x.shape[axis]
        x = x.index_select(axis, (torch.arange(asked) * given).div(asked, rounding_mode="floor"))
    return x


def resize_nearest_neighbor(x: Tensor, target_size_height: Any, target_size_width: Any) -> Tensor:
    """Nearest neighbour resizing to a size."""
    return nearest(x, int(target_size_height), int(target_size_width))


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> Tensor:
    """Nearest neighbour resizing by factors that give whole sizes; which neighbour others mean is not documented."""
    for size, factor in zip(x.shape[-2:], (scale_factor_height, scale_factor_width), strict=True):
        exact = size * number(factor, 1.0)
        if abs(exact - round(exact)) > 1e-2:
            raise CannotRun(f"a factor that makes {exact:.2f} of {size}")
    return nearest(x, scaled(x.shape[-2], scale_factor_height), scaled(x.shape[-1], scale_factor_width))


def resize(
    x: Tensor, shape: Any, resized_dims: Any, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Resizing of the last two dimensions to the end of ``shape``."""
    if int(resized_dims) != 2:
        raise CannotRun("resize of other than two dimensions")
    height, width = (asked or x.shape[axis] for axis, asked in zip((-2, -1), ints(shape)[-2:], strict=True))
    return (
        resize_bilinear(x, height, width, sampling_mode)
        if interpolation_mode == "LINEAR"
        else nearest(x, height, width)
    )


def crop(x: Tensor, crop_height: Any, crop_width: Any) -> Tensor:
    """Rows and columns cut from the ends of the last two dimensions."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
