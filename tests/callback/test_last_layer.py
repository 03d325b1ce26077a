"""A rule for all that would empty outputs of the layer that runs last is told of, and no other."""

import copy
import re
import warnings

import pytest
import torch
from conftest import ToyModule, assert_plain, make_loader, make_trainer
from torch import nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils.checkpoint import checkpoint

from lightning_prune import MagnitudePruningCallback

ROWS = {"scheduler": {"update_steps": [1, 2]}, "target_sparsity": 0.5, "granularity": "per_channel"}
LAST = "prunes whole outputs of the layer that runs last"


def fit(tmp_path, config, model=None, *callbacks):
    """Train, and give what was said of a last layer."""
    model = ToyModule() if model is None else model
    pruning = MagnitudePruningCallback(config, show_plan=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(tmp_path, callbacks=[pruning, *callbacks], max_epochs=1).fit(model, make_loader(3))
    return [str(warning.message) for warning in caught if LAST in str(warning.message)]


@pytest.mark.parametrize("config", [{"global_config": ROWS}, {"module_type_configs": {"Linear": ROWS}}])
def test_outputs_that_would_be_empty_are_counted_with_advice_that_works(tmp_path, config):
    model = ToyModule()
    (text,) = fit(tmp_path, config, model)
    assert "fc2 (Linear): at the target 2 of its 4 outputs are the same for every input" in text
    outputs = model(torch.randn(16, 1, 8, 8))
    assert int((outputs.std(0) < 1e-6).sum()) == 2
    assert_plain(model)
    (pattern,) = re.findall(r'module_name_configs={"(.+)": None}', text)
    assert fit(tmp_path, {**config, "module_name_configs": {pattern: None}}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"global_config": {**ROWS, "granularity": "per_scalar"}},
        {"module_type_configs": {"Conv2d": ROWS}},
        {"module_name_configs": {"fc2": ROWS}},
        {"global_config": {**ROWS, "target_sparsity": 0.2}},  # of four outputs none
    ],
    ids=["single weights", "other layers", "by name", "none"],
)
def test_nothing_is_said_where_no_output_is_emptied_or_it_is_meant(tmp_path, config):
    assert fit(tmp_path, config) == []


class RunsAgain(ToyModule):
    """A teacher runs last, and the backward pass runs the first layer again."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(64, 4).requires_grad_(False)

    def forward(self, images):
        hidden = checkpoint(self.conv, images.requires_grad_(), use_reentrant=True)
        outputs = self.fc2(self.fc1(nn.functional.max_pool2d(self.bn(hidden), 2).flatten(1)))
        return outputs + self.teacher(images.flatten(1))


def test_neither_a_teacher_nor_a_layer_that_the_backward_pass_runs_again_is_the_last(tmp_path):
    config = {"global_config": ROWS, "module_name_configs": {"teacher": None}}
    (text,) = fit(tmp_path, config, RunsAgain())
    assert "last, fc2 (Linear)" in text


def test_no_hook_is_left_after_a_first_batch_that_fails(tmp_path):
    class Fails(ToyModule):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("in the first batch")

    model = Fails()
    with pytest.raises(RuntimeError, match="in the first batch"):
        fit(tmp_path, {"global_config": ROWS}, model)
    assert_plain(model)
    assert not _global_forward_hooks


def test_a_copy_that_is_made_in_the_first_batch_carries_no_hook(tmp_path):
    class Copies(ToyModule):
        def training_step(self, batch, batch_idx):
            self.copied = [copy.deepcopy(self.fc2)]
            return super().training_step(batch, batch_idx)

    model = Copies()
    assert len(fit(tmp_path, {"global_config": ROWS}, model)) == 1
    assert not model.copied[0]._forward_hooks
    assert not _global_forward_hooks


def test_a_compiled_model_is_left_alone(tmp_path):
    model = ToyModule()
    model.fc1 = torch.compile(model.fc1, backend="eager")
    assert fit(tmp_path, {"global_config": ROWS}, model) == []
