"""Straight-through gradients: bit for bit what a few lines of plain PyTorch train."""

from __future__ import annotations

import copy

import pytest
import torch
from straight_through_reference import (
    EVERY_STEP,
    OPTIMIZERS,
    SGD,
    STEPS,
    batches,
    network,
    reference,
    zeroes_half,
    zeroes_two_of_four,
)
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_prune import ConfigError, MagnitudePruner, ModuleMagnitudePrunerConfig
from lightning_prune.masks import magnitude_mask, n_m_mask


def rule_of(choose, **values) -> ModuleMagnitudePrunerConfig:
    structure = {"n_m_ratio": (2, 4)} if choose is zeroes_two_of_four else {"target_sparsity": 0.5}
    return ModuleMagnitudePrunerConfig(pruned_gradient="straight_through", **structure, **values)


def start(optimizer, rule) -> tuple[nn.Sequential, MagnitudePruner, torch.optim.Optimizer]:
    model = network()
    pruner = MagnitudePruner(model, rule, masking="resident")
    pruner.prepare(inplace=True)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    pruner.attach_optimizers(optimizer)
    return model, pruner, optimizer


def train(model, pruner, optimizer, data, *, clip=None, accumulate=1, closure=False) -> None:
    """A plain loop; with ``closure`` forward and backward run inside ``optimizer.step``."""
    for at in range(0, len(data), accumulate):

        def forward_and_backward(at=at):
            optimizer.zero_grad()
            for inputs, targets in data[at : at + accumulate]:
                loss = (model(inputs) - targets).square().mean()
                (loss / accumulate).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return loss

        if closure:
            optimizer.step(forward_and_backward)
        else:
            forward_and_backward()
            optimizer.step()
        pruner.step()


def dense_and_masks(model, pruner) -> list[Tensor]:
    """The dense weights, biases and masks, as the reference gives them."""
    masks = [mask.float() for mask in pruner.masks().values()]
    for name, mask in pruner.masks().items():
        assert not pruner.parameters()[name].detach()[~mask].any()
    pruner.undo()
    return [tensor.detach() for tensor in (model[0].weight, model[2].weight, model[0].bias, model[2].bias)] + masks


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("choose", [zeroes_half, zeroes_two_of_four])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_trained_is_the_reference_bit_for_bit(optimizer, choose, frequency, clip, accumulate, closure):
    options = {"clip": clip, "accumulate": accumulate}
    theirs = reference(optimizer, choose, frequency=frequency, decay=0.05, **options)
    rule = rule_of(choose, scheduler={"begin_step": 1, "frequency": frequency}, decay=0.05)
    model, pruner, made = start(optimizer, rule)
    train(model, pruner, made, batches(STEPS * accumulate), closure=closure, **options)
    assert_same(dense_and_masks(model, pruner), theirs)


@pytest.mark.parametrize("choose", [zeroes_half, zeroes_two_of_four])
def test_without_decay_it_is_the_plain_straight_through_estimator(choose):
    model, pruner, optimizer = start("sgd", rule_of(choose, scheduler=EVERY_STEP))
    train(model, pruner, optimizer, batches(STEPS))
    assert_same(dense_and_masks(model, pruner), reference("sgd", choose))


def test_the_reference_masks_are_those_of_the_library():
    weight = network()[0].weight.detach()
    assert torch.equal(zeroes_half(weight) == 1, magnitude_mask(weight, 0.5))
    assert torch.equal(zeroes_two_of_four(weight) == 1, n_m_mask(weight, 2, 4))


def test_a_decay_changes_what_is_trained_and_so_do_straight_through_gradients():
    plain = reference("sgd", zeroes_half)
    assert not torch.equal(plain[0], reference("sgd", zeroes_half, decay=0.05)[0])
    rule = ModuleMagnitudePrunerConfig(EVERY_STEP)
    model, pruner, optimizer = start("sgd", rule)
    train(model, pruner, optimizer, batches(STEPS))
    assert not torch.equal(plain[0], dense_and_masks(model, pruner)[0])


@pytest.mark.parametrize("frequency", [1, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_resumes_bit_exactly(optimizer, frequency):
    rule = rule_of(zeroes_two_of_four, scheduler={"begin_step": 1, "frequency": frequency}, decay=0.05)
    model, pruner, made = start(optimizer, rule)
    train(model, pruner, made, batches(STEPS)[:7])
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), pruner.state_dict()))
    model, pruner, made = start(optimizer, rule)
    for part, state in zip((model, made, pruner), saved, strict=True):
        part.load_state_dict(state)
    train(model, pruner, made, batches(STEPS)[7:])
    theirs = reference(optimizer, zeroes_two_of_four, frequency=frequency, decay=0.05)
    assert_same(dense_and_masks(model, pruner), theirs)


def test_a_gradient_is_that_of_the_loss_alone_after_the_step():
    model, pruner, optimizer = start("sgd", rule_of(zeroes_half, scheduler=EVERY_STEP, decay=1.0))
    train(model, pruner, optimizer, batches(2))
    (inputs, targets), weight = batches(3)[2], model[0].weight
    optimizer.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    gradient, before = weight.grad, weight.grad.clone()
    optimizer.step()
    assert weight.grad is gradient
    assert torch.equal(gradient, before)
    assert gradient[~pruner.masks()["0.weight"]].all()  # where it is pruned too


