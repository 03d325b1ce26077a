"""Size of a ResNet-50-shaped network as a Core ML package, dense and pruned, beside what Apple publishes.

Apple's numbers are of trained networks (https://apple.github.io/coremltools/docs-guides/source/opt-pruning-perf.html);
sizes depend on shapes and sparsity only, so random weights stand in for trained ones here. The time is of the whole
export: convert, save, read back, compare every weight, run the saved program on five fresh inputs.

python -m benchmarks.bench_export
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import table, write_page
from lightning_prune.export import CoreMLExport

APPLE = {0.5: "1.77x", 0.75: "3.17x", 0.9: "8.6 MB"}


class Bottleneck(nn.Module):
    """Three convolutions around a skip connection."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)),
        )
        self.skip = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Sequential:
    """The shapes of ResNet-50: 25.6 M parameters, 53 convolutions, one linear layer."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    c_in = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            layers.append(Bottleneck(c_in, width, stride if index == 0 else 1))
            c_in = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def prune_to(model: nn.Module, sparsity: float) -> None:
    """Zero the smallest part of every convolution and linear layer."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight.view(-1)
                weight[weight.abs().argsort()[: int(sparsity * weight.numel())]] = 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=224, help="height and width of the image, in pixels")
    args = parser.parse_args()
    inputs = torch.rand(1, 3, args.size, args.size)
    rows = []
    dense_bytes = 0
    cases = [(0.0, None), (0.5, None), (0.75, None), (0.9, None), (0.75, "int8"), (0.75, "palette4")]
    with tempfile.TemporaryDirectory() as folder:
        for sparsity, compression in cases:
            torch.manual_seed(0)
            model = resnet50()
            prune_to(model, sparsity)
            options = {"compression": compression, "minimum_deployment_target": "iOS18"} if compression else {}
            started = time.perf_counter()
            result = CoreMLExport(Path(folder) / "resnet50.mlpackage", inputs, **options).save(model)
            seconds = time.perf_counter() - started
            dense_bytes = dense_bytes or result.package_bytes
            error = result.compression_error if compression else result.max_error
            rows.append(
                [
                    f"{sparsity:.0%}" + (f" + {compression}" if compression else ""),
                    f"{result.package_bytes / 1e6:.2f} MB",
                    f"{dense_bytes / result.package_bytes:.2f}x",
                    "" if compression else APPLE.get(sparsity, ""),
                    f"{sum(layer.scaled for layer in result.layers)} of {len(result.layers)}",
                    f"{error:.1e}",
                    str(len(result.not_checked)),
                    f"{seconds:.0f} s",
                ]
            )
            print(rows[-1], flush=True)
    headings = [
        "sparsity",
        "package",
        "than dense",
        "Apple",
        "layers with folded norm",
        "largest error",
        "not checked",
        "time",
    ]
    write_page(
        "export.md",
        "ResNet-50 shapes as a Core ML package",
        f"python -m benchmarks.bench_export --size {args.size}",
        table(headings, rows),
        note="Random weights; 'than dense' is against the package of the first row, 'largest error' is of an output on "
        "fresh inputs as a fraction of its largest value. Time depends on what else the machine does: compare sizes.",
    )


if __name__ == "__main__":
    main()
