"""Straight-through gradients in plain PyTorch: what the library must train, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS = 12
EVERY_STEP = {"begin_step": 1, "frequency": 1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, **SGD),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.02),
    "sgd, one by one": lambda weights: torch.optim.SGD(weights, foreach=False, **SGD),
    "adamw, fused": lambda weights: torch.optim.AdamW(weights, lr=0.02, fused=True),
}


class StraightThrough(torch.autograd.Function):
    """The reference: the product with the mask, whose gradient is passed on as it is."""

    @staticmethod
    def forward(ctx, weight, mask):
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(6, 16, generator=generator), torch.randn(6, 4, generator=generator)) for _ in range(number)]


def zeroes_two_of_four(weight: Tensor) -> Tensor:
    """A 2:4 mask, written without the library."""
    groups = weight.detach().abs().view(-1, 4)
    return torch.zeros_like(groups).scatter_(1, groups.topk(2).indices, 1.0).view_as(weight)


def zeroes_half(weight: Tensor) -> Tensor:
    """A mask of the larger half of all weights, likewise."""
    flat = weight.detach().abs().flatten()
    return torch.zeros_like(flat).index_fill_(0, flat.topk(flat.numel() // 2).indices, 1.0).view_as(weight)


def reference(optimizer, choose, *, frequency=1, decay=0.0, clip=None, accumulate=1, steps=STEPS) -> list[Tensor]:
    """Train dense weights, straight through masks that are chosen after every ``frequency`` steps."""
    model = network()
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    masks = [torch.ones_like(weight) for weight in weights]
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        for inputs, targets in batches(STEPS * accumulate)[(step - 1) * accumulate : step * accumulate]:
            first, second = (StraightThrough.apply(*pair) for pair in zip(weights, masks, strict=True))
            hidden = nn.functional.linear(inputs, first, biases[0]).tanh()
            loss = (nn.functional.linear(hidden, second, biases[1]) - targets).square().mean()
            (loss / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad += decay * (1 - mask) * weight.detach()
        optimizer.step()
        if (step - 1) % frequency == 0:
            masks = [choose(weight) for weight in weights]
    return [*(weight.detach() for weight in weights), *(bias.detach() for bias in biases), *masks]
