"""Random small networks of all that is followed, with random dead channels: computes the same, or is refused."""

import torch
from dead_channels import kill, stir
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lightning_prune import SlimError
from lightning_prune.slim import slim
from lightning_prune.slim.proof import difference

STEPS = """conv norm relu gelu depthwise grouped transposed instance prelu pool upsample pad residual gate cat half glu
shuffle scale stack twice"""


class Random(nn.Module):
    """A chain of steps on images, each of which knows how many channels come in."""

    def __init__(self, steps: list[str], biased: list[bool]) -> None:
        super().__init__()
        self.steps, self.layers = steps, nn.ModuleList()
        self.tables = nn.ParameterList()
        channels = 2
        for step, bias in zip(["conv", *steps], [True, *biased], strict=True):
            channels = self._add(step, channels, bias)
        self.head = nn.Conv2d(channels, 2, 1)

    def _add(self, step: str, channels: int, bias: bool) -> int:
        made = {
            "conv": lambda: (nn.Conv2d(channels, 8, 3 if bias else 1, padding=int(bias), bias=bias), 8),
            "norm": lambda: (nn.BatchNorm2d(channels), channels),
            "instance": lambda: (nn.InstanceNorm2d(channels, affine=bias), channels),
            "depthwise": lambda: (nn.Conv2d(channels, channels, 1, groups=channels, bias=bias), channels),
            "grouped": lambda: (nn.Conv2d(channels, 8, 1, groups=2, bias=bias), 8),
            "transposed": lambda: (nn.ConvTranspose2d(channels, 6, 1, bias=bias), 6),
            "prelu": lambda: (nn.PReLU(channels), channels),
            "residual": lambda: (nn.Conv2d(channels, channels, 1, bias=bias), channels),
            "gate": lambda: (nn.Conv2d(channels, channels, 1, bias=bias), channels),
            "twice": lambda: (nn.Conv2d(channels, channels, 1, bias=bias), channels),
            "cat": lambda: (nn.Conv2d(channels, 4, 1, bias=bias), channels + 4),
            "half": lambda: (nn.Identity(), channels // 2),
            "glu": lambda: (nn.Identity(), channels // 2),
            "stack": lambda: (nn.Identity(), 2 * channels),
        }
        if channels % 2 or channels < 4:
            step = "conv" if step in ("half", "glu", "grouped") else step
        layer, outputs = made.get(step, lambda: (nn.Identity(), channels))()
        layer.step = step
        if step == "scale":
            self.tables.append(nn.Parameter(torch.randn(1, channels, 1, 1)))
        self.layers.append(layer)
        return outputs

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        tables = iter(self.tables)
        for layer in self.layers:
            hidden = self._step(layer, hidden, tables)
        return self.head(hidden)

    def _step(self, layer, hidden, tables):
        step = layer.step
        if step == "relu":
            return hidden.relu()
        if step == "gelu":
            return functional.gelu(hidden)
        if step == "pool":
            return functional.avg_pool2d(hidden, 2) if hidden.shape[-1] > 2 else hidden
        if step == "upsample":
            return functional.interpolate(hidden, scale_factor=2)
        if step == "pad":
            return functional.pad(hidden, (1, 0, 0, 1))
        if step == "residual":
            return functional.relu(hidden + layer(hidden))
        if step == "gate":
            return hidden * layer(hidden.mean((2, 3), keepdim=True)).sigmoid()
        if step == "twice":
            return layer(layer(hidden).relu())
        if step == "cat":
            return torch.cat([hidden, layer(hidden)], 1)
        if step == "half":
            first, second = hidden.chunk(2, 1)
            return first - second.tanh()
        if step == "glu":
            return functional.glu(hidden, 1)
        if step == "shuffle":
            return hidden.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).unflatten(2, hidden.shape[2:])
        if step == "scale":
            return hidden * next(tables)
        if step == "stack":
            return torch.stack([hidden, -hidden], 2).flatten(1, 2)
        return layer(hidden)


def _deaden(net: nn.Module, generator: torch.Generator) -> None:
    """Kill about half of the channels of most layers, some with constants behind them."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.numel() < 2 or module is net.head or torch.rand((), generator=generator) < 0.2:
            continue
        count = module.bias.shape[0] if getattr(module, "bias", None) is not None else weight.shape[0]
        dead = (torch.rand(count, generator=generator) < 0.5).nonzero().flatten().tolist()
        constant = None if torch.rand((), generator=generator) < 0.5 else 0.5
        if isinstance(module, nn.PReLU):
            continue
        if isinstance(module, nn.ConvTranspose2d):
            dead = [channel for channel in dead if channel < weight.shape[1]]
        kill(module, dead, constant)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS.split()), st.booleans()), min_size=2, max_size=6), st.integers(0, 10**6)
)
def test_a_random_network_without_its_dead_channels_computes_the_same(steps, seed):
    torch.manual_seed(seed)
    net = stir(Random([step for step, _ in steps], [bias for _, bias in steps])).double()
    _deaden(net, torch.Generator().manual_seed(seed))
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    try:
        result = slim(net, inputs)
    except SlimError:
        return
    other = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert difference([result.model(other)], [net(other)]) <= 1e-9
    assert result.slim_parameters <= result.parameters
