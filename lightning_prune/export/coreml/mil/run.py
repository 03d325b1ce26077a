"""Run the program of a saved package on torch kernels, on any system.

Core ML itself runs on macOS only. Here the operations that lie in the package are executed one by one with
``kernels``, on the weights that lie there. What cannot be executed is named, and so is
what depends on it; it is never taken as right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.export.coreml.mil.kernels import KERNELS, TUPLE_INPUTS
from lightning_prune.export.coreml.mil.program import Block, Operation, Package
from lightning_prune.export.coreml.mil.shapes import CannotRun

__all__ = ["Run", "run", "tensors_of"]

HALF_MAX = 65504.0


@dataclass
class Run:
    """The results of a run.

    ``outputs`` holds what could be computed, ``skipped`` why the rest could not (``"op 'crop_resize'"``),
    ``overflowed`` the operations whose float16 result would not fit into float16, ``states`` what is kept for the next
    call.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    overflowed: list[str] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)


class Missing:
    """A value that could not be computed."""


MISSING = Missing()


def to_torch(array: Any) -> Any:
    """A constant as kernels take it: text as ``str``, floats as float32, integers as int64."""
    if array.dtype == object:
        return str(array.reshape(-1)[0]) if array.size == 1 else [str(text) for text in array.reshape(-1)]
    if array.dtype == np.bool_:
        return torch.from_numpy(array.copy())
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(np.array(array, dtype=kind))


def tensors_of(package: Package, replaced: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The constants of a package as kernels take them, by name.

    Args:
        package: As read from disk.
        replaced: Arrays to use instead of constants of the package, by name.
    """
    arrays = {name: constant.values for name, constant in package.constants.items()} | dict(replaced or {})
    return {name: to_torch(array) for name, array in arrays.items()}


def run(
    package: Package,
    inputs: Mapping[str, Tensor],
    constants: Mapping[str, Any] | None = None,
    states: Mapping[str, Any] | None = None,
) -> Run:
    """Execute a package's program.

    Args:
        package: As read by :func:`lightning_prune.export.coreml.mil.program.read_package`.
        inputs: One tensor for each input of the program; floating point ones are taken as float32.
        constants: What :func:`tensors_of` gives, where the program is run more than once. Default: the package's.
        states: What the last call left. Default: zeros, with which Core ML begins.
    """
    result = Run(states={name: torch.zeros(shape) for name, shape in package.states.items()} | dict(states or {}))
    values: dict[str, Any] = dict(inputs)
    values.update(tensors_of(package) if constants is None else constants)
    with torch.no_grad():
        run_block(package.main, values, result)
    for name in package.main.outputs:
        if not isinstance(values.get(name, MISSING), Missing):
            result.outputs[name] = values[name]
    result.skipped = list(dict.fromkeys(result.skipped))
    return result


def run_block(block: Block, values: dict[str, Any], result: Run) -> list[Any]:
    """Execute the operations of a block in order; returns its outputs."""
    for op in block.operations:
        try:
            made = run_operation(op, values, result)
        except CannotRun as reason:
            if str(reason):
                result.skipped.append(str(reason))
            made = [MISSING] * len(op.outputs)
        for (name, dtype, _), value in zip(op.outputs, made, strict=True):
            values[name] = value
            if dtype == "fp16" and isinstance(value, Tensor) and value.numel() and overflows(value):
                result.overflowed.append(f"{op.type} {name!r}")
    return [values.get(name, MISSING) for name in block.outputs]


def overflows(value: Tensor) -> bool:
    """Whether a finite number is too large for float16; infinities are put in on purpose, to mask attention."""
    low, high = torch.aminmax(value)  # one pass, enough nearly always
    if low >= -HALF_MAX and high <= HALF_MAX:
        return False
    return bool(((value.abs() > HALF_MAX) & value.isfinite()).any())


def run_operation(op: Operation, values: Mapping[str, Any], result: Run) -> Sequence[Any]:
    """Execute one operation.

    Raises:
        CannotRun: It is not known, or its result is not what the program declares; without text if one of its inputs is
            missing.
    """
    if op.type in ("read_state", "write_state"):
        return run_state(op, values, result)
    arguments: dict[str, Any] = {}
    for name, given in op.inputs.items():
        row = [values.get(value, MISSING) if isinstance(value, str) else to_torch(value) for value in given]
        if any(isinstance(value, Missing) for value in row):
            raise CannotRun
        arguments[name] = row if len(row) != 1 or (op.type, name) in TUPLE_INPUTS else row[0]
    if op.type in ("cond", "while_loop"):
        return run_control(op, arguments, dict(values), result)
    if op.type == "classify":
        probabilities = arguments["probabilities"].reshape(-1)
        return [probabilities.argmax(), probabilities]
    kernel = KERNELS.get(op.type)
    if kernel is None:
        raise CannotRun(f"op {op.type!r}")
    try:
        made = kernel(**arguments)
    except CannotRun as reason:
        raise CannotRun(f"op {op.type!r} ({reason})") from reason
    except Exception as error:
        raise CannotRun(f"op {op.type!r} (named {op.name!r}: {type(error).__name__}: {error})") from error
    made = made if isinstance(made, tuple) else (made,)
    for (name, _, shape), value in zip(op.outputs, made, strict=False):
        if isinstance(value, Tensor) and not fits(tuple(value.shape), shape):
            raise CannotRun(f"op {op.type!r} (named {name!r}: computed shape {tuple(value.shape)}, declared {shape})")
    if len(made) != len(op.outputs):
        raise CannotRun(f"op {op.type!r} (named {op.name!r}: {len(made)} results for {len(op.outputs)} outputs)")
    return made


def fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether a shape is one that the program declares; -1 stands for any size."""
    return len(shape) == len(declared) and all(b in (-1, a) for a, b in zip(shape, declared, strict=True))


def run_state(op: Operation, values: Mapping[str, Any], result: Run) -> Sequence[Any]:
    """Read or write what the program keeps; it is kept in float16, whatever is computed in."""
    state = str(op.inputs["input"][0])
    if state not in result.states:
        raise CannotRun(f"op {op.type!r} (of {state!r}, which is no state of the program)")
    if op.type == "read_state":
        if isinstance(result.states[state], Missing):
            raise CannotRun
        return [result.states[state]]
    written = op.inputs["data"][0]
    value = values.get(written, MISSING) if isinstance(written, str) else to_torch(written)
    if not isinstance(value, Missing) and overflows(value.float()):
        result.overflowed.append(f"{op.type} {state!r}")
    result.states[state] = value if isinstance(value, Missing) else value.half().float()
    return []


def run_control(op: Operation, arguments: Mapping[str, Any], values: dict[str, Any], result: Run) -> Sequence[Any]:
    """Execute a branch or a loop."""
    if op.type == "cond":
        return run_block(op.blocks[0 if bool(arguments["pred"]) else 1], values, result)
    given = arguments["loop_vars"]
    state = list(given) if isinstance(given, list) else [given]
    condition, body = op.blocks
    for _ in range(100_000):
        values.update(zip((name for name, _, _ in condition.inputs), state, strict=True))
        go_on = run_block(condition, values, result)[0]
        if isinstance(go_on, Missing) or any(isinstance(value, Missing) for value in state):
            raise CannotRun
        if not bool(go_on):
            return state
        values.update(zip((name for name, _, _ in body.inputs), state, strict=True))
        state = run_block(body, values, result)
    raise CannotRun("op 'while_loop' (100,000 rounds)")
