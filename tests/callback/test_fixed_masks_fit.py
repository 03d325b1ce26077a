"""A fit under masks from elsewhere: checkpoints, resume, exports and adapters."""

import copy

import pytest
import torch
from conftest import ResumableLoader, ToyModule, assert_plain, make_loader, make_trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_prune import (
    CheckpointError,
    FixedMasks,
    MagnitudePruner,
    MagnitudePruningCallback,
    SparseExport,
    load_sparse,
)

NAMES = ("conv.weight", "fc1.weight", "fc2.weight")


def make_module(optimizer=None) -> ToyModule:
    torch.manual_seed(0)
    return ToyModule(optimizer)


def make_masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    module = make_module()
    return {name: torch.rand(module.get_parameter(name).shape, generator=generator) < 0.4 for name in NAMES}


def with_zeros() -> ToyModule:
    module = make_module()
    with torch.no_grad():
        for name, mask in make_masks().items():
            module.get_parameter(name).mul_(mask)
    return module


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def fit(module, config, path, *, steps=12, ckpt_path=None, callbacks=(), **arguments):
    callback = MagnitudePruningCallback(config, show_plan=False, **arguments)
    trainer = make_trainer(
        path, max_steps=steps, callbacks=[callback, *callbacks], enable_checkpointing=bool(callbacks)
    )
    trainer.fit(module, ResumableLoader(list(make_loader())), ckpt_path=ckpt_path)
    return callback, trainer


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("optimizer", [None, adamw], ids=["SGD with momentum", "AdamW"])
def test_a_fit_under_given_masks_equals_plain_pytorch_bit_for_bit(masking, optimizer, tmp_path):
    masks, module = make_masks(), make_module(optimizer)
    fit(module, FixedMasks(masks), tmp_path, masking=masking)

    other = make_module(optimizer)
    weights = {name: other.get_parameter(name) for name in masks}
    optimizer = other.configure_optimizers()
    batches = list(make_loader())
    for step in range(12):
        for name, weight in weights.items():
            weight.data.mul_(masks[name])
        optimizer.zero_grad()
        images, labels = batches[step % len(batches)]
        nn.functional.cross_entropy(other(images), labels).backward()
        for name, weight in weights.items():
            weight.grad.mul_(masks[name])
        optimizer.step()
    for name, weight in weights.items():
        weight.data.mul_(masks[name])

    assert_plain(module)
    state, expected = module.state_dict(), other.state_dict()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_every_checkpoint_holds_zeros_and_a_resume_is_bit_exact(masking, tmp_path):
    masks = make_masks()
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make_module(adamw)
    fit(whole, FixedMasks(masks), tmp_path, masking=masking, callbacks=[checkpoints])
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 12
    for file in files:
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(not state[name][~mask].any() for name, mask in masks.items())
    resumed = make_module(adamw)
    fit(resumed, FixedMasks(masks), tmp_path, masking=masking, ckpt_path=tmp_path / "step=5.ckpt")
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_resume_from_zeros_has_the_masks_of_the_first_start(tmp_path):
    class MakeZero(Callback):
        """A weight that is trained comes to be 0 in the checkpoint, and is no zero of the mask."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 5:
                place = pl_module.fc1.weight.nonzero()[0]
                pl_module.fc1.weight.data[tuple(place)] = 0.0

    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole, resumed = with_zeros(), make_module()
    before, _ = fit(whole, FixedMasks.from_zeros(), tmp_path, callbacks=[MakeZero(), checkpoints])
    after, _ = fit(resumed, FixedMasks.from_zeros(), tmp_path, ckpt_path=tmp_path / "step=5.ckpt")
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))
    for callback in (before, after):
        assert all(torch.equal(callback.pruner.masks()[name], mask) for name, mask in make_masks().items())


def test_a_resume_with_other_masks_is_refused(tmp_path):
    masks = make_masks()
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fit(make_module(), FixedMasks(masks), tmp_path, steps=5, callbacks=[checkpoints])
    masks["fc1.weight"] = masks["fc1.weight"].flip(0)
    with pytest.raises(CheckpointError, match=r"fc1\.weight: fixed_masks was"):
        fit(make_module(), FixedMasks(masks), tmp_path, ckpt_path=tmp_path / "step=5.ckpt")
    module = make_module()
    fit(module, FixedMasks(masks), tmp_path, ckpt_path=tmp_path / "step=5.ckpt", allow_config_change=True)
    assert all(not module.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_metrics_reports_and_exports_know_the_masks(tmp_path):
    masks = make_masks()
    pytest.importorskip("safetensors")
    module = make_module()
    callback, trainer = fit(module, FixedMasks(masks), tmp_path, export=SparseExport(tmp_path / "net.safetensors"))
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    share = zeros / sum(mask.numel() for mask in masks.values())
    assert float(trainer.callback_metrics["sparsity/global"]) == pytest.approx(share)
    assert callback.report().total.zeros == zeros
    assert [layer.zeros for layer in callback.export_result.layers] == [int((~mask).sum()) for mask in masks.values()]
    loaded = load_sparse(tmp_path / "net.safetensors")
    assert all(torch.equal(loaded[name], module.state_dict()[name]) for name in masks)


def test_monitors_are_not_held_back_where_no_target_lies_ahead(tmp_path):
    callback, _ = fit(make_module(), FixedMasks(make_masks()), tmp_path, steps=1)
    assert callback.pruner.is_at_target
    assert callback.pruner.last_update_step == 0


def test_a_second_fit_ranks_from_the_zeros_of_the_first(tmp_path):
    module = make_module()
    fit(module, FixedMasks(make_masks()), tmp_path)
    rules = {"global_config": {"scheduler": {"update_steps": [2, 4]}, "target_sparsity": 0.8}}
    callback, _ = fit(module, rules, tmp_path)
    assert callback.report().sparsity == pytest.approx(0.8, abs=0.01)


def test_adapters_that_are_merged_under_the_mask_keep_the_zeros(tmp_path):
    masks, module = make_masks(), with_zeros()
    weight, mask, scale = module.fc1.weight, masks["fc1.weight"], 0.5
    before = copy.deepcopy(module.state_dict())
    module.requires_grad_(False)
    down = nn.Parameter(torch.randn(4, weight.shape[1]) / 10)  # A
    up = nn.Parameter(torch.zeros(weight.shape[0], 4))  # B: the first forward is that of the pruned network
    optimizer = torch.optim.AdamW([down, up], lr=0.05)
    for images, labels in make_loader():
        merged = weight + scale * (up @ down) * mask  # as it will be merged, and not as two branches
        output = torch.func.functional_call(module, {"fc1.weight": merged}, (images,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(output, labels).backward()
        optimizer.step()
    with torch.no_grad():
        dense = weight + scale * (up @ down)
        weight += scale * (up @ down) * mask
    zeros = int((~mask).sum())
    assert int((dense == 0).sum()) < zeros / 10  # without the mask they are filled, but for those of a dead unit
    assert not weight[~mask].any()
    assert not torch.equal(weight, before["fc1.weight"])
    module.requires_grad_(True)
    pruner = MagnitudePruner(module, FixedMasks.from_zeros(), masking="resident")
    pruner.prepare(inplace=True)
    assert torch.equal(pruner.masks()["fc1.weight"], mask)
    pruner.undo()
    fit(module, FixedMasks(masks), tmp_path)
    assert not module.fc1.weight[~mask].any()
