"""Zeros through quantization: those of the whole numbers are the mask's, in the order that the page on exports says."""

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from lightning_prune import MagnitudePruner

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

RULES = {"global_config": {"scheduler": {"update_steps": [1, 2, 3]}, "target_sparsity": 0.75}}
EXAMPLE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def train(model: nn.Module, pruner: MagnitudePruner) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach_optimizers(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(EXAMPLE).pow(2).mean().backward()
        optimizer.step()
        pruner.step()


def whole_numbers(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight().int_repr() for name in ("0", "4")}


def assert_zeros_are_the_masks(numbers: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    for name, found in numbers.items():
        keep = masks[f"{name}.weight"].expand(found.shape) != 0
        assert keep.float().mean() == pytest.approx(0.25, abs=0.01)
        assert not found[~keep].any()
        assert found[keep].ne(0).float().mean() > 0.9  # a kept one may still be rounded to zero


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_a_pruned_network_is_quantized_after_training(masking):
    pruner = MagnitudePruner(make_net(), RULES, masking=masking)
    train(pruner.prepare(inplace=True), pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    model = pruner.finalize(inplace=True).eval()
    observed = prepare_fx(model, get_default_qconfig_mapping(), (EXAMPLE,))
    observed(EXAMPLE)
    assert_zeros_are_the_masks(whole_numbers(convert_fx(observed)), masks)


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_a_network_prepared_for_quantization_is_pruned_while_it_is_trained(masking):
    prepared = prepare_qat_fx(make_net().train(), get_default_qat_qconfig_mapping(), (EXAMPLE,))
    pruner = MagnitudePruner(prepared, RULES, masking=masking)
    train(pruner.prepare(inplace=True), pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    model = pruner.finalize(inplace=True).eval()
    assert_zeros_are_the_masks(whole_numbers(convert_fx(model)), masks)


def test_training_for_quantization_without_the_pruner_fills_the_zeros():
    """Why the page says to prune what prepare_qat_fx has made, and not the other way round."""
    pruner = MagnitudePruner(make_net(), RULES, masking="resident")
    train(pruner.prepare(inplace=True), pruner)
    model = pruner.finalize(inplace=True).train()
    prepared = prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (EXAMPLE,))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    prepared(EXAMPLE).pow(2).mean().backward()
    optimizer.step()
    assert whole_numbers(convert_fx(prepared.eval()))["4"].eq(0).float().mean() < 0.75


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_linear_layers_prepared_by_torchao_are_pruned_while_they_are_trained(masking):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    qat = pytest.importorskip("torchao.quantization.qat")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    base = quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)
    quantization.quantize_(model, qat.QATConfig(base, step="prepare"))
    pruner = MagnitudePruner(model, RULES, masking=masking)
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach_optimizers(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 64)).pow(2).mean().backward()
        optimizer.step()
        pruner.step()
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    quantization.quantize_(pruner.finalize(inplace=True), qat.QATConfig(base, step="convert"))
    for name, mask in masks.items():
        stored = model.get_submodule(name.removesuffix(".weight")).weight.dequantize()
        assert not stored[mask.expand(stored.shape) == 0].any()
