"""Weights behind a weight norm: what the network computes is ranked, has the zeros asked for, and is finite."""

import copy
import warnings
from math import prod

import pytest
import torch
from conftest import WEIGHTS_ONLY, ResumableLoader, make_trainer
from lightning.pytorch import LightningModule
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_prune import ConfigError, MagnitudePruner, MagnitudePruningCallback
from lightning_prune.analysis.allocation import allocate
from lightning_prune.analysis.inspection import inspect_file
from lightning_prune.analysis.layer_sensitivity import sensitivity
from lightning_prune.analysis.metrics import EffectiveParameters, WeightSparsity
from lightning_prune.masks import compute_mask
from lightning_prune.plan.planning import plan_pruning
from lightning_prune.plan.weight_norm import fill_zero_rows, normed_weight, prune_normed, split_mask

STYLES = ["old", "new"]
STEPS = {"scheduler": {"update_steps": [1, 2, 3, 4]}}


def normed(module: nn.Module, style: str, dim: int | None = 0) -> nn.Module:
    if style == "new":
        return parametrizations.weight_norm(module, dim=dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in torch, and still common
        return nn.utils.weight_norm(module, dim=dim)


def parts(module: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """``v`` and ``g`` of a module."""
    if parametrize.is_parametrized(module):
        return module.parametrizations.weight.original1, module.parametrizations.weight.original0
    return module.weight_v, module.weight_g


def computed(module: nn.Module) -> torch.Tensor:
    """The weight as torch computes it."""
    v, g = parts(module)
    if parametrize.is_parametrized(module):
        return module.weight.detach()
    (hook,) = (hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "WeightNorm")
    return hook.compute_weight(module).detach()


def plain(module: nn.Module) -> nn.Module:
    """Take the norm off, as torch does."""
    if parametrize.is_parametrized(module):
        return parametrize.remove_parametrizations(module, "weight")
    return nn.utils.remove_weight_norm(module)


class Net(LightningModule):
    """Convolutions of one channel and of groups, a transposed one, and a linear layer; all with a weight norm."""

    def __init__(self, style: str, optimizer=None, dim: int | None = 0):
        super().__init__()
        self.layers = nn.Sequential(
            normed(nn.Conv1d(1, 12, 1), style),
            nn.Tanh(),
            normed(nn.Conv1d(12, 12, 3, padding=1, groups=12), style),
            nn.Tanh(),
            normed(nn.Conv1d(12, 16, 3, padding=1), style),
            nn.Tanh(),
            normed(nn.ConvTranspose1d(16, 6, 2, stride=2), style),
            nn.Tanh(),
            normed(nn.Linear(16, 10), style, dim),
        )
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1))
        self.finite, self.losses = True, []

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        output = self(batch)
        self.finite &= bool(output.isfinite().all())
        loss = (output - 1).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


BATCHES = list(torch.randn(12, 4, 1, 8, generator=torch.Generator().manual_seed(3)))


def rules(target: float, **more) -> dict:
    rule = {**STEPS, "target_sparsity": target, **more}
    return {"global_config": rule, "module_type_configs": {"ConvTranspose1d": rule}}


def normed_layers(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.layers if not isinstance(layer, nn.Tanh)]


def assert_exact(net: nn.Module, pruner: MagnitudePruner) -> None:
    """What is computed is finite, and zero exactly where the masks say so."""
    for layer, mask in zip(normed_layers(net), pruner.masks().values(), strict=True):
        weight = computed(layer)
        assert weight.isfinite().all()
        assert torch.equal(weight != 0, mask.expand(weight.shape))


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("target", [0.75, 0.9, 0.98])
@pytest.mark.parametrize("style", STYLES)
def test_every_step_of_a_schedule_computes_finite_numbers_and_exactly_the_zeros_asked_for(style, target, dim):
    net = Net(style, dim=dim)
    pruner = MagnitudePruner(net, rules(target), masking="resident")
    pruner.prepare(inplace=True)
    optimizer = net.configure_optimizers()
    pruner.attach_optimizers(optimizer)
    sparsities = [0.0]
    for x in BATCHES[:8]:
        optimizer.zero_grad()
        net.training_step(x, 0).backward()
        optimizer.step()
        pruner.step()
        assert_exact(net, pruner)
        sparsities.append(pruner.report().sparsity)
    assert net.finite
    assert sparsities == sorted(sparsities)
    for planned, mask in zip(pruner.plan, pruner.masks().values(), strict=True):
        assert int((~mask.expand(planned.shape)).sum()) == planned.target_zeros == int(planned.numel * target)
    assert any(bool((parts(layer)[1] == 0).any()) for layer in normed_layers(net)), "some rows are pruned as a whole"
    pruner.finalize(inplace=True)
    assert_exact(net, pruner)
    for layer, mask in zip(normed_layers(net), list(pruner.masks().values()), strict=True):
        expected = computed(layer)
        assert torch.equal(layer.weight.detach(), expected), "also what the attribute of the old style holds"
        weight = plain(layer).weight
        assert torch.equal(weight, expected)
        assert torch.equal(weight != 0, mask.expand(weight.shape))


