"""Runs that are a little odd, each of which once lost something or was silently wrong."""

import warnings
from pathlib import Path

import pytest
import torch
from conftest import ResumableLoader, ToyModule, make_loader, make_trainer, sparsity_of
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn.utils import prune as torch_prune

import lightning_prune.masks.structure
from lightning_prune import (
    CheckpointError,
    ConfigError,
    MagnitudePruner,
    MagnitudePrunerConfig,
    MagnitudePruningCallback,
)


def rules(target: float = 0.75, steps=(2, 4, 6, 8), **settings) -> dict:
    return {"global_config": {"scheduler": {"update_steps": list(steps)}, "target_sparsity": target, **settings}}


def fit(tmp_path, model, *callbacks, config=None, ckpt_path=None, options=None, **arguments):
    callback = MagnitudePruningCallback(config or rules(), show_plan=False, **(options or {}))
    arguments = {"max_epochs": 2, "enable_checkpointing": True, **arguments}
    trainer = make_trainer(tmp_path, callbacks=[callback, *callbacks], **arguments)
    loader = ResumableLoader(list(make_loader(8)))
    trainer.fit(model, loader, make_loader(2), ckpt_path=ckpt_path)
    return callback, trainer


class Named(ToyModule):
    """Buffers that are called as pruning libraries call theirs, and a layer that another library has pruned."""

    def __init__(self):
        super().__init__()
        self.register_buffer("image_orig", torch.rand(4))
        self.register_buffer("image_mask", torch.ones(4))
        torch_prune.l1_unstructured(self.fc2, "weight", 0.5)


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_what_others_call_orig_and_mask_stays_in_checkpoints(tmp_path, masking):
    config = {**rules(), "module_name_configs": {"fc2": None}}
    model = Named()
    _, trainer = fit(tmp_path, model, config=config, options={"masking": masking})
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == Named().state_dict().keys()
    fit(tmp_path, Named(), config=config, ckpt_path=tmp_path / "last.ckpt", options={"masking": masking}, max_epochs=3)


@pytest.mark.parametrize("schedule", [{"update_steps": [2, 4, 6, 8]}, {"begin_step": 3}])
def test_a_higher_target_on_resume_prunes_at_once(tmp_path, schedule):
    config = {"global_config": {"scheduler": schedule, "target_sparsity": 0.5}}
    _, trainer = fit(tmp_path, ToyModule(), config=config)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    config["global_config"]["target_sparsity"] = 0.9
    model, options = ToyModule(), {"allow_config_change": True}
    fit(tmp_path, model, config=config, ckpt_path=tmp_path / "last.ckpt", options=options, max_epochs=3)
    assert sparsity_of(model.fc1.weight) == pytest.approx(0.9, abs=0.01)


def test_another_granularity_on_resume_is_refused_whole(tmp_path):
    _, trainer = fit(tmp_path, ToyModule(), config={"module_name_configs": {"conv": {}}})
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = {"module_name_configs": {"conv": {"granularity": "per_channel"}}}
    with pytest.raises(CheckpointError, match="does not fit the structure per_channel of now"):
        fit(
            tmp_path,
            ToyModule(),
            config=other,
            ckpt_path=tmp_path / "last.ckpt",
            options={"allow_config_change": True},
            max_epochs=3,
        )


def test_a_run_in_fractions_may_be_resumed_for_longer(tmp_path):
    config = {"global_config": {"scheduler": {"begin": 0.1, "end": 0.5, "frequency": 2}, "target_sparsity": 0.75}}
    _, trainer = fit(tmp_path, ToyModule(), config=config)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(sparsity_of(pl_module.fc1.weight))

    fit(tmp_path, ToyModule(), Look(), config=config, ckpt_path=tmp_path / "last.ckpt", max_epochs=4)
    assert seen == pytest.approx([0.75] * 16, abs=0.001)


def test_zeros_of_an_initialisation_are_trained():
    model = nn.Linear(16, 16)
    nn.init.eye_(model.weight)
    pruner = MagnitudePruner(model, rules(0.5, steps=(20, 40)))
    with pytest.warns(UserWarning, match=r"More zeros than the target asks for: weight \(93.8%\)"):
        pruner.prepare(inplace=True, keep_zeros=True)
    assert pruner.report().sparsity == 0


