"""Find a model's weights among the constants of a saved package, and compare them value by value.

A converter renames weights, folds batch norms into them, transposes them, puts the gates of an LSTM in another order,
or cuts them in pieces. Names prove nothing, so a weight is recognised by what it holds: zeros wherever the mask prunes,
and the values of the model, rounded to the package's precision, times at most one factor per output channel: one that
a batch norm or scale of the model can have made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_prune.export.coreml.mil import Array, Constant, Operation, Package

__all__ = ["Match", "compare", "find"]


# The gates of recurrent layers in the package, in the order that torch has them.
GATES = {"lstm": (0, 1, 3, 2), "gru": (0, 2, 1)}
# Rounding a value, and rounding the value that a channel's factor is read from, each cost half a unit in the last
# place.
RELATIVE = {"float16": 1.05 * 2**-10, "float32": 1.05 * 2**-21}
# The smallest numbers above zero; the distance of small numbers to each other.
SMALLEST = {"float16": 2.0**-24, "float32": 2.0**-149}


@dataclass(frozen=True)
class Match:
    """A weight that was found: in which constants, and how exactly.

    Attributes:
        constants: The constants that hold it; more than one if it was cut in pieces.
        scaled: Whether each output channel was multiplied by a factor.
        rounded_away: Kept weights that are too small for the precision.
        max_error: Largest difference, as a fraction of the largest value.
    """

    constants: tuple[Constant, ...]
    scaled: bool
    rounded_away: int
    max_error: float


def compare(
    stored: Array,
    weight: Array,
    keep: Array,
    precision: str,
    groups: int | None = None,
    scales: Sequence[Array] | None = (),
) -> tuple[bool, int, float] | None:
    """Compare a stored array with a weight of the same shape.

    Args:
        stored: What the package holds, in the weight's layout.
        weight: The model's weight, float32.
        keep: The keep-mask, bool.
        precision: ``"float16"`` or ``"float32"``, to which the package rounds.
        groups: Of a transposed convolution, whose output channels lie in dimension 1; None for everything else, with
            its output channels in dimension 0.
        scales: The model's own vectors and numbers that can have been folded in; only they explain that some channels
            vanish or change their sign. None takes any factors.

    Returns:
        Whether it is scaled by a factor per output channel, the kept weights that are too small for the precision, and
        the largest error as a fraction of the largest value; None if the array is not this weight.
    """
    if stored.shape != weight.shape or np.any(stored[~keep]):
        return None
    stored, exact = stored.astype(np.float64), np.where(keep, weight, 0).astype(np.float64)
    rounded = exact.astype(precision).astype(np.float64)
    tiny = (exact != 0) & (np.abs(exact) < SMALLEST[precision])  # rounds to zero, or is kept as the smallest number
    if np.all((stored == rounded) | (tiny & (np.abs(stored) <= SMALLEST[precision]))):
        return False, int(np.count_nonzero(tiny)), 0.0
    if stored.ndim < 2 or stored.size == 0:
        return None
    rows, given = channel_rows(stored, groups), channel_rows(exact, groups)
    # A factor is read where the weight is largest, so that rounding disturbs it least.
    at = np.abs(given).argmax(1)[:, None]
    largest = np.take_along_axis(given, at, 1)
    factor = np.divide(np.take_along_axis(rows, at, 1), largest, out=np.zeros_like(largest), where=largest != 0)
    if not np.isfinite(factor).all():
        return None
    if scales is not None and not explained(factor[:, 0], largest[:, 0], precision, scales):
        return None
    scaled = factor * given
    error = np.abs(rows - scaled)
    if np.any(error > RELATIVE[precision] * np.abs(scaled) + 2 * SMALLEST[precision]):
        return None
    lost = (scaled != 0) & (np.abs(scaled) < SMALLEST[precision] / 2)
    return True, int(np.count_nonzero(lost)), float(error.max() / max(np.abs(rows).max(), 1e-30))


def explained(factor: Array, largest: Array, precision: str, scales: Sequence[Array]) -> bool:
    """Whether the factors of a layer can be those of a folded scale.

    Positive ones can, and one negative number for the whole layer can stand in ``forward``. Else a channel may only
    change its sign where a scale of the model is negative, and only vanish where one makes it too small for the
    precision.

    Args:
        factor: Of each output channel.
        largest: The value of each channel that its factor was read from; 0 in a channel without kept weights.
        precision: As for :func:`compare`.
        scales: As for :func:`compare`.
    """
    alive = largest != 0
    factor, largest = factor[alive], np.abs(largest[alive])
    if (factor > 0).all() or (factor[0] < 0 and np.allclose(factor, factor[0], 4 * RELATIVE[precision], 0)):
        return True
    fitting = [scale[alive] if scale.size > 1 else scale for scale in scales if scale.size in (1, alive.size)]
    turned, lost = np.zeros((2, factor.size), np.bool_)
    for scale in fitting:
        turned |= scale < 0
    for scale in (*fitting, np.abs(factor).max() or 1.0):
        lost |= np.abs(scale) * largest < SMALLEST[precision]
    return bool(np.where(factor < 0, turned, (factor > 0) | lost).all())


def channel_rows(array: Array, groups: int | None) -> Array:
    """An array as ``(output channels, values)``."""
    if groups is None:
        return array.reshape(len(array), -1)
    split = array.reshape(groups, len(array) // groups, array.shape[1], -1)
    return split.transpose(0, 2, 1, 3).reshape(groups * array.shape[1], -1)


def layouts(constant: Constant, shape: tuple[int, ...], uses: list[tuple[Operation, str]]) -> Iterator[Array]:
    """A constant's values in the layouts that a converter makes of a weight of the given shape."""
    values = constant.values
    types = {op.type for op, _ in uses}
    for kind in types & GATES.keys():
        if values.ndim == 2 and values.shape == shape:
            gates = values.reshape(len(GATES[kind]), -1, values.shape[1])
            yield gates[list(GATES[kind])].reshape(values.shape)
    if values.shape == shape:
        yield values
    if values.ndim == 2 and values.T.shape == shape:
        yield values.T
    if values.shape != shape and [s for s in values.shape if s != 1] == [s for s in shape if s != 1]:
        yield values.reshape(shape)


