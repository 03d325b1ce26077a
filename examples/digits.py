"""Handwritten digits, which ship with scikit-learn, and a small convolutional network for them."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(LightningDataModule):
    """1,797 grey images of 8 x 8 pixels in 10 classes; a fifth of them is held out."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16  # (N, 1, 8, 8)
        dataset = TensorDataset(images, torch.tensor(data.target))
        split = torch.Generator().manual_seed(0)
        self.train, self.held_out = random_split(dataset, [0.8, 0.2], generator=split)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, 512)

    test_dataloader = val_dataloader


class ConvNet(LightningModule):
    """Three convolutions and two linear layers, 181 thousand weights."""

    def __init__(self, learning_rate: float = 0.05, max_epochs: int = 30) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(_block(1, 32), _block(32, 64), nn.MaxPool2d(2), _block(64, 64), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64 * 4 * 4, 120), nn.ReLU(), nn.Linear(120, 10))
        self.example_input_array = torch.rand(1, 1, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    test_step = validation_step

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.hparams.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())
