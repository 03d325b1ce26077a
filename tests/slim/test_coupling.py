"""Which channels can only go together, found before any is dead."""

from __future__ import annotations

import pytest
import torch
from coupled_nets import Residual
from torch import Tensor, nn

from lightning_prune.errors import SlimError
from lightning_prune.slim import find_coupling


def test_every_branch_of_a_sum_with_its_biases_and_norms_is_one_set() -> None:
    model = Residual()
    found = find_coupling(model, model.example_input_array)
    members = [sorted(member.name for member in coupled.members) for coupled in found.sets]
    sums = ["outer.bias", "outer.weight", "stem.bias", "stem.weight", "stem_norm.bias", "stem_norm.weight"]
    assert sorted(members) == [["inner.bias", "inner.weight", "inner_norm.bias", "inner_norm.weight"], sums]
    assert all(
        member.classes.tolist() == list(range(len(coupled.units)))
        for coupled in found.sets
        for member in coupled.members
    )
    assert found.pinned == {"head.weight": {"an output of the model": 4}}


def test_what_is_left_is_counted_as_cutting_will_leave_it() -> None:
    model = Residual()
    found = find_coupling(model, model.example_input_array)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert found.left({})[0] == whole
    sets = {len(coupled.units): number for number, coupled in enumerate(found.sets)}
    left = {"stem": 4 * 9 + 4 + 8, "inner": 3 * 4 * 9 + 3 + 6, "outer": 4 * 3 + 4, "head": 4 * 4 + 4}
    assert found.left({sets[8]: 0.5, sets[6]: 0.5})[0] == sum(left.values())


def test_channels_behind_a_concatenation_are_ranked_by_the_layer_that_makes_them() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 6, 1)
            self.norm, self.last = nn.BatchNorm2d(10), nn.Conv2d(10, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.norm(torch.cat([self.first(images), self.second(images)], 1)))  # type: ignore[no-any-return]

    found = find_coupling(Dense(), torch.randn(1, 2, 4, 4))
    (coupled,) = found.sets
    assert sorted(coupled.units.bincount().tolist()) == [4, 6]
    assert {len(member.classes) for member in coupled.members} == {4, 6, 10}


def test_a_size_that_the_forward_has_written_down_is_found_before_training() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, rows: Tensor) -> Tensor:
            left, right = self.first(rows).split([3, 5], dim=1)
            return self.last(self.second(torch.cat([left, right.relu()], 1)).relu())  # type: ignore[no-any-return]

    found = find_coupling(Split(), torch.randn(2, 4))
    assert [sorted(member.name for member in coupled.members) for coupled in found.sets] == [
        ["second.bias", "second.weight"]
    ]
    (reason,) = found.pinned["first.weight"]
    assert "whose sizes are written in the forward" in reason


def test_modules_named_in_keep_stay_whole() -> None:
    model = Residual()
    found = find_coupling(model, model.example_input_array, keep=["outer"])
    assert [sorted(member.name for member in coupled.members)[0] for coupled in found.sets] == ["inner.bias"]
    assert found.pinned["stem.weight"] == {"named in keep": 8}
    with pytest.raises(SlimError, match="no 'neck'"):
        find_coupling(model, model.example_input_array, keep=["neck"])


def test_the_model_and_random_numbers_stay_as_they_were() -> None:
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    find_coupling(model, model.example_input_array)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
