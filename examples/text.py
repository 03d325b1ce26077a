"""Text from a machine that invents it, and a small transformer that learns to continue it."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

LETTERS = "abcdefghijklmnop"
CERTAINTY = 0.8  # how often the next letter is the one that the two before it call for; else it is any letter
CEILING = CERTAINTY + (1 - CERTAINTY) / len(LETTERS)  # the best accuracy that anyone can reach


class Text(LightningDataModule):
    """Lines of 32 letters; two letters in a row call for a third by a table that has to be learned by heart."""

    def __init__(self, lines: int = 2048, batch_size: int = 64) -> None:
        super().__init__()
        self.lines, self.batch_size = lines, batch_size

    def setup(self, stage: str) -> None:
        random = torch.Generator().manual_seed(0)
        table = torch.randint(len(LETTERS), (len(LETTERS), len(LETTERS)), generator=random)
        text = torch.randint(len(LETTERS), (self.lines + 512, 33), generator=random)
        surprise = torch.rand(text.shape, generator=random) >= CERTAINTY
        for i in range(2, text.shape[1]):
            text[:, i] = torch.where(surprise[:, i], text[:, i], table[text[:, i - 2], text[:, i - 1]])
        self.train, self.held_out = TensorDataset(text[:-512]), TensorDataset(text[-512:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, 512)

    test_dataloader = val_dataloader


class Transformer(LightningModule):
    """Two layers of attention, 70 thousand weights."""

    def __init__(self, width: int = 64, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.position = nn.Parameter(0.02 * torch.randn(32, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LETTERS))
        self.register_buffer("look_ahead", torch.triu(torch.full((32, 32), float("-inf")), 1), persistent=False)
        self.example_input_array = torch.zeros(1, 32, dtype=torch.long)

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(letters) + self.position, mask=self.look_ahead, is_causal=True))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (text,) = batch
        loss = nn.functional.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (text,) = batch
        # the first letter is anyone's guess: scored from the third on
        accuracy = (self(text[:, :-1])[:, 1:].argmax(-1) == text[:, 2:]).float().mean()
        self.log("accuracy", accuracy, prog_bar=True, batch_size=len(text))

    test_step = validation_step

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
