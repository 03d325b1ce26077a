"""``slim`` as a whole: what it takes, what it leaves alone, what it refuses and why."""

import collections
import copy
import dataclasses
import threading

import pytest
import torch
from conftest import ToyModule, make_loader, make_trainer
from dead_channels import Net, answers, kill, sizes
from torch import nn
from torch.nn import functional

from lightning_prune import SlimError
from lightning_prune.slim import slim


def mlp():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    kill(net[0], [1, 4], 0.5)
    return net


CUT = {"0.weight": (4, 3), "2.weight": (2, 4)}
ROWS = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def test_the_original_is_never_changed():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Conv2d(6, 2, 3, bias=False))
    kill(net[0], [1, 4], 0.5)
    net[1].eval()
    state, text = {name: tensor.clone() for name, tensor in net.state_dict().items()}, str(net)
    tensors, modules = [*net.parameters(), *net.buffers()], list(net.modules())
    inputs = torch.randn(2, 2, 8, 8)
    kept = inputs.clone()
    random = torch.random.get_rng_state()
    result = slim(net, inputs)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(inputs, kept)
    assert str(net) == text
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(ours is theirs for ours, theirs in zip([*net.parameters(), *net.buffers()], tensors, strict=True))
    assert all(ours is theirs for ours, theirs in zip(net.modules(), modules, strict=True))
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert [module.training for module in result.model.modules()] == [True, True, False, True, True]
    ours = {tensor.data_ptr() for tensor in [*result.model.parameters(), *result.model.buffers()]}
    assert not ours & {tensor.data_ptr() for tensor in tensors}
    assert result.model[3].bias is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_stay_what_they_are(dtype):
    result = slim(mlp().to(dtype), ROWS.to(dtype))
    assert sizes(result) == CUT
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert result.difference <= 1e-9


def test_the_layout_of_images_is_kept_and_one_without_a_batch_can_be_the_example():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)).to(memory_format=torch.channels_last)
    kill(net[0], [1, 2], 0.5)
    result = slim(net, torch.randn(2, 8, 8))
    assert sizes(result) == {"0.weight": (4, 2, 3, 3), "2.weight": (2, 4, 3, 3)}
    assert result.model[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert result.checks[1] == "another batch size was not tried: the model takes none"


def test_frozen_parameters_stay_frozen_and_hooks_stay_with_them():
    net = mlp()
    net[0].requires_grad_(False)
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model = slim(net, ROWS.clone().requires_grad_()).model
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]
    torch.testing.assert_close(answers(model, ROWS), answers(net, ROWS))


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 6), nn.Linear(6, 2)
        kill(self.a, [1])

    def forward(self, x, more=None, *, factor=2, active=True, words=None):
        hidden = functional.relu(self.a(x))
        hidden = hidden * factor if active else hidden
        for other in more or []:
            hidden = hidden + self.a(other)
        if words is not None:
            hidden = hidden + (words["mask"].unsqueeze(1) & words["ids"].unsqueeze(1).bool()) * hidden
        return {"out": self.o(hidden), "factor": factor}


@pytest.mark.parametrize(
    "inputs",
    [
        ROWS,
        (ROWS,),
        [ROWS, [ROWS, ROWS + 1]],
        {"x": ROWS, "factor": 3, "active": False},
        {"x": ROWS, "words": {"ids": torch.tensor([3, 0]), "mask": torch.tensor([True, True])}},
        ROWS[:1],
        ROWS[0],
    ],
)
def test_an_example_may_be_a_tensor_arguments_by_place_or_by_name_of_any_kind(inputs):
    assert sizes(slim(Many(), inputs)) == {"a.weight": (5, 3), "o.weight": (2, 5)}


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    more: list


Pair = collections.namedtuple("Pair", "scores count")


