"""What each operation of a Core ML program computes, in torch.

One function an operation, its arguments named as the operation's inputs, written from Core ML's documentation of the operations
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html) and not from the converter, so that running
a program with them is a second opinion. Floating point numbers are float32 whatever the program stores; integers are int64.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KERNELS", "TUPLE_INPUTS", "CannotRun"]

Kernel = Callable[..., Any]


class CannotRun(Exception):
    """An operation, or the way it is used, is not known here."""


# ---- reading arguments -------------------------------------------------------------------------------------------------------


def ints(values: Any) -> list[int]:
    """A row of integers, from a tensor of any rank or a sequence."""
    if isinstance(values, Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    return [int(value) for value in values]


def dims(axes: Any, x: Tensor) -> list[int]:
    """Axes as given, or all of them."""
    return list(range(x.ndim)) if axes is None else ints(axes)


def number(value: Any, default: float = 0.0) -> float:
    """A Python number from a scalar tensor, or the default."""
    return default if value is None else float(value)


# ---- convolution and pooling -------------------------------------------------------------------------------------------------


def torch_pad(pad: Sequence[int]) -> list[int]:
    """``(before, after)`` pairs in the order of ``F.pad``: last dimension first."""
    return [size for at in range(len(pad) - 2, -1, -2) for size in pad[at : at + 2]]


def window_pad(
    pad_type: str, pad: Any, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
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
    x: Tensor, weight: Tensor, bias: Any = None, strides: Any = None, pad_type: str = "valid", pad: Any = None, dilations: Any = None, groups: Any = 1
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


def pool_windows(x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides, and padding of a pooling; with ``ceil_mode`` the padding reaches to the end of the last window."""
    kernel = ints(kernel_sizes)
    stride = [1] * len(kernel) if strides is None else ints(strides)
    padding = window_pad(pad_type, [0] * 2 * len(kernel) if pad is None else pad, x.shape[2:], kernel, stride, [1] * len(kernel))
    if ceil_mode is not None and bool(ceil_mode):
        for axis, (size, k, step) in enumerate(zip(x.shape[2:], kernel, stride, strict=True)):
            before, after = padding[2 * axis : 2 * axis + 2]
            windows = -(-(size + before + after - k) // step) + 1
            if (windows - 1) * step >= size + before:
                windows -= 1
            padding[2 * axis + 1] += max((windows - 1) * step + k - (size + before + after), 0)
    return kernel, stride, padding


def max_pool(x: Tensor, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = None) -> Tensor:
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


def l2_pool(x: Tensor, kernel_sizes: Any, pad_type: str, strides: Any = None, pad: Any = None, ceil_mode: Any = None) -> Tensor:
    """The root of the sum of squares of each window."""
    kernel, stride, padding = pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    result: Tensor = (pool(F.pad(x.square(), torch_pad(padding)), kernel, stride) * math.prod(kernel)).sqrt()
    return result


# ---- linear algebra ----------------------------------------------------------------------------------------------------------


def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    """Matrix product, with either side transposed before it."""
    x = x.transpose(-1, -2) if bool(transpose_x) and x.ndim > 1 else x
    y = y.transpose(-1, -2) if bool(transpose_y) and y.ndim > 1 else y
    return torch.matmul(x, y)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None) -> Tensor:
    """Scaled dot product attention, written out."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Einstein summation."""
    return torch.einsum(equation, *values)


# ---- norms -------------------------------------------------------------------------------------------------------------------


def over_channels(x: Tensor, values: Any, default: float) -> Any:
    """One value per channel (dimension 1), ready to broadcast."""
    return default if values is None else values.reshape([1, -1] + [1] * (x.ndim - 2))


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Tensor:
    """Normalize each channel by stored statistics."""
    scaled = (x - over_channels(x, mean, 0.0)) / (over_channels(x, variance, 1.0) + epsilon).sqrt()
    result: Tensor = scaled * over_channels(x, gamma, 1.0) + over_channels(x, beta, 0.0)
    return result


