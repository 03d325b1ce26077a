"""What each operation of a Core ML program computes, in torch.

One function an operation, its arguments named as the operation's inputs, written from Core ML's documentation of the
operations (https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html) and not from the
converter, so that running a program with them is a second opinion. Floating point numbers are float32 whatever the
program stores; integers are int64.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.export.coreml.mil import recurrent as mil_recurrent
from lightning_prune.export.coreml.mil import shapes as mil_shapes
from lightning_prune.export.coreml.mil import windows as mil_windows
from lightning_prune.export.coreml.mil.shapes import dims, ints, number

__all__ = ["KERNELS", "TUPLE_INPUTS"]


Kernel = Callable[..., Any]


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


def over_channels(x: Tensor, values: Any, default: float) -> Any:
    """One value per channel (dimension 1), ready to broadcast."""
    return default if values is None else values.reshape([1, -1] + [1] * (x.ndim - 2))


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> Tensor:
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


def reduce(x: Tensor, axes: Any = None, keep_dims: Any = False, *, how: Callable[..., Tensor]) -> Tensor:
    """A reduction over ``axes``, all of them by default."""
    return how(x, dims(axes, x), keepdim=bool(keep_dims))


def reduce_prod(x: Tensor, axes: Any = None, keep_dims: Any = False) -> Tensor:
    """The product, dimension by dimension."""
    over = sorted((axis % x.ndim for axis in dims(axes, x)), reverse=True)
    for axis in over:
        x = x.prod(axis, keepdim=bool(keep_dims))
    return x


def arg(
    x: Tensor, axis: Any = -1, keep_dims: Any = False, output_dtype: Any = None, *, how: Callable[..., Tensor]
) -> Tensor:
    """Where the largest or smallest value is."""
    return how(x, int(axis), keepdim=bool(keep_dims))


def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    """Running sum along one dimension."""
    at = int(axis)
    x = x.flip(at) if bool(reverse) else x
    total = x.cumsum(at)
    total = total - x if bool(exclusive) else total
    return total.flip(at) if bool(reverse) else total


def band_part(x: Tensor, lower: Any = -1, upper: Any = -1) -> Tensor:
    """The given numbers of diagonals below and above the main one; -1 keeps all of a side."""
    x = x if int(lower) < 0 else x.triu(-int(lower))
    return x if int(upper) < 0 else x.tril(int(upper))


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
    "avg_pool": mil_windows.avg_pool,
    "band_part": band_part,
    "batch_norm": batch_norm,
    "cast": cast,
    "ceil": lambda x: x.ceil(),
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, x * alpha).clamp(max=number(beta)),
    "clip": lambda x, alpha, beta: x.clamp(number(alpha), number(beta)),
    "concat": mil_shapes.concat,
    "conv": mil_windows.conv,
    "conv_transpose": mil_windows.conv_transpose,
    "cos": lambda x: x.cos(),
    "cosh": lambda x: x.cosh(),
    "crop": mil_windows.crop,
    "cumsum": cumsum,
    "depth_to_space": mil_shapes.depth_to_space,
    "einsum": einsum,
    "elu": lambda x, alpha: F.elu(x, number(alpha)),
    "equal": lambda x, y: x == y,
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "expand_dims": mil_shapes.expand_dims,
    "fill": mil_shapes.fill,
    "fill_like": lambda ref_tensor, value=0.0: mil_shapes.fill(ref_tensor.shape, value),
    "flatten2d": lambda x, axis=1: x.reshape(math.prod(x.shape[: int(axis)]), -1),
    "floor": lambda x: x.floor(),
    "floor_div": floor_divide,
    "gather": mil_shapes.gather,
    "gather_along_axis": mil_shapes.gather_along_axis,
    "gather_nd": mil_shapes.gather_nd,
    "gelu": gelu,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "gru": mil_recurrent.gru,
    "identity": lambda x: x,
    "instance_norm": instance_norm,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + number(epsilon)),
    "l2_norm": l2_norm,
    "l2_pool": mil_windows.l2_pool,
    "layer_norm": layer_norm,
    "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, x * alpha),
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "linear_activation": lambda x, alpha, beta: x * alpha + beta,
    "list_gather": lambda ls, indices: torch.stack([ls[at] for at in ints(indices)]),
    "list_length": lambda ls: torch.tensor(len(ls)),
    "list_read": lambda ls, index: ls[int(index)],
    "list_scatter": mil_shapes.list_scatter,
    "list_write": mil_shapes.list_write,
    "local_response_norm": local_response_norm,
    "log": lambda x, epsilon=0.0: (x + number(epsilon)).log(),
    "logical_and": lambda x, y: x.bool() & y.bool(),
    "logical_not": lambda x: ~x.bool(),
    "logical_or": lambda x, y: x.bool() | y.bool(),
    "logical_xor": lambda x, y: x.bool() ^ y.bool(),
    "lstm": mil_recurrent.lstm,
    "make_list": lambda elem_shape=(), init_length=1, dynamic_length=True, dtype="fp32": [None] * int(init_length),
    "matmul": matmul,
    "max_pool": mil_windows.max_pool,
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "mod": lambda x, y: torch.remainder(x, y),
    "mul": lambda x, y: x * y,
    "non_zero": lambda x: x.nonzero(),
    "not_equal": lambda x, y: x != y,
    "one_hot": mil_shapes.one_hot,
    "pad": mil_windows.pad,
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
    "reshape": mil_shapes.reshape,
    "reshape_like": mil_shapes.reshape_like,
    "resize": mil_windows.resize,
    "resize_bilinear": mil_windows.resize_bilinear,
    "resize_nearest_neighbor": mil_windows.resize_nearest_neighbor,
    "reverse": lambda x, axes=None: x.flip(dims(axes, x)),
    "rnn": mil_recurrent.rnn,
    "round": lambda x: x.round(),
    "rsqrt": lambda x, epsilon=0.0: (x + number(epsilon)).rsqrt(),
    "scaled_dot_product_attention": attention,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "scatter": mil_shapes.scatter,
    "scatter_along_axis": mil_shapes.scatter_along_axis,
    "scatter_nd": mil_shapes.scatter_nd,
    "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.long),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha, beta: (x * alpha + beta).clamp(0, 1),
    "sign": lambda x: x.sign(),
    "silu": lambda x: F.silu(x),
    "sin": lambda x: x.sin(),
    "sinh": lambda x: x.sinh(),
    "slice_by_index": mil_shapes.slice_by_index,
    "slice_by_size": mil_shapes.slice_by_size,
    "slice_update": mil_shapes.slice_update,
    "sliding_windows": mil_shapes.sliding_windows,
    "softmax": lambda x, axis=-1: x.softmax(int(axis)),
    "softplus": lambda x: F.softplus(x),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: F.softsign(x),
    "space_to_depth": mil_shapes.space_to_depth,
    "split": mil_shapes.split,
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x.square(),
    "squeeze": mil_shapes.squeeze,
    "stack": lambda values, axis: torch.stack(list(values), int(axis)),
    "sub": lambda x, y: x - y,
    "tan": lambda x: x.tan(),
    "tanh": lambda x: x.tanh(),
    "threshold": lambda x, alpha: x.clamp(min=number(alpha)),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0.0),
    "tile": lambda x, reps: x.repeat(ints(reps)),
    "topk": mil_shapes.topk,
    "transpose": lambda x, perm: x.permute(ints(perm)),
    "upsample_bilinear": mil_windows.upsample_bilinear,
    "upsample_nearest_neighbor": mil_windows.upsample_nearest_neighbor,
}


# Inputs that are a row of values, also when only one is given.
TUPLE_INPUTS = {("concat", "values"), ("stack", "values"), ("einsum", "values")} | {
    ("reshape_like", name) for name in ("ref_tensors", "begins", "ends", "end_masks")
}