@pytest.mark.parametrize("style", STYLES)
def test_the_weight_that_is_computed_is_ranked(style):
    layer = normed(nn.Linear(4, 3), style)
    v, g = parts(layer)
    with torch.no_grad():
        v.copy_(torch.tensor([[100.0, 90.0, 80.0, 70.0], [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]]))
        g.copy_(torch.tensor([[0.1], [10.0], [1.0]]))
    pruner = MagnitudePruner(
        nn.Sequential(layer), {"global_config": {**STEPS, "target_sparsity": 0.5}}, masking="resident"
    )
    pruner.prepare(inplace=True)
    pruner.attach_optimizers(torch.optim.SGD(layer.parameters(), lr=0.1))
    for _ in range(4):
        pruner.step()
    (mask,) = pruner.masks().values()
    assert mask.int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    expected = torch.tensor([[0.0] * 4, [10 * i / 30**0.5 for i in (1, 2, 3, 4)], [0, 0, 0.6, 0.8]])
    torch.testing.assert_close(computed(layer), expected)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("style", STYLES)
def test_networks_that_compute_the_same_are_pruned_the_same(style, scope):
    first = Net(style)
    second = Net(style)
    second.load_state_dict(first.state_dict())
    for layer in normed_layers(second):
        v, g = parts(layer)
        rows = 2.0 ** torch.randint(-6, 7, g.shape)
        with torch.no_grad():
            v.mul_(rows)
    without = Net(style)
    without.load_state_dict(first.state_dict())
    for layer in normed_layers(without):
        plain(layer)
    torch.testing.assert_close(first(BATCHES[0]), second(BATCHES[0]))
    masks = []
    for net in (first, second, without):
        pruner = MagnitudePruner(net, rules(0.9), masking="resident", scope=scope)
        pruner.prepare(inplace=True)
        pruner.attach_optimizers(torch.optim.SGD(net.parameters(), lr=0.1))
        for _ in range(4):
            pruner.step()
        masks.append(list(pruner.masks().values()))
    for mask, rescaled, without_norm in zip(*masks, strict=True):
        assert torch.equal(mask, rescaled)
        assert torch.equal(mask, without_norm), "and as the plain network with these weights"