def test_a_step_that_raises_leaves_the_gradient_and_the_pruned_weight():
    model, pruner, optimizer = start("sgd", rule_of(zeroes_half, scheduler=EVERY_STEP, decay=0.5))
    train(model, pruner, optimizer, batches(2))
    weight, (inputs, targets) = model[0].weight, batches(3)[2]
    optimizer.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    gradient, before = weight.grad, weight.detach().clone()
    optimizer.param_groups[0]["lr"] = "none"
    with pytest.raises(TypeError):
        optimizer.step()
    pruner.reset_optimizers()
    assert weight.grad is gradient
    assert torch.equal(weight, before)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("unscales", [False, True])
def test_a_scaler_of_losses_scales_no_decay(is_fused, unscales):
    rule = rule_of(zeroes_half, scheduler=EVERY_STEP, decay=0.05)
    model, pruner, _ = start("sgd", rule)
    optimizer = torch.optim.SGD(model.parameters(), fused=is_fused, **SGD)
    pruner.attach_optimizers(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number, (inputs, targets) in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        scaler.scale((model(inputs) - targets).square().mean()).backward()
        before = model[0].weight.detach().clone()
        if number == 5:  # an overflow: the scaler leaves this step out
            model[0].weight.grad[0, 0] = float("inf")
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if number == 5:
            assert torch.equal(model[0].weight, before)
            break
        pruner.step()
    theirs = reference("sgd", zeroes_half, decay=0.05, steps=5)
    for one, other in zip(dense_and_masks(model, pruner), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_pruned_for_good_is_not_trained_and_ends_exactly_zero():
    rule = rule_of(zeroes_half, scheduler={"update_steps": [1, 2, 3]}, decay=0.05)
    model, pruner, optimizer = start("sgd", rule)
    train(model, pruner, optimizer, batches(6))
    assert not model[0].weight.grad[~pruner.masks()["0.weight"]].any()  # forgotten, so not clipped with the rest
    report, masks = pruner.report(), pruner.masks()
    pruner.finalize(inplace=True)
    assert report.sparsity == 0.5
    for name, mask in masks.items():
        weight = pruner.parameters()[name].detach()
        assert torch.equal(weight != 0, mask)


def test_a_fit_that_ends_amid_the_updates_leaves_exact_zeros():
    model, pruner, optimizer = start("adamw", rule_of(zeroes_two_of_four, scheduler=EVERY_STEP, decay=0.05))
    train(model, pruner, optimizer, batches(5))
    assert pruner.is_at_target
    report = pruner.report()
    pruner.finalize(inplace=True)
    assert report.sparsity == 0.5
    assert int((model[0].weight == 0).sum()) == 64
    assert sum(int((group != 0).sum()) for group in model[0].weight.view(-1, 4)) == 64


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_gradients_of_gradients_pass_straight_through_too():
    model, pruner, optimizer = start("sgd", rule_of(zeroes_half, scheduler=EVERY_STEP))
    train(model, pruner, optimizer, batches(2))
    (inputs, targets), weight = batches(3)[2], model[0].weight
    optimizer.zero_grad()
    (model(inputs) - targets).square().mean().backward(create_graph=True)
    assert weight.grad.requires_grad
    assert weight.grad[~pruner.masks()["0.weight"]].all()


def test_a_weight_without_a_gradient_does_not_decay():
    model, pruner, optimizer = start("sgd", rule_of(zeroes_half, scheduler=EVERY_STEP, decay=0.5))
    train(model, pruner, optimizer, batches(1))
    optimizer.zero_grad()
    model[2].weight.requires_grad_(False)
    values = pruner.state_dict()["parameters"]["2.weight"]["pruned_values"].clone()
    (inputs, targets) = batches(2)[1]
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()
    assert torch.equal(pruner.state_dict()["parameters"]["2.weight"]["pruned_values"], values)


def test_a_default_rule_has_the_masks_and_links_that_it_had():
    model, pruner, optimizer = start("sgd", ModuleMagnitudePrunerConfig(EVERY_STEP))
    train(model, pruner, optimizer, batches(2))
    weight, pruned = model[0].weight, ~pruner.masks()["0.weight"].clone()
    train(model, pruner, optimizer, batches(3)[2:])
    assert not weight.grad[pruned].any()
    assert {type(hook.__self__).__name__ for hook in weight._post_accumulate_grad_hooks.values()} == {"ResidentMask"}


def test_hooks_cannot_pass_gradients_through_and_say_so_before_training():
    rules = {"module_name_configs": {"0": rule_of(zeroes_half, scheduler=EVERY_STEP)}}
    message = (
        r'module_name_configs\["0"\].pruned_gradient=\'straight_through\' needs masking="resident", got \'hook\': .* '
        r'Write masking="resident"'
    )
    with pytest.raises(ConfigError, match=message):
        MagnitudePruner(network(), rules, masking="hook")


def test_coupled_channels_are_refused_with_the_reason():
    rule = ModuleMagnitudePrunerConfig(EVERY_STEP, granularity="per_channel", pruned_gradient="straight_through")
    with pytest.raises(ConfigError, match=r"needs to go without slim: .* no gradient comes through"):
        MagnitudePruner(network(), rule, masking="resident", slim=True)
    MagnitudePruner(network(), rule, masking="resident").prepare()


def test_a_weight_behind_a_weight_norm_is_refused_and_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(16, 8), weight_norm(nn.Linear(8, 4)))
    pruner = MagnitudePruner(model, rule_of(zeroes_half, scheduler=EVERY_STEP), masking="resident")
    with pytest.raises(ConfigError, match=r'global_config.pruned_gradient must be "zero" for 1.parametrizations'):
        pruner.prepare(inplace=True)
    assert not getattr(model[0].weight, "_post_accumulate_grad_hooks", None)