PRECISIONS = {"fp16": "float16", "fp32": "float32"}


def find(weight: Array, keep: Array, package: Package, scales: Sequence[Array] | None = ()) -> list[Match]:
    """All places in a package that hold a weight; ``scales`` as for :func:`compare`."""
    found = []
    for constant in package.constants.values():
        uses = package.uses.get(constant.name, [])
        if not uses or constant.values.size != weight.size or constant.dtype not in PRECISIONS:
            continue
        for values in layouts(constant, weight.shape, uses):
            groups = groups_of(uses, package.constants)
            result = compare(values, weight, keep, PRECISIONS[constant.dtype], groups, scales)
            if result is not None:
                found.append(Match((constant,), *result))
                break
    if not found and weight.ndim == 2:
        pieces = find_pieces(weight, keep, package)
        found = [] if pieces is None else [pieces]
    return found


def find_pieces(weight: Array, keep: Array, package: Package) -> Match | None:
    """A weight cut along its rows, as attention cuts one projection into those of query, key and value."""
    row, parts, scaled, lost, worst = 0, [], False, 0, 0.0
    while row < len(weight):
        for constant in package.constants.values():
            values = constant.values
            if constant.dtype not in PRECISIONS or values.ndim != 2 or constant.name not in package.uses:
                continue
            for piece in (values, values.T):
                length = len(piece)
                if piece.shape[1] != weight.shape[1] or length >= len(weight) or row + length > len(weight):
                    continue
                result = compare(
                    piece, weight[row : row + length], keep[row : row + length], PRECISIONS[constant.dtype]
                )
                if result is not None:
                    break
            else:
                continue
            break
        else:
            return None
        parts.append(constant)
        scaled, lost, worst = scaled or result[0], lost + result[1], max(worst, result[2])
        row += length
    return Match(tuple(parts), scaled, lost, worst)


def groups_of(uses: list[tuple[Operation, str]], constants: Mapping[str, Constant]) -> int | None:
    """The groups of the transposed convolution that reads a constant, if one does."""
    for op, _ in uses:
        if op.type == "conv_transpose":
            value = op.inputs.get("groups", (np.int32(1),))[0]
            return int(constants[value].values if isinstance(value, str) else value)
    return None
