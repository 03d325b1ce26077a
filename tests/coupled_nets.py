"""Networks whose channels go together, for tests of coupled pruning."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

__all__ = ["Residual", "rule"]


class Residual(pl.LightningModule):
    """A convolution, a residual block behind it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)
        self.example_input_array = torch.linspace(-1, 1, 2 * 36).reshape(2, 1, 6, 6)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of one channel."""
        features = self.stem_norm(self.stem(images)).relu()
        features = features + self.outer(self.inner_norm(self.inner(features)).relu())
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whose decay reaches norms and biases too."""
        return torch.optim.AdamW(self.parameters(), 1e-2)


def rule(sparsity: float = 0.5, **settings: object) -> dict[str, object]:
    """A rule for channels, which is due at the steps 2, 4 and 6."""
    return {
        "scheduler": {"update_steps": [2, 4, 6]},
        "target_sparsity": sparsity,
        "granularity": "per_channel",
        **settings,
    }
