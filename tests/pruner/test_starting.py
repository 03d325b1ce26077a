"""Where layers start that have zeros of an earlier pruning."""

import pytest
import torch
from torch import nn

from lightning_prune import MagnitudePruner

SCHEDULE = {"scheduler": {"update_steps": [1, 2, 3]}}


def with_zeros(*fractions: float) -> nn.Sequential:
    """Layers of 400 weights, of which the smallest are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(20, 20) for _ in fractions])
    with torch.no_grad():
        for layer, fraction in zip(model, fractions, strict=True):
            weights = layer.weight.view(-1)
            weights[weights.abs().argsort()[: round(fraction * 400)]] = 0.0
    return model


def prepare_globally(model: nn.Module, *targets: float) -> MagnitudePruner:
    rules = {str(number): {**SCHEDULE, "target_sparsity": target} for number, target in enumerate(targets)}
    pruner = MagnitudePruner(model, {"module_name_configs": rules}, scope="global")
    pruner.prepare(inplace=True, keep_zeros=True)
    return pruner


@pytest.mark.parametrize(
    ("fractions", "targets"),
    [
        pytest.param((0.5, 0.5), (0.2, 0.9), id="one layer has more zeros than its own target"),
        pytest.param((0.99, 0.1), (0.8, 0.8), id="one layer has more zeros than a ranking leaves it"),
        pytest.param((0.5, 1.0), (0.8, 0.8), id="one layer was initialised with zeros alone"),
        pytest.param((0.0, 0.3, 0.6, 0.9), (0.8,) * 4, id="many layers"),
    ],
)
def test_masks_of_a_global_start_are_the_zeros_that_are_there(fractions, targets):
    model = with_zeros(*fractions)
    before = [layer.weight.detach() != 0 for layer in model]
    masks = prepare_globally(model, *targets).masks().values()
    for mask, nonzero, fraction in zip(masks, before, fractions, strict=True):
        assert torch.equal(mask, nonzero if fraction < 1.0 else torch.ones_like(nonzero))


def test_schedules_of_a_global_start_go_on_from_the_zeros_of_all_layers_together():
    pruner = prepare_globally(with_zeros(0.2, 0.6), 0.8, 0.8)
    totals = [pruner.report().sparsity]
    for _ in range(3):
        pruner.step()
        totals.append(pruner.report().sparsity)
    assert totals[:2] == [pytest.approx(0.4), pytest.approx(0.4)]
    assert totals == sorted(totals)
    assert totals[-1] == pytest.approx(0.8)


def test_a_frozen_layer_of_a_global_start_waits_and_is_pruned_when_it_is_trained():
    model = with_zeros(0.5, 0.5)
    model[0].weight.requires_grad_(False)
    pruner = MagnitudePruner(
        model, {"global_config": {**SCHEDULE, "target_sparsity": 0.5}}, masking="resident", scope="global"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.prepare(inplace=True, keep_zeros=True, optimizers=[optimizer])
    assert [layer.name for layer in pruner.report().layers] == ["1"]
    for _ in range(4):
        pruner.step()
    assert pruner.untrained == ["0.weight"]
    model[0].weight.requires_grad_(True)
    pruner.step()
    assert pruner.untrained == []
    assert [layer.zeros for layer in pruner.report().layers] == [200, 200]