@pytest.mark.parametrize(
    "pack",
    [
        lambda scores: Answer(scores, [{"again": scores * 2}]),
        lambda scores: Pair(scores, 3),
        lambda scores: {"scores": [scores, (scores * 2,)], "none": None, "text": "yes"},
        lambda scores: collections.OrderedDict(scores=scores),
    ],
)
def test_answers_may_be_packed_in_anything_and_all_of_them_are_compared(pack):
    net = Net(lambda self, x: pack(self.o(functional.relu(self.a(x)))), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.a, [1, 4], 0.5)
    result = slim(net, ROWS)
    assert sizes(result) == {"a.weight": (4, 3), "o.weight": (2, 4)}
    assert type(result.model(ROWS)) is type(net(ROWS))
    assert "forward" not in vars(result.model)


def _refused(net, inputs, match):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(SlimError, match=match):
        slim(net, inputs)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_an_example_that_cannot_be_is_refused():
    for wrong in (3, "abc", [], {}, None, (1, 2)):
        _refused(mlp(), wrong, "example_inputs must be a tensor, a sequence")
    _refused(
        mlp(),
        torch.randn(2, 5),
        "example_inputs must be what Sequential.forward takes, .* RuntimeError: (addmm: )?mat1",
    )
    _refused(mlp().half(), ROWS, "example_inputs must be what Sequential.forward takes")
    _refused(nn.Module(), ROWS, "example_inputs must be what Module.forward takes")
    _refused(Many(), torch.randn(0, 3), "must answer with numbers to compare")
    _refused(
        mlp(), ROWS * torch.nan, "must answer with numbers to compare, but example_inputs give none that is finite"
    )
    _refused(Net(lambda self, x: None, a=nn.Linear(3, 2)), ROWS, "must answer with numbers to compare")