class Touching(torch.optim.SGD):
    """Steps by its base class, whose step has hooks of its own, and goes on to write to every parameter."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1e-3)
        return loss


class Look(Callback):
    """Sparsity of fc1 as validation sees it."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.seen.append(round(sparsity_of(pl_module.fc1.weight), 2))


def test_an_optimizer_that_steps_by_its_base_class(tmp_path):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # from now on SGD.step itself calls hooks too
    look = Look()
    fit(tmp_path, ToyModule(lambda p: Touching(p, lr=0.01)), look)
    assert look.seen[-2:] == [0.75, 0.75]


def test_an_optimizer_that_is_replaced_during_the_run(tmp_path):
    class Replace(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.01, momentum=0.9)]

    look = Look()
    fit(tmp_path, ToyModule(), Replace(), look, config=rules(steps=(2, 10, 12)), max_epochs=3)
    assert look.seen[-4:] == [0.75] * 4


@pytest.mark.parametrize("hidden", [False, True])
def test_writes_from_outside_never_reach_validation_or_a_checkpoint(tmp_path, hidden):
    class Noise(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            with torch.no_grad():
                weight = pl_module.fc1.weight.data if hidden else pl_module.fc1.weight
                weight.add_(0.01 * torch.randn_like(weight))

    look, saver = Look(), ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, ToyModule(), Noise(), look, saver)
    assert look.seen[-2:] == [0.75, 0.75]
    for path in (tmp_path / "saved").glob("epoch=1*.ckpt"):
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert sparsity_of(saved["fc1.weight"]) == 0.75


class Scored(ToyModule):
    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.trainer.global_step))


def test_the_best_of_a_dense_run_is_forgotten_when_it_is_pruned_at_once(tmp_path):
    def best():
        return ModelCheckpoint(tmp_path / "best", monitor="score", filename="{step}")

    dense = make_trainer(tmp_path, callbacks=[best()], max_epochs=2, enable_checkpointing=True)
    dense.fit(Scored(), make_loader(8), make_loader(2))
    dense.save_checkpoint(tmp_path / "dense.ckpt")
    chosen = best()
    fit(tmp_path, Scored(), chosen, ckpt_path=tmp_path / "dense.ckpt", max_epochs=3)
    assert Path(chosen.best_model_path).name == "step=24.ckpt"


def test_there_is_a_best_checkpoint_even_if_no_validation_follows_the_target(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="score", filename="{step}")
    fit(tmp_path, Scored(), best, config=rules(steps=(2, 16)), check_val_every_n_epoch=1, val_check_interval=5)
    assert Path(best.best_model_path).exists()


