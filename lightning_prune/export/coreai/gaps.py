"""What coreai-torch 0.4.3 has no operation for, or a wrong one, broken into what it knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.export.coreai.installed import CoreAI
from lightning_prune.export.coreai.silence import silence
from lightning_prune.export.decompositions import SIMPLER, decompose_unknown

__all__ = ["decompose", "unknown_in"]

aten = torch.ops.aten
# How the converter names operations that it does not know.
UNKNOWN = re.compile(r"(?:unsupported ATen|non-decomposed) ops: ((?:[\w.]+(?:, )?)+)")


def decompose(core: CoreAI, exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Break a captured program into core operations, and those that the converter does not know into others.

    Its own table leaves core operations whole, of which it lacks some: torch can break up most of them too.
    """
    from torch._decomp import decomposition_table  # of core operations too

    program = exported.run_decompositions({**core.torch.get_decomp_table(), **OTHERWISE})
    return decompose_unknown(program, partial(unknown_operations, core), {**decomposition_table, **SIMPLER})


def unknown_operations(core: CoreAI, program: torch.export.ExportedProgram) -> list[Any]:
    """The operations of a program that the converter does not know."""
    names = set[str]()
    try:
        with silence():
            core.torch.TorchConverter().add_exported_program(program)  # looks through it, and does not convert it yet
    except ValueError as error:
        names.update(unknown_in(error))
    used = dict.fromkeys(node.target for node in program.graph.nodes)
    return [target for target in used if str(target) in names or str(target).startswith("prims.")]


def unknown_in(error: ValueError) -> list[str]:
    """The names of the operations that an error of the converter is about."""
    found = UNKNOWN.search(str(error))
    return [] if found is None else [name.strip(".") for name in found.group(1).split(", ")]


def average_within(
    x: Tensor,
    kernel_size: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Averages that leave the padding out, as a quotient of averages that do not: the converter counts it in."""
    if count_include_pad or not any(padding) or divisor_override is not None:
        kept: Tensor = NotImplemented  # which tells torch to leave the operation as it is
        return kept
    rest = kernel_size, list(stride), list(padding), ceil_mode
    averages: Tensor = aten.avg_pool2d.default(x, *rest)
    shares: Tensor = aten.avg_pool2d.default(torch.ones(1, 1, *x.shape[-2:], dtype=x.dtype), *rest)
    return averages / shares


def log_of_sum(x: Tensor, other: Tensor) -> Tensor:
    """``log(exp(x) + exp(other))``; torch's own way multiplies booleans, which the runtime cannot."""
    return torch.maximum(x, other) + (-(x - other).abs()).exp().log1p()


# What torch or the converter would break up otherwise.
OTHERWISE = {
    aten.avg_pool2d.default: average_within,
    aten.col2im.default: SIMPLER[aten.col2im.default],
    aten.logaddexp.default: log_of_sum,
}