@pytest.mark.parametrize(
    "rule",
    [
        {"granularity": "per_channel"},
        {"granularity": "per_kernel"},
        {"block_size": 4},
        {"n_m_ratio": (3, 4)},
        {"n_m_ratio": (2, 4), "dim": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_every_structure_is_one_of_the_computed_weight(rule, dim):
    net = nn.Sequential(nn.Conv1d(4, 16, 3, padding=1), nn.Tanh(), normed(nn.Conv1d(16, 8, 3), "new", dim))
    weight = net[2].weight.detach().clone()
    target = rule["n_m_ratio"][0] / 4 if "n_m_ratio" in rule else 0.75
    config = {"module_name_configs": {"2": {**STEPS, "target_sparsity": target, **rule}}}
    pruner = MagnitudePruner(net, config, masking="resident")
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner.attach_optimizers(optimizer)
    for _ in range(5):
        net(torch.randn(2, 4, 8)).square().mean().backward()
        optimizer.step()
        pruner.step()
    (mask,) = pruner.masks().values()
    assert torch.equal(mask, compute_mask(weight, target, **rule))
    computed_now = net[2].weight
    assert computed_now.isfinite().all()
    assert torch.equal(computed_now != 0, mask.expand(weight.shape))


@pytest.mark.parametrize("schedule", [{"begin_step": 2}, {"update_steps": [2, 4]}], ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_no_decay_of_a_row_that_is_pruned_ends_in_zero_over_zero(style, schedule):
    net = Net(style)
    config = {"global_config": {"scheduler": schedule, "target_sparsity": 0.9}}
    pruner = MagnitudePruner(net, config, masking="resident")
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.9)  # 3e-46 after 45 steps
    pruner.attach_optimizers(optimizer)
    for x in (BATCHES * 5)[:60]:
        optimizer.zero_grad()
        net.training_step(x, 0)  # without a gradient: all that is left is the decay
        for layer in normed_layers(net):
            parts(layer)[0].grad = torch.zeros_like(parts(layer)[0])
            rows = parts(layer)[1] == 0
            if rows.any():
                weight = computed(layer)
                assert (weight[rows.expand(weight.shape)] == 0).all()
        optimizer.step()
        pruner.step()
    emptied = [(computed(layer), parts(layer)[1] == 0) for layer in normed_layers(net)]
    assert any(bool(rows.any()) for _, rows in emptied)
    assert all(bool((weight[rows.expand(weight.shape)] == 0).all()) for weight, rows in emptied)


def test_rows_of_zeros_that_a_structure_keeps_compute_zeros_and_go_on_training():
    # the block at place 0 is kept for its first row; what it keeps of the second is zero
    v, g = torch.tensor([[100.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0], [2.0]])
    mask = torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8)
    before = normed_weight(v, g)
    prune_normed(v, g, mask)
    assert torch.equal(torch._weight_norm(v, g, 0), before * mask)
    layer = parametrizations.weight_norm(nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        parts(layer)[0].copy_(torch.tensor([[100.0, 0.0], [0.0, 5.0], [1.0, 1.0], [1.0, 1.0]]))
        parts(layer)[1].copy_(torch.tensor([[100.0], [2.0], [10.0], [10.0]]))
    rule = {"block_size": 2, "scheduler": {"begin_step": 1}}
    pruner = MagnitudePruner(layer, {"global_config": rule}, masking="resident")
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    pruner.attach_optimizers(optimizer)
    pruner.step()
    assert layer.weight[:2].tolist() == [[100.0, 0.0], [0.0, 0.0]]
    for _ in range(4):
        optimizer.zero_grad()
        (layer(torch.ones(1, 2)) - 1).square().sum().backward()
        optimizer.step()
        pruner.step()
    (kept,) = pruner.masks().values()
    assert kept.int().tolist() == [[1, 0]] * 4
    assert torch.equal(layer.weight != 0, kept), "what was kept at zero is trained"


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (1, 3), (4,)])
def test_the_two_masks_together_are_the_mask(shape):
    for axis in (*range(len(shape)), None):
        v = torch.randn(shape)
        g = torch.norm_except_dim(v, 2, -1 if axis is None else axis)
        torch.testing.assert_close(normed_weight(v, g), v)
        torch.testing.assert_close(normed_weight(v * 7, g), v)
        for density in (0.0, 0.2, 0.7, 1.0):
            mask = torch.rand(shape) < density
            of_v, of_g = split_mask(mask, v, g)
            assert of_v.shape == v.shape
            assert of_g.shape == g.shape
            assert torch.equal(of_v & of_g.expand(shape), mask)
            both = v.clone(), g.clone()
            prune_normed(*both, mask)
            assert torch.equal(torch._weight_norm(*both, -1 if axis is None else axis) != 0, mask)


def test_rows_that_hold_nan_are_not_healed():
    v, g = torch.tensor([[float("nan"), 1.0]]), torch.ones(1, 1)
    fill_zero_rows(v, g, torch.ones(1, 2))
    assert v.isnan().any()
    assert normed_weight(v, g).isnan().all()
    assert g == 1


def fit(tmp_path, style: str, *, steps: int, ckpt_path=None, optimizer=None, **more):
    torch.manual_seed(5)
    net = Net(style, optimizer)
    saves = [] if ckpt_path else [ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)]
    callback = MagnitudePruningCallback(rules(0.9), show_plan=False)
    trainer = make_trainer(
        tmp_path,
        callbacks=[callback, *saves, *more.get("callbacks", [])],
        max_steps=steps,
        enable_checkpointing=bool(saves),
    )
    trainer.fit(net, ResumableLoader(BATCHES), ckpt_path=ckpt_path, **WEIGHTS_ONLY)
    return net, callback


@pytest.mark.parametrize("style", STYLES)
def test_a_fit_resumes_bit_exactly_amid_its_schedule(tmp_path, style):
    whole, callback = fit(tmp_path / "whole", style, steps=7)
    for step in (2, 3, 5):
        resumed, again = fit(
            tmp_path / f"from{step}", style, steps=7, ckpt_path=tmp_path / "whole" / f"step={step}.ckpt"
        )
        assert resumed.losses == whole.losses[step:]
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        for name, mask in callback.pruner.masks().items():
            assert torch.equal(again.pruner.masks()[name], mask), name
        assert again.pruner.state_dict().keys() == callback.pruner.state_dict().keys()
    assert whole.finite


