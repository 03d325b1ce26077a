"""How a dense network is trained, and one such training: what every way to prune starts from."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """A network, its data and how it is trained without pruning.

    Attributes:
        name: Of the network, as tables show it.
        make: Makes it, freshly initialised; given a width as a share of the full one, a narrower one.
        train: Inputs and targets.
        loss: Of outputs and targets.
        score: What a trained network is judged by.
        epochs: Rounds over the data.
        batch: Examples of an optimizer step.
        rate: Learning rate at the start; it falls to zero along half a cosine.
        optimizer: Class of the optimizer.
        measure: What else is recorded of a trained network.
        version: Goes up when the recipe changes in what is not among these values, so that old runs are not taken.
    """

    name: str
    make: Callable[[float], nn.Module]
    train: Pair
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[nn.Module], float]
    epochs: int
    batch: int
    rate: float
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    version: int = 1
    measure: Callable[[nn.Module], dict[str, Any]] = lambda net: {}

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.epochs * -(-len(self.train[0]) // self.batch)

    @property
    def settings(self) -> dict[str, Any]:
        """What a recorded run depends on."""
        names = ("epochs", "batch", "rate", "version")
        return {name: getattr(self, name) for name in names} | {"optimizer": self.optimizer.__name__}

    def described(self) -> str:
        """For a note under a table."""
        epochs = f"{self.epochs} epochs" if self.epochs > 1 else "1 epoch"
        return (
            f"{self.name}: {epochs} ({self.steps:,} steps) of {self.optimizer.__name__}, batches of "
            f"{self.batch}, learning rate {self.rate:g} falling to 0 along a cosine"
        )


class Batches:
    """Inputs and targets in a new order every epoch."""

    def __init__(self, pair: Pair, size: int) -> None:
        self.pair, self.size = pair, size

    def __len__(self) -> int:
        return -(-len(self.pair[0]) // self.size)

    def __iter__(self) -> Iterator[Pair]:
        for chosen in torch.randperm(len(self.pair[0])).split(self.size):
            yield self.pair[0][chosen], self.pair[1][chosen]


class Task(LightningModule):
    """A network as a Trainer takes it."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.recipe = net, recipe

    @property
    def example_input_array(self) -> Tensor:
        return self.recipe.train[0][:2]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        return self.recipe.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.recipe.optimizer(self.parameters(), lr=self.recipe.rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


@dataclass(frozen=True)
class Training:
    """A recipe with a seed, and a folder in which the dense network that it gives is kept."""

    recipe: Recipe
    seed: int
    folder: Path

    def task(self, width: float = 1.0) -> Task:
        """A freshly initialised network: the same for the same seed."""
        seed_everything(self.seed, verbose=False)
        return Task(self.recipe.make(width), self.recipe)

    def fit(self, task: Task, callbacks: Sequence[Callback] = ()) -> nn.Module:
        """Train as the recipe says, whatever the callbacks add."""
        torch.manual_seed(self.seed)  # the same order of batches, whatever was drawn before
        with quiet():
            trainer = Trainer(
                max_epochs=self.recipe.epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=list(callbacks),
            )
            trainer.fit(task, Batches(self.recipe.train, self.recipe.batch))
        return task.net.eval()

    def dense(self) -> Task:
        """The network trained without pruning; from the folder if it was trained before."""
        task = self.task()
        if self._file.exists():
            task.net.load_state_dict(torch.load(self._file, weights_only=True))
            task.net.eval()
        else:
            self.fit(task)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(".part")
            torch.save(task.net.state_dict(), part)
            part.replace(self._file)
        return task

    @cached_property
    def _file(self) -> Path:
        settings = "-".join(f"{value}" for value in self.recipe.settings.values())
        return self.folder / f"dense-{self.recipe.name}-{settings}-{self.seed}.pt".replace(" ", "_")


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what a Trainer could do better on another machine, which is not what a benchmark is about."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def parameters(model: nn.Module) -> int:
    """Numbers that a network is made of."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Numbers that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def accuracy(pair: Pair, size: int = 500) -> Callable[[nn.Module], float]:
    """Share of right answers on held-out examples, in %."""

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        right = 0
        for inputs, targets in zip(pair[0].split(size), pair[1].split(size), strict=True):
            right += int((model(inputs).argmax(-1) == targets).sum())
        return 100 * right / len(pair[1])

    return score


def copied(task: Task) -> Task:
    """A copy whose training leaves the original as it is."""
    return Task(copy.deepcopy(task.net), task.recipe)
