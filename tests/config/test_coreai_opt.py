"""Configurations of coreai-opt, as the dicts that its YAML files hold, and as objects of the same shape."""

from types import SimpleNamespace as Object

import pytest
from torch import nn

from lightning_prune import ConfigError, ModuleMagnitudePrunerConfig
from lightning_prune.config import load_config


def spec(target=0.5, scheme=None, **values):
    scheme = scheme or Object(axis=None)
    return Object(target_sparsity=target, pruning_scheme=scheme, pruning_algo="default", **values)


class ChannelStructured(Object):
    """Its name says what it is."""


class MagnitudePrunerConfig(Object):
    """As coreai-opt has it."""


MagnitudePrunerConfig.__module__ = "coreai_opt.pruning.config.magnitude_pruner_config"
SCHEDULE = Object(begin_step=2, total_iters=10, power=2.0, initial_sparsity=0.1, update_frequency=3)


def rule(**values):
    return Object(
        **{"op_state_spec": {"weight": spec(), "in_proj_weight": spec()}, "sparsity_schedule": None, **values}
    )


def theirs(whole=None, types=None, names=None):
    return MagnitudePrunerConfig(global_config=whole, module_type_configs=types or {}, module_name_configs=names or {})


def test_a_schedule_gives_the_same_sparsity_at_every_step():
    (leaf,) = [load_config(theirs(rule(sparsity_schedule=SCHEDULE))).global_config]
    # worked out by hand from its formula: updates at 2, 5, 8 and 11, of power 2, from 0.1 to 0.5
    expected = [0.1] * 5 + [0.5 - 0.4 * 4 / 9] * 3 + [0.5 - 0.4 * 1 / 9] * 3 + [0.5] * 3
    found = [leaf.initial_sparsity]
    for step in range(1, 14):
        found.append(leaf.schedule.compute_sparsity(step, found[-1], leaf))
    assert found == pytest.approx(expected)


def test_a_single_update_comes_at_the_end_and_no_schedule_is_the_target_at_once():
    faster = rule(sparsity_schedule=Object(**{**vars(SCHEDULE), "update_frequency": 20}))
    leaf = load_config(theirs(faster)).global_config
    assert [leaf.schedule.compute_sparsity(step, 0.1, leaf) for step in (11, 12)] == [0.1, 0.5]
    assert load_config(theirs(rule())).global_config.initial_sparsity == 0.5
    late = load_config(theirs(rule(sparsity_schedule=Object(begin_step=4)))).global_config
    assert (late.initial_sparsity, late.schedule.begin_step) == (0.0, 4)


def test_schemes_types_and_names_become_rules_of_ours():
    channels = rule(op_state_spec={"weight": spec(0.75, ChannelStructured(axis=0))})
    packed = rule(op_state_spec={"*": spec(0.9)})
    config = load_config(
        theirs(
            rule(),
            {"torch.nn.modules.conv.Conv2d": channels, "torch.nn.modules.activation.MultiheadAttention": packed},
            {"body.*": rule(op_state_spec={"weight": spec(0.25)}), "body.1": packed, "head": None},
        )
    )
    conv = config.get_module_config("stem", nn.Conv2d(3, 8, 3))
    assert (conv.granularity, conv.target_sparsity) == ("per_channel", 0.75)
    attention = nn.MultiheadAttention(8, 2)
    assert config.get_module_config("a", attention).param_name == "in_proj_weight"
    assert config.get_module_config("a.out_proj", attention.out_proj).target_sparsity == 0.9
    assert config.get_module_config("body.0", nn.Linear(4, 4)).target_sparsity == 0.25
    # the last of their patterns that match holds
    assert config.get_module_config("body.1", nn.Linear(4, 4)).target_sparsity == 0.9
    assert config.get_module_config("body.1", nn.Linear(4, 4)).param_name == "weight|in_proj_weight"
    assert config.get_module_config("head", nn.Linear(4, 4)) is None
    assert config.get_module_config("head.0", nn.Linear(4, 4)) is None


def test_a_yaml_file_of_coreai_opt_is_read(tmp_path):
    (tmp_path / "prune.yaml").write_text(
        """
magnitude_pruning_config:
  global_config:
    op_state_spec:
      weight: {target_sparsity: 0.7, pruning_scheme: {type: channel_structured, axis: 0}}
  module_name_configs:
    head: null
"""
    )
    config = load_config(tmp_path / "prune.yaml")
    assert config.global_config == ModuleMagnitudePrunerConfig(
        {"begin_step": 0}, initial_sparsity=0.7, target_sparsity=0.7, granularity="per_channel"
    )
    assert load_config({"magnitude_pruning_config": {}}).global_config.target_sparsity == 0.5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (theirs(rule(op_type_config={"linear": None})), "global_config.op_type_config must be left out"),
        (
            theirs(rule(op_state_spec={"weight": spec(scheme=ChannelStructured(axis=1))})),
            "pruning_scheme.axis must be 0, the output channels, got 1",
        ),
        (theirs(rule(), {"my.Block": rule()}), r'module_type_configs\["my.Block"\] must be a layer'),
        (
            theirs(rule(), names={"x": rule(op_state_spec={"weight": spec(), "in_proj_weight": spec(0.9)})}),
            "must prune weight and in_proj_weight alike",
        ),
        (
            {"magnitude_pruning_config": {"global_config": {"sparsity_schedule": {}}}},
            "The to_dict.. of coreai-opt leaves out what its schedules hold",
        ),
        ({"magnitude_pruning_config": {"globals": {}}}, "magnitude_pruning_config.globals is not a level"),
        ({"magnitude_pruning_config": {}, "x": 1}, "x is not a key beside magnitude_pruning_config"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_path(source, message):
    with pytest.raises(ConfigError, match=message):
        load_config(source)
