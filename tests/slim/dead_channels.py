"""What the tests of slim share: channels made dead, and what is left of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.slim import SlimResult, result, slim

result.TIMED_SECONDS = 0.0  # the tests do not look at the latency

TRANSPOSED = nn.modules.conv._ConvTransposeNd


def kill(layer: nn.Module, channels: Sequence[int], constant: float | None = None) -> None:
    """Zero output channels of a layer; its bias there becomes 0, or constants from the given one on."""
    index = torch.tensor(list(channels), dtype=torch.long)
    layer.weight.data.index_fill_(1 if isinstance(layer, TRANSPOSED) and layer.groups == 1 else 0, index, 0.0)
    if layer.bias is not None:
        values = torch.linspace(constant or 0.0, 2 * (constant or 0.0), len(index))
        layer.bias.data[index] = values.to(layer.bias.dtype)


def stir(model: nn.Module) -> nn.Module:
    """Give norms the statistics and scales of a trained network, and leave it in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
    return model.eval()


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors of an answer."""
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(model.eval()(*args))


def slimmed(model: nn.Module, inputs: Any, **options: Any) -> SlimResult:
    """Make a network slim in double precision, and compare it with the whole one anew."""
    model = model.double()
    wide = lambda item: item.double() if item.is_floating_point() else item  # noqa: E731
    inputs = torch.utils._pytree.tree_map_only(Tensor, wide, inputs)
    result = slim(model, inputs, **options)
    for ours, theirs in zip(answers(result.model, inputs), answers(model, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    return result


def sizes(result: SlimResult) -> dict[str, tuple[int, ...]]:
    """The shapes of weights that became smaller."""
    return {layer.name: layer.slim_shape for layer in result.layers if layer.shape != layer.slim_shape}


class Net(nn.Module):
    """Layers by name, and a forward as a function of them and the inputs."""

    def __init__(self, forward: Any, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.call = forward

    def forward(self, *inputs: Any) -> Any:
        return self.call(self, *inputs)
