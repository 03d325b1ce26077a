"""Released weights rest: what writes to pruned ones is noticed all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune import plan_pruning
from lightning_prune.masking import HeldMask, OptimizerLink, way_of


class Trained:
    """One layer whose smaller half is pruned for good, and an optimizer with momentum."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(128, 128)
        (planned,) = plan_pruning(self.layer, {"global_config": {}})
        way = way_of("resident")
        self.held: HeldMask = way.attach(planned)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9)
        self.link: OptimizerLink | None = way.link(self.optimizer, [self.held])
        self.train(2)  # so that all weights have momentum
        self.choose(0.5)
        self.held.release()
        self.train(3)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.layer(torch.randn(4, 128)).square().mean().backward()
            self.optimizer.step()

    def choose(self, sparsity: float) -> None:
        magnitudes = self.held.dense().detach().abs()
        kept = magnitudes > magnitudes.flatten().kthvalue(int(magnitudes.numel() * sparsity)).values
        self.held.mask.copy_(kept)
        self.held.settle()

    def nonzero(self) -> int:
        return int(self.layer.weight[self.held.mask == 0].count_nonzero())

    def passes(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> int:
        """How many passes over the weight as many steps make, beside those over its gradients."""
        made = []
        monkeypatch.setattr("lightning_prune.masking.resident.keep_in_place", lambda *_: made.append(1))
        self.train(steps)
        monkeypatch.undo()
        return len(made)


def test_a_released_weight_is_left_alone_but_for_a_pass_now_and_then(monkeypatch):
    trained = Trained()
    assert trained.passes(monkeypatch, 20) == 0
    assert trained.nonzero() == 0


def test_a_write_that_nothing_counts_to_a_single_weight_lasts_for_a_few_steps_at_most():
    trained = Trained()
    for row, column in (trained.held.mask == 0).nonzero()[::1000]:
        trained.layer.weight.data[row, column] = 1.0
        trained.train(32)
        assert trained.nonzero() == 0


def test_a_released_mask_that_is_chosen_anew_is_zero_from_the_next_step_on():
    trained = Trained()
    trained.choose(0.502)  # some more than before, which have momentum, and are too few to be seen by a look
    for _ in range(20):
        trained.train(1)
        assert trained.nonzero() == 0