@pytest.mark.parametrize(
    "schedule",
    [{"begin": 100, "end": 1000}, {"begin": "1 epoch", "end": "3 epochs"}, {"begin": 0.1, "end": 0.4}],
    ids=str,
)
def test_any_schedule_can_be_rehearsed(tmp_path, schedule):
    config = {"global_config": {"scheduler": schedule}}
    callback = MagnitudePruningCallback(config, show_plan=False, best_at_target=False)
    trainer = make_trainer(tmp_path, callbacks=[callback], fast_dev_run=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*last pruning update")
        trainer.fit(ToyModule(), make_loader(2), make_loader(2))


class Manual(ToyModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


def test_the_length_of_manual_optimization_is_not_guessed(tmp_path):
    config = {"global_config": {"scheduler": {"begin": 0.1, "end": 0.5}}}
    with pytest.raises(ConfigError, match="in manual optimization the number .* Give the Trainer max_steps, or write"):
        fit(tmp_path, Manual(), config=config)
    config = {"global_config": {"scheduler": {"begin": "1 epoch", "end": 0.5}}}
    with pytest.raises(ConfigError, match="in manual optimization the number of optimizer steps in an epoch"):
        fit(tmp_path, Manual(), config=config, max_steps=8)


def test_optimizer_steps_that_are_not_counted_are_told_of_early(tmp_path):
    with (
        pytest.warns(UserWarning, match="has counted no optimizer step"),
        pytest.warns(UserWarning, match="before the last pruning update"),
    ):
        fit(tmp_path, Manual())


def test_weights_that_no_optimizer_updates_are_told_of(tmp_path):
    class Half(ToyModule):
        def configure_optimizers(self):
            return torch.optim.SGD([*self.fc1.parameters(), *self.fc2.parameters()], lr=0.1)

    with (
        pytest.warns(UserWarning, match=r"Updated by no optimizer of the Trainer: conv.weight"),
        pytest.warns(UserWarning, match=r'no optimizer trained them.*: conv.weight.* {"conv": None}'),
    ):
        fit(tmp_path, Half())


def test_a_step_that_raised_and_was_caught_heals(tmp_path):
    model = nn.Linear(8, 8)
    pruner = MagnitudePruner(model, rules(0.5, steps=(1, 2), initial_sparsity=0.5), masking="resident")
    pruner.prepare(inplace=True)

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if closure is None:
                raise RuntimeError("once")
            return super().step(closure)

    optimizer = Fails(model.parameters(), lr=0.1)
    pruner.attach_optimizers(optimizer)
    with pytest.raises(RuntimeError, match="once"):
        optimizer.step()
    pruner.step()
    assert int((model.weight == 0).sum()) == 32
    optimizer.step(lambda: None)
    assert int((model.weight == 0).sum()) == 32


def test_an_optimizer_that_was_never_initialised_is_refused():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

    model = nn.Linear(4, 4)
    pruner = MagnitudePruner(model, masking="resident")
    pruner.prepare(inplace=True)
    with pytest.raises(ConfigError, match="Give the optimizer that it wraps"):
        pruner.attach_optimizers(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))


def test_patterns_reach_attention_and_patterns_that_reach_nothing_are_refused():
    model = nn.ModuleDict(
        {"net": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)}
    )

    def plan(names):
        return MagnitudePruner(model, MagnitudePrunerConfig(module_name_configs=names), masking="resident").plan

    found = plan({r"net\.layers\.\d+\.self_attn": {"param_name": "in_proj_weight"}})
    assert [item.name for item in found] == [f"net.layers.{i}.self_attn.in_proj_weight" for i in range(2)]
    assert len(plan({r"net\.layers\.0\.linear1": {}})) == 1
    with pytest.raises(ConfigError, match=r"prunes nothing: it matches net.layers.0.norm1, net.layers.0.norm2"):
        plan({r"net\.layers\.0\.norm\d": {}, "net.layers.0.linear1": {}})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_odd_layers():
    model = nn.ModuleDict({"global": nn.Linear(4, 4), "empty": nn.Linear(4, 0), "fc": nn.Linear(4, 4)})
    pruner = MagnitudePruner(model, {"global_config": {"initial_sparsity": 0.5}})
    pruner.prepare()
    assert list(pruner.report()) == ["global.weight", "fc", "global"]
    assert [row.reason for row in pruner.plan.skipped] == ["it has no weights"]
    assert "will be zero" in str(pruner.plan)


def test_an_empty_configuration_file_is_refused(tmp_path):
    (tmp_path / "prune.yaml").write_text("# lost\n")
    with pytest.raises(ConfigError, match="is empty"):
        MagnitudePruningCallback(tmp_path / "prune.yaml")


def test_a_configuration_may_be_written_as_a_class():
    written = {"class_path": "lightning_prune.MagnitudePrunerConfig", "init_args": rules()}
    assert MagnitudePruningCallback(written).config == MagnitudePruningCallback(rules()).config


