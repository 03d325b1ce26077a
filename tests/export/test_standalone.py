import copy
import dataclasses
import types
from collections import OrderedDict, namedtuple

import lightning.pytorch as new_lightning
import pytest
import pytorch_lightning as old_lightning
import torch
from coreml_nets import Small
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from lightning_prune.errors import ExportError
from lightning_prune.export.copies import plain_copy, plain_name
from lightning_prune.export.coreml.conversion import capture
from lightning_prune.export.standalone import Standalone, submodule_inputs

X = torch.rand(1, 3, 8, 8)


def test_a_copy_that_knows_the_epoch_is_of_the_same_class():
    kinds = []

    class Registered(new_lightning.LightningModule):
        def __init_subclass__(cls, *, task, **rest):
            super().__init_subclass__(**rest)
            kinds.append((cls, task))

    class Net(Registered, task="digits"):
        def forward(self, x):
            assert type(self) is Net
            return x * self.current_epoch

    model = Net()
    model._trainer = types.SimpleNamespace(current_epoch=3, global_step=70)
    plain, _ = plain_copy(model)
    assert plain(torch.ones(1)) == 3
    assert kinds == [(Net, "digits")]
    with pytest.raises(RuntimeError, match="has no trainer, and no trainer.datamodule"):
        _ = plain.trainer.datamodule
    assert getattr(plain.trainer, "datamodule", None) is None
    assert not hasattr(plain.trainer, "state")
    assert plain.logger is None


def after_a_fit(model):
    model._trainer = types.SimpleNamespace(current_epoch=3, global_step=70)
    return model


class AsksItsTrainer(new_lightning.LightningModule):
    """Properties as people write them; none of them can be read without a trainer, and one never."""

    stage = property(lambda self: self.trainer.state.stage)
    learning_rate = property(lambda self: self.optimizers().param_groups[0]["lr"])
    schedules = property(lambda self: self.lr_schedulers())
    writer = property(lambda self: self.logger.experiment)
    world = property(lambda self: self.fabric.world_size)
    num_classes = property(lambda self: self.trainer.datamodule.num_classes)
    loop = property(lambda self: self.trainer.fit_loop.epoch_loop.batch_idx)
    broken = property(lambda self: {}["key"])

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        assert type(self) is AsksItsTrainer
        return self.fc(x)


@pytest.mark.parametrize("frontend", ["export", "trace", "export_full"])
@pytest.mark.parametrize("prepared", [lambda model: model, after_a_fit])
def test_properties_that_cannot_be_read_are_no_obstacle_to_capturing(frontend, prepared):
    plain, _ = plain_copy(prepared(AsksItsTrainer()))
    program, _ = capture(frontend, Standalone(nn.Sequential(plain), torch.ones(1, 4)), [frozenset()])
    assert program is not None
    assert "broken" in dir(plain)


@pytest.mark.parametrize("name", ["stage", "num_classes", "loop"])
def test_a_forward_that_needs_its_trainer_says_so(name):
    class Needs(AsksItsTrainer):
        def forward(self, x):
            return x if getattr(self, name) else self.fc(x)

    plain, _ = plain_copy(after_a_fit(Needs()))
    with pytest.raises(RuntimeError, match=r"has no trainer, and no trainer\.(state|datamodule|fit_loop)\."):
        Standalone(plain, torch.ones(1, 4))
    plain, _ = plain_copy(Needs())
    with pytest.raises(RuntimeError, match="Needs is not attached to a `Trainer`"):
        Standalone(plain, torch.ones(1, 4))


def test_what_trains_a_module_is_not_copied():
    class Uncopiable:
        def __deepcopy__(self, memo):
            raise TypeError("holds a lock")

    model = AsksItsTrainer()
    model._fabric = Uncopiable()
    plain, _ = plain_copy(model)
    assert plain.fabric is None
    assert isinstance(model.fabric, Uncopiable)