@pytest.mark.parametrize("style", STYLES)
def test_every_checkpoint_is_the_pruned_network_under_its_own_names(tmp_path, style):
    _, callback = fit(tmp_path, style, steps=6)
    sparsities = []
    for step in range(1, 7):
        path = tmp_path / f"step={step}.ckpt"
        loaded = Net(style)
        loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
        assert loaded(BATCHES[0]).isfinite().all()
        weights = [computed(layer) for layer in normed_layers(loaded)]
        assert all(bool(weight.isfinite().all()) for weight in weights)
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        sparsities.append(zeros / sum(weight.numel() for weight in weights))
        assert inspect_file(path).sparsity == sparsities[-1]
    assert sparsities[-1] == callback.report().sparsity
    assert sparsities == sorted(sparsities)
    assert [tensor.name for tensor in inspect_file(path).tensors] == [
        f"layers.{place}.weight" for place in (0, 2, 4, 6, 8)
    ]


@pytest.mark.skipif(not hasattr(lightning_callbacks, "WeightAveraging"), reason="needs Lightning 2.6")
def test_averages_of_pruned_weights_are_finite_and_as_sparse(tmp_path):
    net, callback = fit(tmp_path, "new", steps=8, callbacks=[lightning_callbacks.WeightAveraging()])
    assert_exact(net, callback.pruner)
    assert net(BATCHES[0]).isfinite().all()