@pytest.mark.parametrize("masking", ["resident", "hook"])
@pytest.mark.parametrize("where", ["prepare", "training start"])
def test_a_fit_that_fails_before_it_trains_leaves_every_weight(tmp_path, monkeypatch, masking, where):
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    model = ToyModule()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if where == "prepare":
        real, calls = lightning_prune.masks.structure.keep_groups, iter(range(9))
        masks = lambda *args, **kwargs: fail() if next(calls) == 1 else real(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(lightning_prune.masks.structure, "keep_groups", masks)
    else:
        monkeypatch.setattr(MagnitudePruner, "resolve", fail)
    with pytest.raises(torch.OutOfMemoryError):
        fit(tmp_path, model, config=rules(initial_sparsity=0.5), options={"masking": masking})
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not model.conv._forward_pre_hooks


def test_a_fit_that_fails_before_it_trains_keeps_what_the_last_one_left(tmp_path):
    class Fails(Callback):
        def on_train_start(self, *_):
            raise RuntimeError("no training today")

    model = ToyModule()
    callback, _ = fit(tmp_path, model)
    state = callback.state_dict()
    trainer = make_trainer(tmp_path, callbacks=[Fails(), callback], max_epochs=1)
    with pytest.raises(RuntimeError, match="no training today"):
        trainer.fit(model, make_loader(8))
    assert callback.report().sparsity == pytest.approx(0.75, abs=0.01)
    assert callback.state_dict() is state
    assert sparsity_of(model.fc1.weight) == 0.75


class TiedAndCompiled(ToyModule):
    """One weight in two places, and a part that is compiled."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(128, 32)
        self.again.weight = self.fc1.weight
        self.fc2 = torch.compile(self.fc2, backend="eager")

    def forward(self, images):
        hidden = nn.functional.max_pool2d(torch.relu(self.bn(self.conv(images))), 2).flatten(1)
        return self.fc2(torch.relu(self.fc1(hidden) + self.again(hidden)))


@pytest.mark.filterwarnings("ignore:The .grad attribute.*")  # of an input, which the compiler looks at
@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_checkpoints_of_tied_and_compiled_modules_have_plain_names(tmp_path, masking):
    _, trainer = fit(tmp_path, TiedAndCompiled(), options={"masking": masking})
    paths = list(tmp_path.rglob("*.ckpt"))
    assert paths
    for path in paths:
        TiedAndCompiled().load_state_dict(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.filterwarnings("ignore:The .grad attribute.*")  # of an input, which the compiler looks at
@pytest.mark.skipif(not hasattr(lightning_callbacks, "WeightAveraging"), reason="needs Lightning 2.6")
def test_averages_of_a_compiled_module_are_sparse(tmp_path):
    class Look(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            seen.append(round(sparsity_of(next(pl_module.fc2.parameters())), 2))

    seen: list[float] = []
    fit(tmp_path, TiedAndCompiled(), lightning_callbacks.EMAWeightAveraging(decay=0.5), Look())
    assert seen[-1] == 0.75


@pytest.mark.skipif(not hasattr(lightning_callbacks, "WeightAveraging"), reason="needs Lightning 2.6")
def test_averages_of_a_module_with_hooks_are_refused(tmp_path):
    model = ToyModule()
    with pytest.raises(ConfigError, match='EMAWeightAveraging averages .* Use masking="resident"'):
        fit(tmp_path, model, lightning_callbacks.EMAWeightAveraging(), options={"masking": "hook"})
    assert not model.losses


class LeavesOutTheFirst(ToyModule):
    """A batch without a loss, as where a batch is found to be broken."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if batch_idx else None


def test_weights_that_are_read_past_their_hooks_are_told_of(tmp_path):
    class Functional(ToyModule):
        def forward(self, images):
            hidden = nn.functional.max_pool2d(torch.relu(self.bn(self.conv(images))), 2)
            return nn.functional.linear(torch.relu(self.fc1(hidden.flatten(1))), self.fc2.weight.detach())

    with pytest.warns(
        UserWarning, match="No gradient at the first optimizer step: fc2.weight. .* use masking=.resident"
    ):
        fit(tmp_path, Functional(), options={"masking": "hook"})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training_step. returned .None")
        warnings.filterwarnings("error", message="No gradient")
        fit(tmp_path, ToyModule(), options={"masking": "hook"})
        fit(tmp_path, LeavesOutTheFirst(), options={"masking": "hook"})


class SwapsWeights(torch.optim.SGD):
    """As optimizers do that train other weights than they evaluate."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        for group in self.param_groups:
            group["train_mode"] = True


class NotInitialised(torch.optim.SGD):
    def __init__(self, parameters):
        super().__init__(parameters, lr=0.05)
        del self._optimizer_load_state_dict_post_hooks


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: SwapsWeights(p, lr=0.05), 'SwapsWeights swaps .* Use masking="hook"'),
        (NotInitialised, "initialised as one, got NotInitialised"),
    ],
)
def test_optimizers_that_resident_masks_cannot_follow_are_refused(tmp_path, optimizer, message):
    model = ToyModule(optimizer)
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, model)
    assert not model.losses
    fit(tmp_path, model, options={"masking": "hook"})