def instance_norm(x: Tensor, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Tensor:
    """Normalize each channel of each sample over its spatial dimensions."""
    spatial = list(range(2, x.ndim))
    scaled = (x - x.mean(spatial, keepdim=True)) / (x.var(spatial, unbiased=False, keepdim=True) + epsilon).sqrt()
    result: Tensor = scaled * over_channels(x, gamma, 1.0) + over_channels(x, beta, 0.0)
    return result


def layer_norm(x: Tensor, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Tensor:
    """Normalize over ``axes``."""
    over = dims(axes, x)
    scaled: Tensor = (x - x.mean(over, keepdim=True)) / (x.var(over, unbiased=False, keepdim=True) + epsilon).sqrt()
    shape = [x.shape[dim] if dim in [axis % x.ndim for axis in over] else 1 for dim in range(x.ndim)]
    scaled = scaled if gamma is None else scaled * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Any = 1e-6) -> Tensor:
    """Divide by the norm over the last three dimensions."""
    result: Tensor = x / (x.square().sum(list(range(max(x.ndim - 3, 0), x.ndim)), keepdim=True) + epsilon).sqrt()
    return result


def local_response_norm(x: Tensor, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Tensor:
    """Divide by the energy of neighbouring channels."""
    return F.local_response_norm(x, int(size), number(alpha), number(beta), number(k))


# ---- activations -------------------------------------------------------------------------------------------------------------


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """GELU, exact or by either approximation."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Leaky ReLU with a slope per channel."""
    return torch.where(x >= 0, x, x * over_channels(x, alpha, 0.0))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + exp(beta * x))`` per channel."""
    result: Tensor = over_channels(x, alpha, 1.0) * F.softplus(over_channels(x, beta, 1.0) * x)
    return result


# ---- shapes ------------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Any) -> Tensor:
    """Same values in another shape; 0 takes the size of the input's dimension, counted from the right."""
    sizes = ints(shape)
    if 0 in sizes and x.numel() > 0:
        lead = len(sizes) - x.ndim
        sizes = [size or (x.shape[at - lead] if at >= lead else 1) for at, size in enumerate(sizes)]
    return x.reshape(sizes)


def reshape_like(x: Tensor, ref_tensors: Sequence[Tensor], begins: Any, ends: Any, end_masks: Any) -> Tensor:
    """A shape put together from pieces of other tensors' shapes."""
    shape: list[int] = []
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += list(ref.shape)[int(begin) : None if bool(to_end) else int(end)]
    return x.reshape(shape)


def expand_dims(x: Tensor, axes: Any) -> Tensor:
    """Dimensions of size 1 put in, at positions of the result."""
    rank = x.ndim + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    """Dimensions of size 1 taken out."""
    for axis in sorted(([d for d in range(x.ndim) if x.shape[d] == 1] if axes is None else [a % x.ndim for a in ints(axes)]), reverse=True):
        x = x.squeeze(axis)
    return x


def slice_by_index(
    x: Tensor, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> Tensor:
    """A Python slice in every dimension; masks open an end, or take one element and drop the dimension."""
    for axis, picked in reversed(list(enumerate(slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)))):
        x = x.select(axis, picked) if isinstance(picked, int) else x.index_select(axis, torch.tensor(list(picked), dtype=torch.long))
    return x


def slices(x: Tensor, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any) -> list[Any]:
    """For each dimension the range of positions that a slice takes, or the one position of a dropped dimension."""
    off = [False] * x.ndim
    steps = [1] * x.ndim if stride is None else ints(stride)
    open_begin, open_end, drop = (off if mask is None else [bool(v) for v in mask] for mask in (begin_mask, end_mask, squeeze_mask))
    result: list[Any] = []
    for axis, (first, last) in enumerate(zip(ints(begin), ints(end), strict=True)):
        if drop[axis]:
            result.append(first % x.shape[axis] if first < 0 else first)
            continue
        bounds = slice(None if open_begin[axis] else first, None if open_end[axis] else last, steps[axis])
        result.append(range(*bounds.indices(x.shape[axis])))
    return result


def slice_update(
    x: Tensor, update: Tensor, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> Tensor:
    """A copy in which a slice holds other values."""
    picked = slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    grid = torch.meshgrid(*(torch.tensor([p] if isinstance(p, int) else list(p)) for p in picked), indexing="ij")
    x = x.clone()
    x[grid] = update.reshape(grid[0].shape)
    return x


def slice_by_size(x: Tensor, begin: Any, size: Any) -> Tensor:
    """A box of the given size; -1 reaches to the end."""
    for axis, (first, length) in enumerate(zip(ints(begin), ints(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def split(x: Tensor, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> tuple[Tensor, ...]:
    """Consecutive pieces along one dimension."""
    if split_sizes is not None:
        return tuple(x.split(ints(split_sizes), int(axis)))
    return tuple(x.split(x.shape[int(axis)] // int(num_splits), int(axis)))


def concat(values: Sequence[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """Tensors one after another."""
    if bool(interleave):
        raise CannotRun("interleaved concat")
    return torch.cat(list(values), int(axis))


def pad(x: Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> Tensor:
    """Padding of the last dimensions."""
    sizes = torch_pad(ints(pad))
    if mode == "constant":
        return F.pad(x, sizes, value=number(constant_val))
    while len(sizes) > 2 and sizes[-2:] == [0, 0]:  # torch reflects one to three dimensions only
        sizes = sizes[:-2]
    lead = x.ndim - len(sizes) // 2
    if lead > 2:
        return F.pad(x.flatten(0, lead - 2), sizes, mode=mode).unflatten(0, x.shape[: lead - 1])
    return F.pad(x.reshape([1] * (2 - lead) + list(x.shape)), sizes, mode=mode).reshape([-1, *x.shape[1:]][:0] or padded(x.shape, sizes))


def padded(shape: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """A shape after padding in the order of ``F.pad``."""
    result = list(shape)
    for at in range(len(sizes) // 2):
        result[-1 - at] += sizes[2 * at] + sizes[2 * at + 1]
    return result


def fill(shape: Any, value: Any = 0.0) -> Tensor:
    """One value everywhere."""
    if not isinstance(value, Tensor):
        return torch.full(ints(shape), value)
    return value.reshape([1] * len(ints(shape))).expand(ints(shape)).clone()


def sliding_windows(x: Tensor, axis: Any, size: Any, stride: Any = 1) -> Tensor:
    """All windows along one dimension; the window becomes the next dimension."""
    at = int(axis) % x.ndim
    return x.unfold(at, int(size), int(stride)).movedim(-1, at + 1)


def depth_to_space(x: Tensor, block_size: Any) -> Tensor:
    """Channels to pixels; the block comes before the channels, other than in ``pixel_shuffle``."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, block_size: Any) -> Tensor:
    """Pixels to channels; the block comes before the channels, other than in ``pixel_unshuffle``."""
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


# ---- picking -----------------------------------------------------------------------------------------------------------------


def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = None) -> Tensor:
    """Slices along one dimension, in the shape of ``indices``."""
    at, batch = int(axis) % x.ndim, int(batch_dims)
    if batch:
        rows = [gather(a, i, at - batch, 0) for a, i in zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)]
        return torch.stack(rows).unflatten(0, x.shape[:batch])
    picked = x.index_select(at, wrapped(indices.reshape(-1), x.shape[at]))
    return picked.reshape([*x.shape[:at], *indices.shape, *x.shape[at + 1 :]])


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices with negative ones counted from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


def gather_along_axis(x: Tensor, indices: Tensor, axis: Any = 0, validate_indices: Any = None) -> Tensor:
    """One element for each index, at its own position in the other dimensions."""
    return x.gather(int(axis), wrapped(indices, x.shape[int(axis)]))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: Any = 0, validate_indices: Any = None) -> Tensor:
    """Slices named by their leading coordinates."""
    if int(batch_dims):
        raise CannotRun("gather_nd with batch_dims")
    return x[tuple(wrapped(indices[..., k], x.shape[k]) for k in range(indices.shape[-1]))]


SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = None
) -> Tensor:
    """The inverse of ``gather_along_axis``."""
    at = wrapped(indices, data.shape[int(axis)])
    if mode == "update":
        return data.scatter(int(axis), at, updates)
    if mode not in SCATTER:
        raise CannotRun(f"scatter with mode {mode}")
    return data.scatter_reduce(int(axis), at, updates, SCATTER[mode])


def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = None) -> Tensor:
    """The inverse of ``gather`` for a row of indices."""
    at = int(axis) % data.ndim
    if indices.ndim != 1:
        raise CannotRun("scatter with indices of more than one dimension")
    spread = indices.reshape([-1 if dim == at else 1 for dim in range(data.ndim)]).expand(updates.shape)
    return scatter_along_axis(data, spread, updates, at, mode)


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Any = None) -> Tensor:
    """The inverse of ``gather_nd``."""
    if mode not in ("add", "update"):
        raise CannotRun(f"scatter_nd with mode {mode}")
    where = tuple(wrapped(indices[..., k], data.shape[k]) for k in range(indices.shape[-1]))
    return data.clone().index_put_(where, updates, accumulate=mode == "add")


def topk(
    x: Tensor, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True, return_indices: Any = True, output_indices_dtype: Any = None
) -> tuple[Tensor, ...]:
    """The largest (or smallest) values and where they were."""
    values, indices = x.topk(int(k), int(axis), largest=not bool(ascending))
    return (values, indices) if bool(return_indices) else (values,)


def one_hot(indices: Tensor, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0) -> Tensor:
    """``on_value`` at each index and ``off_value`` elsewhere."""
    hot = F.one_hot(indices.long(), int(one_hot_vector_size)).bool()
    on, off = (value if isinstance(value, Tensor) else torch.tensor(value) for value in (on_value, off_value))
    at = int(axis) % hot.ndim
    return torch.where(hot, on, off).movedim(-1, at)


# ---- reductions --------------------------------------------------------------------------------------------------------------


def reduce(x: Tensor, axes: Any = None, keep_dims: Any = False, *, how: Callable[..., Tensor]) -> Tensor:
    """A reduction over ``axes``, all of them by default."""
    return how(x, dims(axes, x), keepdim=bool(keep_dims))


def reduce_prod(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
    """The product, dimension by dimension."""
    over = sorted((axis % x.ndim for axis in dims(axes, x)), reverse=True)
    for axis in over:
        x = x.prod(axis, keepdim=bool(keep_dims))
    return x


def arg(x: Tensor, axis: Any = -1, keep_dims: Any = False, output_dtype: Any = None, *, how: Callable[..., Tensor]) -> Tensor:
    """Where the largest or smallest value is."""
    return how(x, int(axis), keepdim=bool(keep_dims))


def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    """Running sum along one dimension."""
    at = int(axis)
    x = x.flip(at) if bool(reverse) else x
    total = x.cumsum(at)
    total = total - x if bool(exclusive) else total
    return total.flip(at) if bool(reverse) else total


# ---- images ------------------------------------------------------------------------------------------------------------------


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


def resize_bilinear(x: Tensor, target_size_height: Any = 1, target_size_width: Any = 1, sampling_mode: str = "DEFAULT") -> Tensor:
    """Bilinear resizing of the last two dimensions to a size."""
    x = interpolate(x, -2, grid(x.shape[-2], int(target_size_height), sampling_mode))
    return interpolate(x, -1, grid(x.shape[-1], int(target_size_width), sampling_mode))


def scaled(size: int, factor: Any) -> int:
    """A size times a factor, rounded down; the factor may have lost a bit as float16 or float32."""
    return math.floor(size * number(factor, 1.0) + 1e-3)


def upsample_bilinear(
    x: Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1, align_corners: Any = True, half_pixel_centers: Any = None
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
    """Nearest neighbour resizing by factors."""
    return nearest(x, scaled(x.shape[-2], scale_factor_height), scaled(x.shape[-1], scale_factor_width))


def resize(x: Tensor, shape: Any, resized_dims: Any, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT") -> Tensor:
    """Resizing of the last two dimensions to the end of ``shape``."""
    if int(resized_dims) != 2:
        raise CannotRun("resize of other than two dimensions")
    height, width = (asked or x.shape[axis] for axis, asked in zip((-2, -1), ints(shape)[-2:], strict=True))
    return resize_bilinear(x, height, width, sampling_mode) if interpolation_mode == "LINEAR" else nearest(x, height, width)


def crop(x: Tensor, crop_height: Any, crop_width: Any) -> Tensor:
    """Rows and columns cut from the ends of the last two dimensions."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


# ---- recurrent layers --------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
}


def lstm_direction(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Any, acts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """One direction over all steps; the gates lie in the order input, forget, output, cell."""
    recurrent, cell, out = (ACTIVATIONS[name] for name in acts)
    steps = []
    for given in x:
        i, f, o, z = (F.linear(given, w_ih, bias) + F.linear(h, w_hh)).chunk(4, -1)
        c = recurrent(f) * c + recurrent(i) * cell(z)
        h = recurrent(o) * out(c)
        steps.append(h)
    return torch.stack(steps), h, c


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Any = None,
    peephole: Any = None,
    weight_ih_back: Any = None,
    weight_hh_back: Any = None,
    bias_back: Any = None,
    peephole_back: Any = None,
    direction: str = "forward",
    output_sequence: Any = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM over ``(steps, batch, features)``: all or the last hidden states, and the final hidden and cell state."""
    if peephole is not None or peephole_back is not None or clip is not None:
        raise CannotRun("lstm with peephole or clip")
    acts = (recurrent_activation, cell_activation, activation)
    size = weight_hh.shape[1]
    runs = []
    if direction in ("forward", "bidirectional"):
        runs.append(lstm_direction(x, initial_h[:, :size], initial_c[:, :size], weight_ih, weight_hh, bias, acts))
    if direction in ("reverse", "bidirectional"):
        back = (weight_ih, weight_hh, bias) if direction == "reverse" else (weight_ih_back, weight_hh_back, bias_back)
        steps, h, c = lstm_direction(x.flip(0), initial_h[:, -size:], initial_c[:, -size:], *back, acts)
        runs.append((steps.flip(0), h, c))
    steps, h, c = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    return (steps if bool(output_sequence) else h[None]), h, c


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Any = None,
    direction: str = "forward",
    output_sequence: Any = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Any = False,
    input_bias: Any = None,
) -> tuple[Tensor, Tensor]:
    """GRU over ``(steps, batch, features)``; the gates lie in the order reset, output, update."""
    if bool(reset_after):
        raise CannotRun("gru with reset_after")
    gate, out = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation]
    zero = torch.zeros(weight_hh.shape[0])
    in_r, in_o, in_z = F.linear(x, weight_ih, zero if input_bias is None else input_bias).chunk(3, -1)
    w_r, w_o, w_z = weight_hh.chunk(3, 0)
    b_r, b_o, b_z = (zero if bias is None else bias).chunk(3, 0)
    h, steps = initial_h, []
    order = range(len(x)) if direction == "forward" else range(len(x) - 1, -1, -1)
    for t in order:
        r = gate(in_r[t] + F.linear(h, w_r, b_r))
        z = gate(in_z[t] + F.linear(h, w_z, b_z))
        o = out(in_o[t] + r * F.linear(h, w_o) + b_o)
        h = (1 - z) * o + z * h
        steps.append(h)
    every = torch.stack(steps if direction == "forward" else steps[::-1])
    return (every if bool(output_sequence) else h[None]), h


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Any = None,
    direction: str = "forward",
    output_sequence: Any = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Plain recurrent layer over ``(steps, batch, features)``."""
    h, steps = initial_h, []
    for t in range(len(x)) if direction == "forward" else range(len(x) - 1, -1, -1):
        h = ACTIVATIONS[activation](F.linear(x[t], weight_ih, bias) + F.linear(h, weight_hh))
        steps.append(h)
    every = torch.stack(steps if direction == "forward" else steps[::-1])
    return (every if bool(output_sequence) else h[None]), h


# ---- lists and the rest ------------------------------------------------------------------------------------------------------


def list_write(ls: list[Any], index: Any, value: Tensor) -> list[Any]:
    """A copy of a list with one element set; it grows when needed."""
    at = int(index)
    copy = ls + [None] * (at + 1 - len(ls))
    copy[at] = value
    return copy


def list_scatter(ls: list[Any], indices: Any, value: Tensor) -> list[Any]:
    """A copy of a list with several elements set."""
    for at, item in zip(ints(indices), value, strict=True):
        ls = list_write(ls, at, item)
    return ls


def cast(x: Tensor, dtype: str) -> Tensor:
    """Another type; floats stay float32, and integers are cut toward zero."""
    if dtype == "bool":
        return x != 0
    return x.float() if dtype.startswith("fp") else x.long()


def floor_divide(x: Tensor, y: Tensor) -> Tensor:
    """The quotient, rounded down."""
    return torch.div(x, y, rounding_mode="floor")


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """The quotient; of integers, cut toward zero."""
    return x / y if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


KERNELS: dict[str, Kernel] = {
    "abs": lambda x: x.abs(),
    "acos": lambda x: x.acos(),
    "add": lambda x, y: x + y,
    "argsort": lambda x, axis=-1, ascending=False: x.argsort(int(axis), descending=not bool(ascending)),
    "asin": lambda x: x.asin(),
    "atan": lambda x: x.atan(),
    "atanh": lambda x: x.atanh(),
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "cast": cast,
    "ceil": lambda x: x.ceil(),
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, x * alpha).clamp(max=number(beta)),
    "clip": lambda x, alpha, beta: x.clamp(number(alpha), number(beta)),
    "concat": concat,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "cos": lambda x: x.cos(),
    "cosh": lambda x: x.cosh(),
    "crop": crop,
    "cumsum": cumsum,
    "depth_to_space": depth_to_space,
    "einsum": einsum,
    "elu": lambda x, alpha: F.elu(x, number(alpha)),
    "equal": lambda x, y: x == y,
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "expand_dims": expand_dims,
    "fill": fill,
    "fill_like": lambda ref_tensor, value=0.0: fill(ref_tensor.shape, value),
    "flatten2d": lambda x, axis=1: x.reshape(math.prod(x.shape[: int(axis)]), -1),
    "floor": lambda x: x.floor(),
    "floor_div": floor_divide,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "gelu": gelu,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "gru": gru,
    "identity": lambda x: x,
    "instance_norm": instance_norm,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + number(epsilon)),
    "l2_norm": l2_norm,
    "l2_pool": l2_pool,
    "layer_norm": layer_norm,
    "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, x * alpha),
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "linear_activation": lambda x, alpha, beta: x * alpha + beta,
    "list_gather": lambda ls, indices: torch.stack([ls[at] for at in ints(indices)]),
    "list_length": lambda ls: torch.tensor(len(ls)),
    "list_read": lambda ls, index: ls[int(index)],
    "list_scatter": list_scatter,
    "list_write": list_write,
    "local_response_norm": local_response_norm,
    "log": lambda x, epsilon=0.0: (x + number(epsilon)).log(),
    "logical_and": lambda x, y: x.bool() & y.bool(),
    "logical_not": lambda x: ~x.bool(),
    "logical_or": lambda x, y: x.bool() | y.bool(),
    "logical_xor": lambda x, y: x.bool() ^ y.bool(),
    "lstm": lstm,
    "make_list": lambda elem_shape=(), init_length=1, dynamic_length=True, dtype="fp32": [None] * int(init_length),
    "matmul": matmul,
    "max_pool": max_pool,
    "maximum": lambda x, y: torch.maximum(*torch.broadcast_tensors(x, y)),
    "minimum": lambda x, y: torch.minimum(*torch.broadcast_tensors(x, y)),
    "mod": lambda x, y: torch.remainder(x, y),
    "mul": lambda x, y: x * y,
    "non_zero": lambda x: x.nonzero(),
    "not_equal": lambda x, y: x != y,
    "one_hot": one_hot,
    "pad": pad,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "pow": lambda x, y: x**y,
    "prelu": prelu,
    "range_1d": lambda end, start, step: torch.arange(start.item(), end.item(), step.item()),
    "real_div": real_div,
    "reduce_argmax": partial(arg, how=torch.argmax),
    "reduce_argmin": partial(arg, how=torch.argmin),
    "reduce_l1_norm": partial(reduce, how=lambda x, over, keepdim: x.abs().sum(over, keepdim=keepdim)),
    "reduce_l2_norm": partial(reduce, how=lambda x, over, keepdim: x.square().sum(over, keepdim=keepdim).sqrt()),
    "reduce_log_sum": partial(reduce, how=lambda x, over, keepdim: x.sum(over, keepdim=keepdim).log()),
    "reduce_log_sum_exp": partial(reduce, how=torch.logsumexp),
    "reduce_max": partial(reduce, how=torch.amax),
    "reduce_mean": partial(reduce, how=torch.mean),
    "reduce_min": partial(reduce, how=torch.amin),
    "reduce_prod": reduce_prod,
    "reduce_sum": partial(reduce, how=torch.sum),
    "reduce_sum_square": partial(reduce, how=lambda x, over, keepdim: x.square().sum(over, keepdim=keepdim)),
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "reshape": reshape,
    "reshape_like": reshape_like,
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "reverse": lambda x, axes=None: x.flip(dims(axes, x)),
    "rnn": rnn,
    "round": lambda x: x.round(),
    "rsqrt": lambda x, epsilon=0.0: (x + number(epsilon)).rsqrt(),
    "scaled_dot_product_attention": attention,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.long),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha, beta: (x * alpha + beta).clamp(0, 1),
    "sign": lambda x: x.sign(),
    "silu": lambda x: F.silu(x),
    "sin": lambda x: x.sin(),
    "sinh": lambda x: x.sinh(),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "softmax": lambda x, axis=-1: x.softmax(int(axis)),
    "softplus": lambda x: F.softplus(x),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: F.softsign(x),
    "space_to_depth": space_to_depth,
    "split": split,
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x.square(),
    "squeeze": squeeze,
    "stack": lambda values, axis: torch.stack(list(values), int(axis)),
    "sub": lambda x, y: x - y,
    "tan": lambda x: x.tan(),
    "tanh": lambda x: x.tanh(),
    "threshold": lambda x, alpha: x.clamp(min=number(alpha)),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0.0),
    "tile": lambda x, reps: x.repeat(ints(reps)),
    "topk": topk,
    "transpose": lambda x, perm: x.permute(ints(perm)),
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}

# Inputs that are a row of values, also when only one is given.
TUPLE_INPUTS = {("concat", "values"), ("stack", "values"), ("einsum", "values")} | {
    ("reshape_like", name) for name in ("ref_tensors", "begins", "ends", "end_masks")
}
