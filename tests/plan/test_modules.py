"""Any module: whoever reads a resident weight, by whatever road, reads the pruned one."""

import warnings

import pytest
import torch
from conftest import make_loader, make_trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations

from lightning_prune import ConfigError, MagnitudePruner, MagnitudePruningCallback

RULE = {"scheduler": {"update_steps": [1, 2, 3]}, "target_sparsity": 0.5}


def train(model: nn.Module, config: dict, make_inputs, steps: int = 6) -> MagnitudePruner:
    """Train with resident masks; the optimizer must move every pruned parameter, and never its zeros."""
    pruner = MagnitudePruner(model, config, masking="resident")
    pruner.prepare(inplace=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner.attach_optimizers(optimizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(*make_inputs())
        output = output[0] if isinstance(output, tuple) else output
        output.square().mean().backward()
        optimizer.step()
        pruner.step()
        for name, mask in pruner.masks().items():
            weight = dict(model.named_parameters())[name]
            assert not weight[~mask.expand(weight.shape)].any(), name
    for name, mask in pruner.masks().items():
        weight = dict(model.named_parameters())[name]
        keep = mask.expand(weight.shape)
        assert int((~keep).sum()) == weight.numel() // 2, name
        assert not torch.equal(weight[keep], before[name][keep]), f"{name} was not trained"
    return pruner


def test_attention_trains_and_evaluates_pruned():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    config = {"global_config": RULE, "module_name_configs": {"self_attn": {**RULE, "param_name": "in_proj_weight"}}}
    pruner = train(model, config, lambda: (torch.randn(4, 5, 16),))
    assert {planned.name for planned in pruner.plan} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    inputs = torch.randn(4, 5, 16)
    slow = model(inputs)
    with torch.no_grad():
        fast = model.eval()(inputs)  # the fast path reads the parameters without any forward of a submodule
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_weights(kind):
    model = kind(8, 6, batch_first=True)
    config = {"module_name_configs": {"": {**RULE, "param_name": "weight_(ih|hh)_l0"}}}
    assert len(train(model, config, lambda: (torch.randn(3, 7, 8),)).plan) == 2


def test_embedding_and_transposed_convolution():
    embedding = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(40, 3))
    pruner = train(embedding, {"module_type_configs": {"Embedding": RULE}}, lambda: (torch.randint(0, 12, (4, 5)),))
    assert [(planned.name, planned.target_zeros) for planned in pruner.plan] == [("0.weight", 48)]
    up = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2))
    pruner = train(up, {"module_type_configs": {"ConvTranspose2d": RULE}}, lambda: (torch.randn(2, 3, 4, 4),))
    assert [(planned.name, planned.target_zeros) for planned in pruner.plan] == [("0.weight", 24)]


class Shared(nn.Module):
    """One module used twice, one weight used by a function, one tied."""

    def __init__(self):
        super().__init__()
        self.twice, self.by_function, self.tied = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.tied(nn.functional.linear(x, self.by_function.weight))


def test_modules_used_twice_tied_and_by_function():
    pruner = train(Shared(), {"global_config": RULE}, lambda: (torch.randn(4, 8),))
    assert [planned.name for planned in pruner.plan] == ["twice.weight", "by_function.weight"]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_have_the_zeros_of_their_original(norm):
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    train(model, {"module_name_configs": {"0": RULE}}, lambda: (torch.randn(4, 8),))
    assert int((model[0].weight == 0).sum()) == 32


def test_the_older_spectral_norm():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    pruner = train(model, {"global_config": RULE}, lambda: (torch.randn(4, 8),))
    assert [planned.name for planned in pruner.plan] == ["0.weight_orig", "2.weight"]
    (planned,) = MagnitudePruner(
        nn.utils.spectral_norm(nn.Linear(8, 8)), {"global_config": {**RULE, "param_name": "weight.*"}}
    ).plan
    assert len(planned.owners) == 1
    model(torch.zeros(1, 8))
    assert int((model[0].weight == 0).sum()) == 32
    with pytest.raises(ConfigError, match='masking="hook" cannot prune weight_orig'):
        MagnitudePruner(nn.utils.spectral_norm(nn.Linear(8, 8)), {"global_config": RULE}).prepare(inplace=True)


