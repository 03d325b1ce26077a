"""Zeros through quantization: those of the whole numbers are the mask's, in the order that the page on exports says."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_dynamic,
)
from torch.ao.quantization import prepare_qat as prepare_qat_eager
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from lightning_prune import MagnitudePruner
from lightning_prune.errors import ConfigError, LifecycleError

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


def by_modules(model: nn.Module) -> nn.Module:
    for module in model:
        module.qconfig = getattr(module, "qconfig", get_default_qat_qconfig("fbgemm"))
    return prepare_qat_eager(model.train(), inplace=True)


PREPARATIONS = {
    "prepare_qat_fx": lambda model: prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(), (EXAMPLE,)),
    "prepare_fx": lambda model: prepare_fx(model.eval(), get_default_qconfig_mapping(), (EXAMPLE,)),
    "prepare_qat": by_modules,
    "quantize_dynamic": lambda model: quantize_dynamic(model, {nn.Linear}),
}


@pytest.mark.parametrize("prepare", PREPARATIONS.values(), ids=PREPARATIONS)
def test_hook_masks_amid_a_run_are_refused_by_a_preparation_for_quantization_with_what_to_write(prepare):
    pruner = MagnitudePruner(make_net(), RULES, masking="hook")
    model = pruner.prepare(inplace=True)
    train(model, pruner)
    with pytest.raises(
        LifecycleError, match=r'cannot be quantized.* Write masking="resident", call finalize\(\) first'
    ):
        prepare(model)
    train(model.train(), pruner)  # which goes on as before
    assert "qconfig" not in vars(pruner.finalize(inplace=True)[4])


def test_a_module_that_refuses_quantization_can_be_copied_and_saved_and_finalized_in_the_copy(tmp_path):
    pruner = MagnitudePruner(make_net(), RULES, masking="hook")
    train(pruner.prepare(inplace=True), pruner)
    copied = copy.deepcopy(pruner.model)
    torch.save(copied, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    for model in (copied, loaded):
        with pytest.raises(LifecycleError, match="cannot be quantized"):
            PREPARATIONS["prepare_qat_fx"](model)
        assert torch.equal(model(EXAMPLE), pruner.model(EXAMPLE))


def test_resident_masks_amid_a_run_go_on_after_a_preparation_for_quantization():
    pruner = MagnitudePruner(make_net(), RULES, masking="resident")
    model = pruner.prepare(inplace=True)
    pruner.step()
    prepared = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(), (EXAMPLE,))
    train(prepared, pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    pruner.finalize(inplace=True)
    assert_zeros_are_the_masks(whole_numbers(convert_fx(prepared.eval())), masks)


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


def test_a_finalized_network_is_quantized_by_torchao():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 32))
    pruner = MagnitudePruner(model, RULES)
    train(pruner.prepare(inplace=True), pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    base = quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8)
    quantization.quantize_(pruner.finalize(inplace=True), base)
    for name in ("1", "3"):
        keep = masks[f"{name}.weight"] != 0
        stored = model.get_submodule(name).weight.dequantize()
        assert not stored[~keep].any()
        assert stored[keep].ne(0).float().mean() > 0.9


def test_resident_masks_amid_a_run_go_on_after_a_preparation_by_torchao():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    qat = pytest.importorskip("torchao.quantization.qat")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 32))
    pruner = MagnitudePruner(model, RULES, masking="resident")
    pruner.prepare(inplace=True)
    train(model, pruner)
    base = quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8)
    quantization.quantize_(model, qat.QATConfig(base, step="prepare"))
    train(model.train(), pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    quantization.quantize_(pruner.finalize(inplace=True), qat.QATConfig(base, step="convert"))
    for name in ("1", "3"):
        keep = masks[f"{name}.weight"] != 0
        stored = model.get_submodule(name).weight.dequantize()
        assert keep.float().mean() == pytest.approx(0.25, abs=0.01)
        assert not stored[~keep].any()
        assert stored[keep].ne(0).float().mean() > 0.9


def trained_by_coreai_opt(mode: str, masking: str) -> tuple[nn.Module, MagnitudePruner]:
    """A network that was pruned and trained for quantization at once, with the weights as whole numbers."""
    quantization = pytest.importorskip("coreai_opt.quantization", reason="coreai-opt is not installed")
    common = pytest.importorskip("coreai_opt.common")
    pruner = MagnitudePruner(make_net().train(), RULES, masking=masking)
    model = pruner.prepare(inplace=True)
    quantizer = quantization.Quantizer(model, quantization.QuantizerConfig(execution_mode=mode))
    prepared = quantizer.prepare((EXAMPLE,))
    with quantizer.training_mode():
        train(prepared, pruner)
    pruner.finalize(inplace=True)
    return quantizer.finalize(backend=common.ExportBackend.CoreAI), pruner


def whole_numbers_of_coreai_opt(model: nn.Module) -> dict[str, Tensor]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    numbers = {name: value for name, value in state.items() if value.dtype == torch.int8 and value.numel() > 100}
    return {next(own for own in ("0", "4") if name.startswith(own)): value for name, value in numbers.items()}


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_network_is_pruned_while_coreai_opt_trains_it_for_quantization(mode):
    model, pruner = trained_by_coreai_opt(mode, "resident")
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    numbers = whole_numbers_of_coreai_opt(model)
    assert set(numbers) == {"0", "4"}
    assert_zeros_are_the_masks(numbers, masks)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_weight_that_a_hook_makes_is_left_as_it_is_by_coreai_opt(mode):
    """Why the page says resident masks: the zeros stay, but there is nothing that is quantized."""
    model, _ = trained_by_coreai_opt(mode, "hook")
    assert not whole_numbers_of_coreai_opt(model)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_finalized_network_is_quantized_by_coreai_opt(mode):
    quantization = pytest.importorskip("coreai_opt.quantization", reason="coreai-opt is not installed")
    common = pytest.importorskip("coreai_opt.common")
    pruner = MagnitudePruner(make_net(), RULES)
    train(pruner.prepare(inplace=True), pruner)
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    model = pruner.finalize(inplace=True).eval()
    quantizer = quantization.Quantizer(model, quantization.QuantizerConfig(execution_mode=mode))
    prepared = quantizer.prepare((EXAMPLE,))
    with quantizer.calibration_mode():
        prepared(EXAMPLE)
    numbers = whole_numbers_of_coreai_opt(quantizer.finalize(backend=common.ExportBackend.CoreAI))
    assert set(numbers) == {"0", "4"}
    assert_zeros_are_the_masks(numbers, masks)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_network_that_coreai_opt_has_prepared_is_refused_by_the_pruner(mode):
    quantization = pytest.importorskip("coreai_opt.quantization", reason="coreai-opt is not installed")
    quantizer = quantization.Quantizer(make_net(), quantization.QuantizerConfig(execution_mode=mode))
    prepared = quantizer.prepare((EXAMPLE,))
    with pytest.raises(
        ConfigError, match="would not keep zeros" if mode == "eager" else "prunes nothing of this model"
    ):
        MagnitudePruner(prepared, RULES).prepare(inplace=True)
