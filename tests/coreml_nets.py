"""Small networks with the structure of real ones, for the tests of the Core ML export."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Small(nn.Module):
    """A convolution with batch norm and a linear layer: exported in half a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.skip = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-18 with two stages less and few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.layers(self.pool(self.stem(x))), 1)
        return self.fc(x.view(x.size(0), -1))


class Inverted(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        mid = 4 * c_in
        self.body = nn.Sequential(
            nn.Conv2d(c_in, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU6(),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU6(),
            nn.Conv2d(mid, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class MobileNet(nn.Module):
    """MobileNetV2 with three blocks: depthwise convolutions, clipped activations."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
        self.body = nn.Sequential(*stem, Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class ViT(nn.Module):
    """A vision transformer: patches, class token, positions, two encoder layers of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 32))
        self.pos = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.encoder(x))[:, 0])


class Attention(nn.Module):
    """Self-attention and cross-attention (whose projection is cut in two), two inputs, a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, query: Tensor, memory: Tensor) -> dict[str, Tensor]:
        x = query + self.attn(query, query, query)[0]
        y, weights = self.cross(x, memory, memory)
        return {"y": self.out(x + y), "weights": weights}


class Tagger(nn.Module):
    """An embedding, a recurrent layer and a classifier of each step."""

    def __init__(self, kind: str = "LSTM", *, bidirectional: bool = True, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.rnn = getattr(nn, kind)(24, 16, layers, batch_first=True, bidirectional=bidirectional)
        self.out = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(tokens))[0])


class UNet(nn.Module):
    """Two levels with skip connections, transposed convolutions with and without batch norm, bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()

        def block(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())

        self.down1, self.down2, self.down3 = block(1, 8), block(8, 16), block(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.up2_norm = nn.BatchNorm2d(16)
        self.merge2, self.merge1 = block(32, 16), block(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        x = self.down3(F.max_pool2d(b, 2))
        x = self.merge2(torch.cat([self.up2_norm(self.up2(x)), b], 1))
        x = self.merge1(torch.cat([self.up1(x), a], 1))
        return F.interpolate(self.out(x), scale_factor=2, mode="bilinear", align_corners=False)


class TwoInputs(nn.Module):
    """An image and a row of numbers in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(7, 32), nn.SiLU(), nn.LayerNorm(32))
        self.out = nn.Linear(96, 3)

    def forward(self, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        z = torch.cat([self.image(image), self.table(features)], 1)
        return {"logits": self.out(z), "embedding": z}


class Audio(nn.Module):
    """Convolutions over one and three dimensions, group and instance norm, a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(4, 16, 5, padding=2),
            nn.GroupNorm(4, 16),
            nn.LeakyReLU(0.1),
            nn.Conv1d(16, 32, 3, dilation=2),
            nn.InstanceNorm1d(32, affine=True),
            nn.ELU(),
            nn.AvgPool1d(2),
        )
        self.volume = nn.Conv3d(1, 8, 3, padding=1)
        self.act = nn.PReLU(32)
        self.out = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.conv(x))
        y = self.volume(x[:, None, :, :, None]).amax((1, 4))
        return self.out((x + y).mean(-1)).softmax(-1), torch.topk(x.mean(1), 3).values


class Decoder(nn.Module):
    """A decoder layer as detection transformers have it: queries that attend to each other before they see the image."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.position = nn.Embedding(6, 16), nn.Embedding(10, 16)
        self.own, self.cross = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
        self.register_buffer("grid", torch.randn(6, 2))
        self.bias = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 16, bias=False))
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(torch.arange(x.shape[1]))
        query = self.query.weight[None].repeat(x.shape[0], 1, 1)
        found = torch.zeros_like(query)
        found = found + self.own(query + found, query + found, found)[0] + self.bias(self.grid)
        return self.out(found + self.cross(found + query, x, x)[0])


def settle(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales as after training, so that folding them changes the weights."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model


def prune(model: nn.Module, sparsity: float = 0.75) -> dict[str, Tensor]:
    """Zero a random part of every weight; returns the keep-masks by parameter name."""
    settle(model)
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "weight" in name:
                masks[name] = torch.rand(parameter.shape) >= sparsity
                parameter.mul_(masks[name]).add_(0.0)  # no -0.0
    return masks