def test_the_older_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in torch, and still common
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)))
    train(model, {"global_config": RULE}, lambda: (torch.randn(4, 8),))
    assert int((model(torch.zeros(1, 8)) is not None) and (model[0].weight == 0).sum()) == 32
    with pytest.raises(ConfigError, match='masking="hook" cannot prune 0.weight_v'):
        MagnitudePruner(model, {"global_config": RULE}).prepare(inplace=True)


def test_a_lazy_layer_is_pruned_once_it_has_a_shape():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lazy modules are "under development"
        model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(ConfigError, match="0.weight has no shape yet. Run one batch"):
        MagnitudePruner(model).prepare()
    model(torch.randn(2, 6))
    train(model, {"global_config": RULE}, lambda: (torch.randn(4, 6),))


class Net(LightningModule):
    """A net whose layers may be made late, and that may be compiled in whole or in part."""

    def __init__(self, where: str, part: bool = False):
        super().__init__()
        self.where, self.part, self.graphs = where, part, 0
        if where == "init":
            self.make()

    def make(self):
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)
        if self.part:
            self.body = torch.compile(self.body, backend=self.count)

    def count(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def setup(self, stage):
        if self.where == "setup":
            self.make()

    def configure_model(self):
        if self.where == "configure_model":
            self.make()

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("where", ["init", "setup", "configure_model"])
def test_layers_may_be_made_late_and_compiled_in_part(tmp_path, where, part):
    model, callback = Net(where, part), MagnitudePruningCallback({"global_config": RULE}, show_plan=False)
    make_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, make_loader(8))
    assert [planned.label for planned in callback.pruner.plan] == ["body.1", "head"]
    assert int((model.head.weight == 0).sum()) == 64
    if part:
        assert model.graphs == 1, "no graph break, and no recompilation at an update"


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_a_compiled_model_is_one_graph_that_updates_do_not_recompile(masking):
    torch.compiler.reset()  # other tests compiled a Sequential too, and there is a limit to them
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    pruner = MagnitudePruner(model, {"global_config": RULE}, masking=masking)
    pruner.prepare(inplace=True)
    compiled = torch.compile(model, backend=count, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach_optimizers(optimizer)
    for _ in range(6):
        compiled(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.report().sparsity == 0.5
    assert len(graphs) == 1


def test_a_whole_compiled_lightning_module(tmp_path):
    model, callback = Net("init"), MagnitudePruningCallback({"global_config": RULE}, show_plan=False)
    compiled = torch.compile(model, backend=model.count)
    make_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(compiled, make_loader(8))
    assert int((model.head.weight == 0).sum()) == 64


@pytest.mark.parametrize("masking", ["resident", "hook"])
def test_biases_are_pruned_where_a_rule_names_them(masking):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10), nn.LayerNorm(10))
    config = {
        "global_config": {**RULE, "param_name": "weight|bias"},
        "module_name_configs": {
            "0": {**RULE, "param_name": "bias", "block_size": 2},
            "4": {**RULE, "param_name": "bias"},
        },
    }
    pruner = MagnitudePruner(model, config, masking=masking)
    pruner.prepare(inplace=True)
    assert list(pruner.masks()) == ["0.bias", "3.weight", "3.bias", "4.bias"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner.attach_optimizers(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        pruner.step()
    report = pruner.report()
    pruner.finalize(inplace=True)
    for name, zeros in (("0.bias", 4), ("3.weight", 1440), ("3.bias", 5), ("4.bias", 5)):
        assert int((model.get_parameter(name) == 0).sum()) == zeros
    assert report.total.zeros == 4 + 1440 + 5 + 5


def test_a_structure_that_vectors_have_not_is_refused():
    rule = {**RULE, "param_name": "bias"}
    for structure, message in (
        ({"n_m_ratio": (2, 4)}, "2:4 zeros need a weight of rank 2 or more, got rank 1"),
        ({"granularity": "per_channel"}, '"per_channel" needs a weight of rank 2 or more, got rank 1'),
    ):
        for rules in ({"module_name_configs": {"0": {**rule, **structure}}}, {"global_config": {**rule, **structure}}):
            with pytest.raises(ConfigError, match=message):
                MagnitudePruner(nn.Sequential(nn.Conv2d(8, 10, 3)), rules).prepare()


class Holder(nn.Module):
    """Holds a weight that others read."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))


class Head(LightningModule):
    """Has a weight of its own, and no forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def training_step(self, batch, batch_idx):
        return (batch[0].flatten(1)[:, :8] @ self.weight).square().mean()


@pytest.mark.parametrize(
    ("module", "parameter", "why"),
    [
        (nn.ParameterList([torch.randn(8, 8)]), "0", "ParameterList has no forward of its own"),
        (nn.ParameterDict({"key": torch.randn(8, 8)}), "key", "ParameterDict has no forward of its own"),
        (Holder(), "weight", "Holder has no forward of its own"),
        (Head(), "weight", "Head has no forward of its own"),
        (nn.Embedding(8, 8, max_norm=1.0), "weight", "its forward writes to the weight, to keep max_norm"),
        (nn.EmbeddingBag(8, 8, max_norm=1.0), "weight", "its forward writes to the weight, to keep max_norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_a_hook_cannot_follow_is_refused_and_resident_masks_take_it(module, parameter, why):
    config = {"module_name_configs": {"": {"param_name": parameter}}}
    with pytest.raises(ConfigError, match=f'{why}.* Write masking="resident"'):
        MagnitudePruner(module, config).prepare(inplace=True)
    assert len(MagnitudePruner(module, config, masking="resident").prepare(inplace=True).state_dict()) == 1


def test_an_embedding_that_keeps_a_norm_trains_with_resident_masks():
    model = nn.Sequential(nn.Embedding(12, 8, max_norm=0.5), nn.Flatten(), nn.Linear(40, 3))
    rules = {"module_type_configs": {"Embedding": RULE}}
    train(model, rules, lambda: (torch.randint(0, 12, (4, 5)),))
    assert float(model[0](torch.arange(12)).detach().norm(dim=1).max()) <= 0.5 + 1e-6


def test_a_forward_that_an_object_has_of_its_own_is_one():
    model = Holder()
    model.forward = lambda inputs: inputs @ model.weight
    pruner = MagnitudePruner(model, {"module_name_configs": {"": {}}})
    pruner.prepare(inplace=True)
    assert [planned.name for planned in pruner.plan] == ["weight"]


class ReadsPast(nn.Module):
    """One weight is read by a function; one is part of a network that is trained later."""

    def __init__(self):
        super().__init__()
        self.body, self.read, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)

    def forward(self, inputs):
        hidden = nn.functional.linear(self.body(inputs), self.read.weight.detach())
        return nn.functional.linear(hidden, self.frozen.weight)


@pytest.mark.parametrize("is_zeroed_before", [True, False])
def test_a_weight_that_is_read_past_its_hook_is_told_of_once_at_the_first_step(is_zeroed_before):
    model = ReadsPast()
    pruner = MagnitudePruner(model, {"global_config": RULE})
    pruner.prepare(inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        if is_zeroed_before:
            optimizer.zero_grad()
        pruner.step()

    with pytest.warns(
        UserWarning, match=r"No gradient at the first optimizer step: read.weight\. .*resident"
    ) as caught:
        step()
    assert len(caught) == 1
    step()


def test_networks_that_take_turns_are_not_told_of():
    model = nn.ModuleDict({"generator": nn.Linear(8, 8), "critic": nn.Linear(8, 1)})
    pruner = MagnitudePruner(model, {"global_config": RULE})
    pruner.prepare(inplace=True)
    for turn in ("critic", "generator", "critic"):
        fake = model["generator"](torch.randn(4, 8))
        model["critic"](fake.detach() if turn == "critic" else fake).mean().backward()
        pruner.step()
    assert pruner.step_count == 3
    assert pruner.untrained == []


def test_steps_without_any_training_are_not_told_of():
    pruner = MagnitudePruner(nn.Sequential(nn.Linear(8, 8)), {"global_config": RULE})
    pruner.prepare(inplace=True)
    for _ in range(5):
        pruner.step()
    assert pruner.report().sparsity == 0.5