def test_buffers_that_cannot_be_compared_are_left_alone():
    class Odd(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("sparse", torch.eye(3).to_sparse())

    assert Standalone(plain_copy(Odd())[0], X).changed_buffers == ()


def test_the_copy_is_float32_in_eval_mode_and_shares_no_memory():
    model = Small().double().train()
    before = copy.deepcopy(model.state_dict())
    plain, _ = plain_copy(model)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert plain.norm.num_batches_tracked.dtype == torch.int64
    assert not any(module.training for module in plain.modules())
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
        plain.norm.running_mean.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_weights_are_copied_as_float32():
    plain, _ = plain_copy(Small().bfloat16())
    assert plain(X).dtype == torch.float32


def test_a_frozen_parameter_and_gradients_are_no_obstacle():
    model = Small()
    model.conv.weight.requires_grad_(requires_grad=False)
    model(X).sum().backward()
    plain, _ = plain_copy(model)
    assert plain.fc.weight.grad is None
    assert torch.equal(plain.conv.weight, model.conv.weight)


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    plain, _ = plain_copy(model)
    assert plain[1].weight is plain[0].weight


def test_compile_wrappers_are_taken_off_at_every_level():
    model = nn.Sequential(torch.compile(Small(), backend="eager"), nn.ReLU())
    plain, _ = plain_copy(torch.compile(model, backend="eager"))
    assert type(plain) is nn.Sequential
    assert type(plain[0]) is Small
    assert plain_name("_orig_mod.0._orig_mod.conv.weight") == "0.conv.weight"


def test_a_module_compiled_in_place_is_copied_and_not_called():
    class Compiled(new_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Small()

        def forward(self, x):
            return self.net(x)

    model = Compiled().train()
    model.compile(backend="eager")
    before = copy.deepcopy(model.state_dict())
    plain, _ = plain_copy(model)
    with torch.no_grad():
        found = plain(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(found, model.net.eval()(X))


def test_a_tensor_kept_with_its_graph_is_no_obstacle():
    model = Small()
    model.last_loss = model(X).sum()
    model.history = {"maps": [model(X)]}
    plain, _ = plain_copy(model)
    assert plain.last_loss.grad_fn is None
    assert plain.history["maps"][0].grad_fn is None


@pytest.mark.parametrize("lightning", [new_lightning, old_lightning], ids=["lightning", "pytorch_lightning"])
def test_logging_in_the_forward_of_a_lightning_module_is_no_obstacle(lightning):
    class Logs(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Small()

        def forward(self, x):
            y = self.net(x)
            self.log("mean", y.mean())
            self.log_dict({"max": y.max()})
            self.print("done")
            return y

    plain, _ = plain_copy(Logs())
    assert plain(X).shape == (1, 4)


def test_the_copy_of_a_lightning_module_knows_how_far_training_is():
    class Warm(new_lightning.LightningModule):
        def forward(self, x):
            return x * self.current_epoch + self.global_step

    model = Warm()
    assert plain_copy(model)[0](torch.ones(1)) == 0
    model._trainer = types.SimpleNamespace(current_epoch=3, global_step=70)
    plain, _ = plain_copy(model)
    assert plain(torch.ones(1)) == 73
    assert type(plain).__name__ == "Warm"
    assert type(model) is Warm


@pytest.mark.parametrize("style", ["weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm"])
def test_reparametrized_weights_become_plain_ones(style):
    model = Small().eval()
    if style == "weight_norm":
        parametrizations.weight_norm(model.conv)
    elif style == "spectral_norm":
        parametrizations.spectral_norm(model.conv)
    elif style == "old weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(model.conv)
    else:
        nn.utils.spectral_norm(model.conv)
    model.eval()
    plain, renamed = plain_copy(model)
    assert "conv.weight" in dict(plain.named_parameters())
    torch.testing.assert_close(plain(X), model(X))
    if style == "old weight_norm":
        assert renamed["conv.weight_v"] == "conv.weight"
    if style == "weight_norm":
        assert plain_name("conv.parametrizations.weight.original1") == "conv.weight"


def test_sharded_parameters_are_refused():
    class Sharded(nn.Parameter):
        def full_tensor(self):
            raise AssertionError

    model = Small()
    model.fc.weight = Sharded(torch.ones(4, 16))
    with pytest.raises(ExportError, match="must be whole on one process"):
        plain_copy(model)


def test_a_model_that_was_not_finalized_is_refused():
    model = Small()
    torch_prune.l1_unstructured(model.conv, "weight", 0.5)
    with pytest.raises(ExportError, match=r"conv\.weight_orig is still held apart from its mask"):
        plain_copy(model)


def test_what_cannot_be_copied_is_named():
    model = Small()
    model.stream = (item for item in [1])
    with pytest.raises(ExportError, match="must be copied before it is exported.*generator"):
        plain_copy(model)


def test_dicts_tuples_and_what_is_no_tensor_reach_the_model_as_they_were():
    pair = namedtuple("pair", "left right")

    class Takes(nn.Module):
        def forward(self, inputs, scale, both, *, flip=False):
            total = inputs["a"]["x"] + inputs["b"][1] * scale + both.left - both.right
            return -total if flip else total

    x = [torch.full((2,), float(value)) for value in range(1, 5)]
    examples = {
        "inputs": {"a": {"x": x[0]}, "b": [None, x[1]]},
        "scale": 10,
        "both": pair(x[2], x[3]),
        "flip": True,
    }
    flat = Standalone(Takes(), examples)
    assert flat.input_names == ("inputs_a_x", "inputs_b_1", "both_left", "both_right")
    assert torch.equal(flat(*x)[0], torch.full((2,), -20.0))


def test_outputs_of_any_structure_become_a_named_row():
    @dataclasses.dataclass
    class Result:
        logits: torch.Tensor
        hidden: tuple

    class Gives(nn.Module):
        def __init__(self, give):
            super().__init__()
            self.give = give

        def forward(self, x):
            return self.give(x)

    def names(give):
        return Standalone(Gives(give), torch.ones(2)).output_names

    assert names(lambda x: x + 1) == ("output",)
    assert names(lambda x: (x + 1, x + 2)) == ("output_0", "output_1")
    assert names(lambda x: OrderedDict(logits=x + 1, aux=[x + 2, None])) == ("logits", "aux_0")
    assert names(lambda x: Result(x + 1, (x + 2, x + 3))) == ("logits", "hidden_0", "hidden_1")
    assert names(lambda x: {"x": x + 1, "a b": x, "a-b": x, "1st": x}) == ("x_out", "a_b", "a_b_2", "_1st")
    assert Standalone(Gives(lambda x: x > 0), torch.ones(2))(torch.ones(2))[0].dtype == torch.int32


@pytest.mark.parametrize("examples", [(), {}, {"x": 3}])
def test_an_example_without_tensors_is_refused(examples):
    class Takes(nn.Module):
        def forward(self, x=1):
            return x

    with pytest.raises(ExportError, match="at least one tensor"):
        Standalone(Takes(), examples)


def test_a_model_that_returns_no_tensor_is_refused():
    class Silent(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(ExportError, match="must return at least one tensor"):
        Standalone(Silent(), X)


def test_the_inputs_of_a_submodule_are_those_of_its_first_call():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(2, 3, 1)
            self.unused = nn.Linear(1, 1)

        def forward(self, x):
            return self.inner(x, input2=torch.zeros(1, 3))

    examples = submodule_inputs(Outer(), "inner", torch.ones(1, 2))
    assert set(examples) == {"input1", "input2"}
    assert torch.equal(examples["input1"], torch.ones(1, 2))
    with pytest.raises(ExportError, match="submodule='unused' must be called"):
        submodule_inputs(Outer(), "unused", torch.ones(1, 2))
