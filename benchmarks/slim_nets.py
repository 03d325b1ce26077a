"""Networks whose channels are cut in bench_slim, and how channels of them die."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.bench_export import Bottleneck, resnet50

Together = list[nn.Module]  # layers and norms whose channel number i goes in all or in none


@dataclass(frozen=True)
class Subject:
    """A network, and which of its channels die.

    Attributes:
        name: Of the network.
        channels: Which of its channels, in words.
        make: Builds it.
        shape: Of an input.
        groups: The layers and norms whose channels go together; those of a group have equally many.
    """

    name: str
    channels: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: Callable[[nn.Module], list[Together]]


def enliven(net: nn.Module) -> None:
    """Give norms the scales, shifts and statistics that training would have given them, at random."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)


def kill(groups: list[Together], fraction: float, *, live_shifts: bool) -> list[tuple[nn.Module, list[int]]]:
    """Zero random channels.

    Args:
        groups: Layers and norms whose channels go together.
        fraction: Of the channels of each group.
        live_shifts: Zero filters alone; else biases, and scales and shifts of norms too.

    Returns:
        The first layer of each group, and its dead channels.
    """
    dead = []
    with torch.no_grad():
        for group in groups:
            channels = filters(group[0]).shape[0]
            chosen = torch.randperm(channels)[: int(channels * fraction)].sort().values
            for module in group:
                if not live_shifts and module.bias is not None:
                    module.bias[chosen] = 0
                if not live_shifts or not isinstance(module, nn.BatchNorm2d):
                    filters(module)[chosen] = 0
            dead.append((group[0], chosen.tolist()))
    return dead


def filters(module: nn.Module) -> Tensor:
    """The weight of a layer or norm, its output channels first."""
    return module.weight.movedim(1, 0) if isinstance(module, nn.ConvTranspose2d) else module.weight


def convolution(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias, its norm and an activation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two narrow ends, as in MobileNetV2."""

    def __init__(self, c_in: int, c_out: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = c_in * factor
        self.expand = convolution(c_in, wide, 1) if factor > 1 else nn.Sequential()
        self.depthwise = convolution(wide, wide, 3, stride, wide)
        self.project = nn.Sequential(nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        result = self.project(self.depthwise(self.expand(x)))
        return x + result if self.is_residual else result


def mobilenet() -> nn.Sequential:
    """The shapes of MobileNetV2: 3.5 M parameters."""
    layers: list[nn.Module] = [convolution(3, 32, 3, 2)]
    c_in = 32
    for factor, c_out, blocks, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for index in range(blocks):
            layers.append(InvertedResidual(c_in, c_out, stride if index == 0 else 1, factor))
            c_in = c_out
    return nn.Sequential(
        *layers, convolution(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    )


class UNet(nn.Module):
    """Down and up again over four sizes; on the way up, what was there on the way down is concatenated."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(self._double(3 if i == 0 else widths[i - 1], widths[i]) for i in range(depth + 1))
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in reversed(range(depth)))
        self.merge = nn.ModuleList(self._double(2 * widths[i], widths[i]) for i in reversed(range(depth)))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A map of two classes."""
        seen = []
        for index, down in enumerate(self.down):
            x = down(x if index == 0 else nn.functional.max_pool2d(x, 2))
            seen.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(seen[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)

    @staticmethod
    def _double(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(convolution(c_in, c_out), convolution(c_out, c_out))


class Block(nn.Module):
    """Attention and a feed-forward network, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block, of tokens of shape ``(N, T, C)``."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def transformer() -> nn.Sequential:
    """Twelve blocks of width 384 over 196 patches of an image: 22 M parameters, the shapes of ViT-S/16."""
    blocks = [Block(384, 6) for _ in range(12)]
    patches = nn.Sequential(nn.Conv2d(3, 384, 16, 16), nn.Flatten(2))
    return nn.Sequential(patches, Tokens(), *blocks, nn.LayerNorm(384), nn.Linear(384, 1000))


class Tokens(nn.Module):
    """Channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, C, T)`` to ``(N, T, C)``."""
        return x.transpose(1, 2)


def _inner(net: nn.Module) -> list[Together]:
    """What only one layer of a block reads."""
    blocks = [module.body for module in net.modules() if isinstance(module, Bottleneck)]
    return [[body[first], body[first + 1]] for body in blocks for first in (0, 3)]


def _coupled(net: nn.Module) -> list[Together]:
    """Every channel but the classes: what a stage's blocks add up goes together."""
    groups, last = [[net[0], net[1]]], []
    for block in (module for module in net.modules() if isinstance(module, Bottleneck)):
        if not isinstance(block.skip, nn.Identity):
            last = list(block.skip)
            groups.append(last)
        last.extend(block.body[6:])
    return groups + _inner(net)


def _widened(net: nn.Module) -> list[Together]:
    blocks = [module for module in net.modules() if isinstance(module, InvertedResidual)]
    return [[*block.expand[:2], *block.depthwise[:2]] for block in blocks if len(block.expand)]


def _every_convolution(net: nn.Module) -> list[Together]:
    pairs = [[block[0], block[1]] for block in net.modules() if isinstance(block, nn.Sequential) and is_normed(block)]
    return pairs + [[up] for up in net.up]


def is_normed(block: nn.Sequential) -> bool:
    """Whether a block begins with a convolution and its norm."""
    return len(block) > 1 and isinstance(block[1], nn.BatchNorm2d)


def _hidden(net: nn.Module) -> list[Together]:
    return [[block.up] for block in net.modules() if isinstance(block, Block)]


IMAGE = (1, 3, 224, 224)
SUBJECTS = (
    Subject("ResNet-50", "inner", resnet50, IMAGE, _inner),
    Subject("ResNet-50", "all", resnet50, IMAGE, _coupled),
    Subject("MobileNetV2", "widened", mobilenet, IMAGE, _widened),
    Subject("U-Net", "all", UNet, (1, 3, 128, 128), _every_convolution),
    Subject("transformer", "feed-forward", transformer, IMAGE, _hidden),
)
