"""Recurrent operations of Core ML programs: LSTM, GRU and the plain RNN.

See :mod:`lightning_prune.export.coreml.mil.kernels`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.export.coreml.mil.shapes import CannotRun

__all__ = ["gru", "lstm", "rnn"]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
}


def lstm_direction(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Any, acts: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
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
        if direction == "bidirectional":
            weight_ih, weight_hh, bias = weight_ih_back, weight_hh_back, bias_back
        h, c = initial_h[:, -size:], initial_c[:, -size:]
        steps, h, c = lstm_direction(x.flip(0), h, c, weight_ih, weight_hh, bias, acts)
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
