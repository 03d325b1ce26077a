"""Operations of Core ML programs that move values without computing: shapes, slices, picking and placing.

See :mod:`lightning_prune.export.coreml.mil.kernels`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CannotRun",
    "concat",
    "depth_to_space",
    "dims",
    "expand_dims",
    "fill",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "ints",
    "list_scatter",
    "list_write",
    "number",
    "one_hot",
    "reshape",
    "reshape_like",
    "scatter",
    "scatter_along_axis",
    "scatter_nd",
    "slice_by_index",
    "slice_by_size",
    "slice_update",
    "slices",
    "sliding_windows",
    "space_to_depth",
    "split",
    "squeeze",
    "topk",
    "wrapped",
]


class CannotRun(Exception):
    """An operation, or the way it is used, is not known here."""


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
    for axis in sorted(
        ([d for d in range(x.ndim) if x.shape[d] == 1] if axes is None else [a % x.ndim for a in ints(axes)]),
        reverse=True,
    ):
        x = x.squeeze(axis)
    return x


def slice_by_index(
    x: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Tensor:
    """A Python slice in every dimension; masks open an end, or take one element and drop the dimension."""
    for axis, picked in reversed(list(enumerate(slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)))):
        x = (
            x.select(axis, picked)
            if isinstance(picked, int)
            else x.index_select(axis, torch.tensor(list(picked), dtype=torch.long))
        )
    return x


def slices(
    x: Tensor, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any
) -> list[Any]:
    """For each dimension the range of positions that a slice takes, or the one position of a dropped dimension."""
    off = [False] * x.ndim
    steps = [1] * x.ndim if stride is None else ints(stride)
    open_begin, open_end, drop = (
        off if mask is None else [bool(v) for v in mask] for mask in (begin_mask, end_mask, squeeze_mask)
    )
    result: list[Any] = []
    for axis, (first, last) in enumerate(zip(ints(begin), ints(end), strict=True)):
        if drop[axis]:
            result.append(first % x.shape[axis] if first < 0 else first)
            continue
        bounds = slice(None if open_begin[axis] else first, None if open_end[axis] else last, steps[axis])
        result.append(range(*bounds.indices(x.shape[axis])))
    return result


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
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
    size = x.shape[int(axis)] // int(num_splits) if split_sizes is None else ints(split_sizes)
    return torch.split(x, size, int(axis))


def concat(values: Sequence[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    """Tensors one after another, or one slice of each in turn; single numbers make a row."""
    rows = [value if value.ndim else value.reshape(1) for value in values]
    if bool(interleave):
        along = int(axis) % rows[0].ndim
        return torch.stack(rows, along + 1).flatten(along, along + 1)
    return torch.cat(rows, int(axis))


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


def gather(x: Tensor, indices: Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = None) -> Tensor:
    """Slices along one dimension, in the shape of ``indices``."""
    at, batch = int(axis) % x.ndim, int(batch_dims)
    if batch:
        pairs = zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
        rows = torch.stack([gather(size, where, at - batch) for size, where in pairs])
        return rows.reshape([*x.shape[:batch], *rows.shape[1:]])
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


def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = None
) -> Tensor:
    """The inverse of ``gather`` for a row of indices."""
    at = int(axis) % data.ndim
    if indices.ndim != 1:
        raise CannotRun("scatter with indices of more than one dimension")
    spread = indices.reshape([-1 if dim == at else 1 for dim in range(data.ndim)]).expand(updates.shape)
    return scatter_along_axis(data, spread, updates, at, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Any = None
) -> Tensor:
    """The inverse of ``gather_nd``."""
    if mode not in ("add", "update"):
        raise CannotRun(f"scatter_nd with mode {mode}")
    where = tuple(wrapped(indices[..., k], data.shape[k]) for k in range(indices.shape[-1]))
    return data.clone().index_put_(where, updates, accumulate=mode == "add")


def topk(
    x: Tensor,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: Any = None,
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