WAYS = {
    "if": lambda self, h: self.o(h if h.sum() > 0 else -h),
    "while": lambda self, h: self.o(self.halved(h)),
    "nonzero": lambda self, h: self.o(h[h.sum(1) > -1e9]),
    "numpy": lambda self, h: self.o(torch.from_numpy(h.detach().numpy())),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_a_way_that_depends_on_values_is_refused_with_what_to_do(way):
    def halved(hidden):
        while hidden.abs().max() > 1:
            hidden = hidden / 2
        return hidden

    net = Net(lambda self, x: WAYS[way](self, self.a(x)), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    net.halved = halved
    _refused(net, ROWS, "slim the submodule that has no such code")


def test_a_tensor_kept_with_its_graph_stays_where_it_is():
    net = mlp()
    kill(net[0], [1, 4])
    net.kept = net(ROWS)
    slimmed = slim(net, ROWS).model
    assert slimmed[0].out_features == 4
    assert net.kept.grad_fn is not None
    assert not slimmed.kept.requires_grad


def test_what_no_copy_can_be_made_of_is_refused():
    net = mlp()
    net.kept = threading.Lock()
    _refused(net, ROWS, r"must be a module that copy.deepcopy can copy, .*cannot pickle '_thread.lock'")


def test_a_forward_that_draws_numbers_is_proven_with_the_same_ones_or_left_whole():
    for noise, expected in ((lambda h: torch.zeros_like(h), (2, 4)), (torch.randn_like, (2, 6))):
        net = Net(
            lambda self, x, noise=noise: self.o(self.a(x) + noise(self.a(x))), a=nn.Linear(3, 6), o=nn.Linear(6, 2)
        )
        kill(net.a, [1, 4], 0.5)
        assert slim(net, ROWS).model.o.weight.shape == expected
    net = Net(lambda self, x: self.o(self.a(x)) + torch.randn(2), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    kill(net.a, [1, 4], 0.5)
    assert slim(net, ROWS).model.o.in_features == 4


def test_a_forward_that_writes_into_its_buffers_leaves_them_as_they_were():
    def forward(self, x):
        hidden = self.a(x)
        self.seen.add_(1)
        self.average.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        return self.o(hidden - self.average)

    net = Net(forward, a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    net.register_buffer("average", torch.zeros(6))
    net.register_buffer("seen", torch.tensor(0))
    kill(net.a, [1, 4])
    model = slim(net, ROWS).model
    assert int(net.seen) == int(model.seen) == 0
    assert not model.average.any()


@pytest.mark.parametrize("name", ["0", "1"])
def test_what_is_named_in_keep_stays_whole(name):
    result = slim(mlp(), ROWS, keep=[name])
    assert sizes(result) == {}
    assert result.layers[0].pinned == {"named in keep": 6}


def test_keep_reaches_what_a_block_gives_to_others_and_not_what_is_inside():
    block = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
    net = nn.Sequential(block, nn.Linear(5, 2))
    kill(block[0], [1])
    kill(block[2], [1])
    assert sizes(slim(net, ROWS, keep=["0"])) == {"0.0.weight": (5, 3), "0.2.weight": (5, 5)}


def test_a_wrong_name_in_keep_is_refused():
    for wrong, match in ((["7"], "it has no '7'"), ("0", r"Write keep=\['0'\]")):
        with pytest.raises(SlimError, match=match):
            slim(mlp(), ROWS, keep=wrong)
    net = Net(lambda self, x: self.a(x), a=nn.Linear(3, 2), unused=nn.Linear(2, 2))
    with pytest.raises(SlimError, match="it does not call 'unused'"):
        slim(net, ROWS, keep=["unused"])


def test_scalars_empty_and_unused_parameters_are_no_hindrance():
    net = Net(lambda self, x: self.o(self.a(x) * self.scale) + self.empty.sum(), a=nn.Linear(3, 6), o=nn.Linear(6, 2))
    net.scale, net.empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
    net.unused = nn.Parameter(torch.randn(9, 9))
    kill(net.a, [1, 4], 0.5)
    assert sizes(slim(net, ROWS)) == {"a.weight": (4, 3), "o.weight": (2, 4)}


def test_a_parametrized_layer_is_left_whole_and_its_readers_are_cut_around_it():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    torch.nn.utils.parametrizations.weight_norm(net[0])
    kill(net[2], [0, 1], 0.5)
    model = slim(net, ROWS).model
    assert (model[2].weight.shape, model[4].weight.shape) == ((3, 6), (2, 3))


def test_a_compiled_module_is_cut_inside():
    result = slim(torch.compile(mlp(), backend="eager"), ROWS)
    assert sizes(result) == CUT
    assert type(result.model) is nn.Sequential


def test_a_lightning_module_with_a_trainer_and_metrics_is_cut_and_can_be_fitted_again(tmp_path):
    from torchmetrics import Accuracy

    net = ToyModule()
    net.accuracy = Accuracy("multiclass", num_classes=4)
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(net, make_loader())
    kill(net.conv, [1, 2], 0.3)
    result = slim(net, torch.randn(2, 1, 8, 8))
    assert net.trainer is trainer
    assert result.model._trainer is None
    assert (result.model.conv.out_channels, result.model.fc1.in_features) == (6, 96)
    before = result.model.conv.weight.clone()
    make_trainer(tmp_path, max_steps=2).fit(result.model, make_loader())
    assert not torch.equal(result.model.conv.weight, before)


def test_the_slim_network_is_saved_copied_exported_and_trained_like_any_other(tmp_path):
    model = slim(mlp(), ROWS).model
    torch.save(model, tmp_path / "whole.pt")
    for other in (torch.load(tmp_path / "whole.pt", weights_only=False), copy.deepcopy(model)):
        assert torch.equal(other(ROWS), model(ROWS))
    torch.testing.assert_close(torch.export.export(model, (ROWS,)).module()(ROWS), model(ROWS))
    assert slim(model, ROWS).slim_parameters == sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    model(ROWS).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_slim_network_is_compiled_like_any_other():
    model = slim(mlp(), ROWS).model
    torch.testing.assert_close(torch.compile(model, backend="eager")(ROWS), model(ROWS))
