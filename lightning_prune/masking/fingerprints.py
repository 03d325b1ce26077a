"""Fingerprints of weights and masks, by which replicas are compared: cheap, and the same in all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_prune.masks import FORMATS

__all__ = ["bit_sum", "place_sum"]

_CHUNK = 2**20  # elements fingerprinted at a time


def bit_sum(tensor: Tensor) -> int:
    """A cheap fingerprint of a floating-point tensor: the sum of its bits as integers, whatever its layout in memory.

    Example:
        >>> bit_sum(torch.tensor([1.0, 0.0])) == bit_sum(torch.tensor([1.0000001, 0.0]))
        False
    """
    if tensor.numel() == 0:
        return 0
    bits = (tensor if tensor.ndim else tensor.view(1)).detach().view(FORMATS[tensor.dtype].integer)
    rows = max(1, _CHUNK * len(bits) // bits.numel())  # summed in int64, of which no whole copy is made
    return sum(int(piece.sum(dtype=torch.int64)) for piece in torch.split(bits, rows))


def place_sum(mask: Tensor) -> int:
    """A cheap fingerprint of mask bytes that differs where the zeros lie elsewhere, whatever their number and layout.

    Eight bytes are read as a number, and multiplied by a factor of their place. Sums wrap around at 64 bits.

    Example:
        >>> places = [place_sum(torch.tensor(mask, dtype=torch.uint8)) for mask in ([1, 0], [0, 1])]
        >>> places[0] == places[1]
        False
    """
    flat = mask.detach().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    total = torch.zeros((), dtype=torch.int64, device=mask.device)
    for number, piece in enumerate(torch.split(flat, 8 * _CHUNK)):
        words = nn.functional.pad(piece, (0, -len(piece) % 8)).view(torch.int64)
        factors = torch.arange(len(words), device=mask.device).add_(number * _CHUNK + 1).mul_(0x1E37_79B9_7F4A_7C15)
        factors ^= factors >> 29  # multiples of one number would let zeros that move in opposite directions cancel out
        total += words.mul(factors.mul_(0x3F58_476D_1CE4_E5B9)).sum()
    return int(total)