@pytest.mark.parametrize("style", STYLES)
def test_a_state_round_trip_gives_back_the_dense_values(style):
    def prepared(net):
        pruner = MagnitudePruner(net, rules(0.9), masking="resident")
        pruner.prepare(inplace=True)
        optimizer = net.configure_optimizers()
        pruner.attach_optimizers(optimizer)
        return pruner, optimizer

    def train(net, pruner, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            net.training_step(x, 0).backward()
            optimizer.step()
            pruner.step()

    net = Net(style, lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    pruner, optimizer = prepared(net)
    train(net, pruner, optimizer, BATCHES[:2])
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(net.state_dict())
    for name, entry in state["parameters"].items():
        assert entry["pruned_values"].numel() == int((~pruner.masks()[name]).sum())
    other = Net(style, net.make_optimizer)
    second, second_optimizer = prepared(other)
    train(other, second, second_optimizer, BATCHES[4:5])  # has masks and a stash of its own
    other.load_state_dict(weights)
    second.load_state_dict(state)
    again = second.state_dict()
    for name, entry in state["parameters"].items():
        assert torch.equal(entry["pruned_values"], again["parameters"][name]["pruned_values"])
        assert torch.equal(entry["mask"], again["parameters"][name]["mask"])
    train(net, pruner, optimizer, BATCHES[2:6])
    train(other, second, second_optimizer, BATCHES[2:6])
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("style", STYLES)
def test_weights_that_are_loaded_after_prepare_are_pruned_by_their_own_magnitudes(style):
    net, loaded = Net(style), Net(style)
    pruner = MagnitudePruner(net, rules(0.9, initial_sparsity=0.8), masking="resident")
    pruner.prepare(inplace=True, optimizers=[net.configure_optimizers()])
    pruner.guard_state_dicts()
    net.load_state_dict(loaded.state_dict())
    assert pruner.prepare_anew_if_written()
    fresh = MagnitudePruner(loaded, rules(0.9, initial_sparsity=0.8), masking="resident")
    fresh.prepare(inplace=True)
    for name, mask in fresh.masks().items():
        assert torch.equal(pruner.masks()[name], mask), name
    for name, value in loaded.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


@pytest.mark.parametrize("style", STYLES)
def test_a_state_dict_is_pruned_and_finite_whatever_wrote_to_the_parts(style):
    net = Net(style)
    pruner = MagnitudePruner(net, rules(0.9, initial_sparsity=0.9), masking="resident")
    pruner.prepare(inplace=True)
    pruner.guard_state_dicts()
    before = copy.deepcopy(net.state_dict())
    for layer in normed_layers(net):
        for part in parts(layer):
            part.data[part == 0] = 5.0
        v, g = parts(layer)
        v.data[(g == 5.0).expand(v.shape)] = 0.0
    again = Net(style)
    again.load_state_dict(net.state_dict())
    assert_exact(again, pruner)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    pruner.finalize(inplace=True)
    assert not any(module._state_dict_pre_hooks for module in net.modules())


def test_what_another_library_pruned_of_a_direction_is_put_back_behind_the_mask():
    net = nn.Sequential(normed(nn.Linear(8, 6), "new"))
    v, g = parts(net[0])
    before = v.detach().clone(), g.detach().clone()
    rule = {**STEPS, "target_sparsity": 0.9, "initial_sparsity": 0.9}
    pruner = MagnitudePruner(net, {"global_config": rule}, masking="resident")
    pruner.prepare(inplace=True)
    (mask,) = (mask.clone() for mask in pruner.masks().values())
    emptied = ~mask.any(1, keepdim=True)
    assert emptied.any()
    pruner.restore_dense({next(iter(pruner.masks())): before[0] * 3})
    assert torch.equal(computed(net[0]) != 0, mask)
    pruner.undo()
    assert torch.equal(v, torch.where(mask | emptied, before[0], before[0] * 3))
    assert torch.equal(g, before[1])


@pytest.mark.parametrize("style", STYLES)
def test_undo_puts_back_every_bit(style):
    net = Net(style)
    before = copy.deepcopy(net.state_dict())
    for config in (rules(0.9, initial_sparsity=0.9), rules(1.0, initial_sparsity=1.0)):
        pruner = MagnitudePruner(net, config, masking="resident")
        pruner.prepare(inplace=True)
        assert_exact(net, pruner)
        assert pruner.report().sparsity > 0.85
        pruner.undo()
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not any(parameter._post_accumulate_grad_hooks for parameter in net.parameters())


@pytest.mark.parametrize("style", STYLES)
def test_a_copy_is_finalized_and_the_model_trains_on(style):
    net = Net(style)
    pruner = MagnitudePruner(net, rules(0.9), masking="resident")
    net = pruner.prepare()
    optimizer = net.configure_optimizers()
    pruner.attach_optimizers(optimizer)
    for x in BATCHES[:3]:
        optimizer.zero_grad()
        net.training_step(x, 0).backward()
        optimizer.step()
        pruner.step()
    done = pruner.finalize()
    dense = Net(style)  # a copy whose weights are not those of now, as an average has them
    for target in (done, pruner.finalize(dense, inplace=True)):
        assert_exact(target, pruner)
        assert target(BATCHES[0]).isfinite().all()
    torch.testing.assert_close(done(BATCHES[0]), net(BATCHES[0]))
    assert pruner.is_prepared


@pytest.mark.parametrize("style", STYLES)
def test_a_second_fit_goes_on_from_the_zeros_of_the_computed_weight(style):
    net = Net(style)
    config = {"module_name_configs": {"layers.4": {**STEPS, "target_sparsity": 0.6, "initial_sparsity": 0.6}}}
    first = MagnitudePruner(net, config, masking="resident")
    first.prepare(inplace=True)
    (mask,) = (mask.clone() for mask in first.masks().values())
    first.finalize(inplace=True)
    second = MagnitudePruner(
        net, {"module_name_configs": {"layers.4": {**STEPS, "target_sparsity": 0.8}}}, masking="resident"
    )
    second.prepare(inplace=True, keep_zeros=True)
    assert torch.equal(next(iter(second.masks().values())), mask)


@pytest.mark.parametrize("style", STYLES)
def test_metrics_allocation_and_sensitivity_see_the_computed_weight(style):
    net = Net(style)
    weights = [computed(layer) for layer in normed_layers(net)]
    rows = [parts(layer)[1].numel() + layer.bias.numel() for layer in normed_layers(net)]
    for layer in normed_layers(net):
        with torch.no_grad():
            parts(layer)[0].mul_(2.0 ** torch.randint(-6, 7, parts(layer)[1].shape))
    spread = allocate(net, 0.5, "global", config=rules(0.5), maximum=1.0)
    cut = torch.cat([weight.abs().flatten() for weight in weights]).sort().values[sum(spread.weights.values()) // 2 - 1]
    assert list(spread.zeros.values()) == [int((weight.abs() <= cut).sum()) for weight in weights]
    before = copy.deepcopy(net.state_dict())
    scores = []

    def evaluate(model):
        outputs = model(BATCHES[0])
        scores.append(sum(int((computed(layer) == 0).sum()) for layer in normed_layers(model)))
        return float(outputs.isfinite().all())

    found = sensitivity(net, evaluate, [0.9], config=rules(0.5), progress=False)
    assert scores == [0, *(int(0.9 * weight.numel()) for weight in weights)]
    assert all(layer.scores == {0.9: 1.0} for layer in found.layers)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    pruner = MagnitudePruner(net, rules(0.9, initial_sparsity=0.9), masking="resident")
    pruner.prepare(inplace=True)
    sparsity, effective = WeightSparsity(), EffectiveParameters()
    sparsity.update(net)
    effective.update(net)
    assert float(sparsity.compute()) == pytest.approx(pruner.report().sparsity)
    biases = sum(rows) - sum(parts(layer)[1].numel() for layer in normed_layers(net))
    assert int(effective.compute()) == biases + pruner.report().total.weights - pruner.report().total.zeros


def test_names_in_the_plan():
    old, new = (normed(nn.Linear(4, 4), style) for style in STYLES)
    config = {"module_name_configs": {".+": {"target_sparsity": 0.5, "param_name": "weight.*"}}}
    plan = plan_pruning(nn.ModuleDict({"old": old, "new": new}), config)
    assert [(planned.name, planned.gain_name) for planned in plan] == [
        ("old.weight_v", "old.weight_g"),
        ("new.parametrizations.weight.original1", "new.parametrizations.weight.original0"),
    ]
    (by_part,) = plan_pruning(old, {"global_config": {"param_name": "weight_v"}})
    assert by_part.gain_name == "weight_g"

    class Own(nn.Linear):  # a weight norm of the user's own making: nothing is known of it
        def __init__(self):
            super().__init__(4, 4)
            self.weight_g, self.weight_v = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(4, 4))

    (planned,) = plan_pruning(Own(), {"global_config": {"param_name": "weight_v"}})
    assert planned.gain is None


@pytest.mark.parametrize("style", STYLES)
def test_hooks_are_refused_with_advice(style):
    with pytest.raises(ConfigError, match='masking="hook" cannot prune 0.*two parameters.*masking="resident"'):
        MagnitudePruner(nn.Sequential(normed(nn.Linear(8, 8), style))).prepare(inplace=True)


def test_a_part_that_has_a_pruner_already_leaves_the_other_untouched():
    layer = normed(nn.Linear(4, 4), "old")
    first = MagnitudePruner(layer, {"global_config": {"param_name": "weight_g"}}, masking="resident")
    first.prepare(inplace=True)
    with pytest.raises(ConfigError, match="weight_g is pruned already"):
        MagnitudePruner(layer, masking="resident").prepare(inplace=True)
    assert not layer.weight_v._post_accumulate_grad_hooks


def test_a_direction_that_is_tied_without_its_gain_is_refused():
    first, second = (normed(nn.Linear(4, 4), "old") for _ in range(2))
    second.weight_v = first.weight_v
    model = nn.ModuleDict({"a": first, "b": second})
    with pytest.raises(ConfigError, match="a.weight_v and b.weight_v are one tied parameter, but a weight norm"):
        plan_pruning(model)
    with pytest.raises(ConfigError, match="a weight norm makes another weight of it"):
        plan_pruning(model, {"module_name_configs": {"a": {}}})
    second.weight_g = first.weight_g
    assert len(plan_pruning(model).parameters[0].owners) == 2


@pytest.mark.parametrize("style", STYLES)
def test_a_spectral_norm_of_nothing_is_refused(style):
    norm = parametrizations.spectral_norm if style == "new" else nn.utils.spectral_norm
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    with pytest.raises(
        ConfigError, match=r"must be below 1.0 where a weight is divided by its spectral norm, .* got 1.0"
    ):
        plan_pruning(model, {"module_name_configs": {"0": {"target_sparsity": 1.0}}})
    assert (
        plan_pruning(model, {"module_name_configs": {"0": {"target_sparsity": 0.99}}}).parameters[0].target_zeros == 63
    )


def test_pruned_values_take_no_more_than_the_zeros_of_the_mask():
    layer = normed(nn.Conv1d(3, 5, 2), "new", None)
    pruner = MagnitudePruner(
        layer, {"global_config": {"target_sparsity": 1.0, "initial_sparsity": 1.0, **STEPS}}, masking="resident"
    )
    pruner.prepare(inplace=True)
    gain = float(torch.norm_except_dim(parts(layer)[0].detach(), 2, -1))
    (entry,) = pruner.state_dict()["parameters"].values()
    assert entry["pruned_values"].tolist() == pytest.approx([gain] * prod((5, 3, 2)))
    assert not layer.weight.any()
