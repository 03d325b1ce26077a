from dataclasses import dataclass

import pytest
from torch import nn

from lightning_prune import (
    ConfigError,
    ConstantSparsityScheduler,
    CosineDecayScheduler,
    MagnitudePrunerConfig,
    ModuleMagnitudePrunerConfig,
    PolynomialDecayScheduler,
    PruningScheduler,
)
from lightning_prune.config import load_config

FULL = {
    "global_config": {"scheduler": {"update_steps": "range(0, 50, 10)", "power": 2}, "target_sparsity": 0.8},
    "module_type_configs": {"Conv2d": {"granularity": "per_kernel"}, "Conv1d": None},
    "module_name_configs": {
        "head": None,
        r"body\.\d+": {"n_m_ratio": [2, 4], "dim": 0},
        "tail": {"block_size": 4, "scheduler": {"begin_step": 7}},
        "rest": {"scheduler": {"class_path": "CosineDecayScheduler", "init_args": {"begin": 0.1, "end": 0.5}}},
    },
}


@dataclass(frozen=True)
class EveryOther(PruningScheduler):
    """A schedule of a user's own."""

    limit: float = 1.0

    def compute_sparsity(self, step_count, prev_sparsity, config):
        return min(self.limit, config.target_sparsity) if step_count % 2 else prev_sparsity


def test_defaults_are_those_of_core_ml_tools(coremltools):
    theirs, ours = coremltools.optimize.torch.pruning.ModuleMagnitudePrunerConfig(), ModuleMagnitudePrunerConfig()
    for name in ("initial_sparsity", "target_sparsity", "granularity", "block_size", "n_m_ratio", "dim", "param_name"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.scheduler == ConstantSparsityScheduler(theirs.scheduler.begin_step)


def test_a_configuration_goes_to_plain_values_and_back():
    config = MagnitudePrunerConfig.from_dict(FULL)
    assert MagnitudePrunerConfig.from_dict(config.as_dict()) == config
    assert MagnitudePrunerConfig.from_yaml(config.as_yaml()) == config
    assert config.global_config.scheduler == PolynomialDecayScheduler([0, 10, 20, 30, 40], 2)
    assert config.module_name_configs["rest"].scheduler == CosineDecayScheduler(begin=0.1, end=0.5)


def test_a_schedule_of_the_user_is_found_by_its_class_path():
    config = ModuleMagnitudePrunerConfig(
        scheduler={"class_path": f"{__name__}.EveryOther", "init_args": {"limit": 0.5}}
    )
    assert config.scheduler == EveryOther(0.5)
    assert ModuleMagnitudePrunerConfig.from_dict(config.as_dict()) == config


def test_yaml_may_be_a_path_a_text_or_a_file(tmp_path):
    path = tmp_path / "prune.yaml"
    config = MagnitudePrunerConfig.from_dict(FULL)
    path.write_text(config.as_yaml())
    assert MagnitudePrunerConfig.from_yaml(path) == config
    assert MagnitudePrunerConfig.from_yaml(str(path)) == config
    assert load_config(str(path)) == config
    with path.open() as file:
        assert MagnitudePrunerConfig.from_yaml(file) == config
    assert (
        MagnitudePrunerConfig.from_yaml("global_config: {target_sparsity: 0.25}").global_config.target_sparsity == 0.25
    )


def test_yaml_errors_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        MagnitudePrunerConfig.from_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        MagnitudePrunerConfig.from_yaml("global_config: {")
    with pytest.raises(ConfigError, match="must be a dict"):
        MagnitudePrunerConfig.from_yaml("- a\n- b")


def test_nothing_given_prunes_all_supported_modules_by_half():
    assert MagnitudePrunerConfig().global_config == ModuleMagnitudePrunerConfig()
    assert MagnitudePrunerConfig.from_dict({}).global_config == ModuleMagnitudePrunerConfig()
    assert MagnitudePrunerConfig(module_type_configs={"Linear": None}).global_config is None


def test_setters_change_the_configuration_and_return_it():
    config, leaf = MagnitudePrunerConfig(), ModuleMagnitudePrunerConfig(target_sparsity=0.9)
    same = config.set_global(None).set_module_type(nn.Conv2d, leaf).set_module_name("head", None)
    assert same is config
    assert config.global_config is None
    assert config.module_type_configs == {nn.Conv2d: leaf}
    assert config.module_name_configs == {"head": None}
    config.set_module_type("Conv2d", None)
    assert config.module_type_configs == {"Conv2d": None}


def test_a_class_and_its_name_are_the_same_rule():
    by_class = MagnitudePrunerConfig(module_type_configs={nn.Linear: {"target_sparsity": 0.9}})
    by_name = MagnitudePrunerConfig(module_type_configs={"Linear": {"target_sparsity": 0.9}})
    assert by_class == by_name
    assert MagnitudePrunerConfig.from_dict(by_class.as_dict()) == by_class


class SubLinear(nn.Linear):
    pass


def test_the_nearest_rule_wins():
    config = MagnitudePrunerConfig.from_dict(
        {
            "global_config": {"target_sparsity": 0.1},
            "module_type_configs": {"Linear": {"target_sparsity": 0.2}},
            "module_name_configs": {r"head\d": {"target_sparsity": 0.3}, "skip": None},
        }
    )
    linear, conv = nn.Linear(2, 2), nn.Conv2d(1, 1, 1)
    assert config.get_module_config("x", conv).target_sparsity == 0.1
    assert config.get_module_config("x", linear).target_sparsity == 0.2
    assert config.get_module_config("head1", conv).target_sparsity == 0.3
    assert config.get_module_config("head10", linear).target_sparsity == 0.2, "names match as a whole"
    assert config.get_module_config("skip", linear) is None
    assert config.get_module_config("x", SubLinear(2, 2)).target_sparsity == 0.2, "subclasses match their base"
    config.set_module_type(SubLinear, None)
    assert config.get_module_config("x", SubLinear(2, 2)) is None, "the nearest class wins"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_sparsity": 75}, r"target_sparsity must be a fraction in \[0, 1\], got 75. Write 0.75 for 75 %"),
        ({"target_sparsity": 1.5}, "target_sparsity must be a fraction"),
        ({"target_sparsity": True}, "target_sparsity must be a fraction"),
        (
            {"target_sparsity": "0.5"},
            "target_sparsity must be a fraction .* It is a text: write the number without quotes",
        ),
        ({"target_sparsity": float("nan")}, "target_sparsity must be a fraction"),
        ({"initial_sparsity": -0.1}, "initial_sparsity must be a fraction"),
        ({"granularity": "per_layer"}, "granularity must be one of per_scalar, per_kernel, per_channel"),
        ({"block_size": 0}, "block_size must be a whole number"),
        ({"block_size": -3}, "block_size must be a whole number"),
        ({"block_size": 2.0}, "block_size must be a whole number"),
        ({"n_m_ratio": (4, 4)}, "n_m_ratio must have 1 <= n < m"),
        ({"n_m_ratio": (-1, 4)}, "n_m_ratio must have 1 <= n < m"),
        ({"n_m_ratio": (0, 4)}, "n_m_ratio must have 1 <= n < m"),
        ({"n_m_ratio": (1, 2, 3)}, "n_m_ratio must be two whole numbers"),
        ({"n_m_ratio": "2:4"}, "n_m_ratio must be two whole numbers"),
        ({"n_m_ratio": (2, 4), "block_size": 2}, "block_size must be 1 with n_m_ratio"),
        ({"n_m_ratio": (2, 4), "granularity": "per_channel"}, 'granularity must be "per_scalar" with n_m_ratio'),
        ({"n_m_ratio": (2, 4), "initial_sparsity": 0.5}, "initial_sparsity must be 0.0 with n_m_ratio"),
        ({"n_m_ratio": (2, 4), "target_sparsity": 0.9}, "target_sparsity is 0.5 by n_m_ratio"),
        ({"dim": 2}, "dim must be 0"),
        ({"param_name": "("}, "param_name must be the name"),
        ({"param_name": 3}, "param_name must be the name"),
        ({"scheduler": 3}, "scheduler must be a PruningScheduler"),
        ({"scheduler": {"update_steps": []}}, "scheduler.update_steps must not be empty"),
        ({"scheduler": {"update_step": [1]}}, "scheduler.update_step is not a known key. Did you mean 'update_steps'"),
        (
            {"scheduler": {"class_path": "os.path.join"}},
            "scheduler.class_path must name a subclass of PruningScheduler",
        ),
        ({"scheduler": {"class_path": "no.such.Thing"}}, "scheduler.class_path must be an importable schedule"),
        ({"target_sparisty": 0.5}, "target_sparisty is not a known key. Did you mean 'target_sparsity'"),
    ],
)
def test_wrong_values_are_refused_with_their_path(values: dict, message: str):
    with pytest.raises(ConfigError, match=r'^module_name_configs\["head"\].' + message):
        MagnitudePrunerConfig.from_dict({"module_name_configs": {"head": values}})


def test_unknown_levels_and_broken_patterns_are_refused():
    with pytest.raises(ConfigError, match="global_confg is not a known key. Did you mean 'global_config'"):
        MagnitudePrunerConfig.from_dict({"global_confg": {}})
    with pytest.raises(ConfigError, match="must be a regular expression"):
        MagnitudePrunerConfig(module_name_configs={"body[": {}})
    with pytest.raises(ConfigError, match="must be a dict of rules"):
        MagnitudePrunerConfig(module_name_configs=["head"])
    with pytest.raises(ConfigError, match="must be a ModuleMagnitudePrunerConfig"):
        MagnitudePrunerConfig(global_config=0.5)
    with pytest.raises(ConfigError, match="keyed by classes or their names"):
        MagnitudePrunerConfig(module_type_configs={3: None})
    with pytest.raises(ConfigError, match="config must be a MagnitudePrunerConfig"):
        load_config(0.5)


def test_a_later_assignment_is_checked_too():
    config = ModuleMagnitudePrunerConfig()
    config.target_sparsity = 0.9
    assert config.target_sparsity == 0.9
    with pytest.raises(ConfigError, match="target_sparsity must be a fraction"):
        config.target_sparsity = 90
    assert config.target_sparsity == 0.9
    with pytest.raises(ConfigError, match="blocksize is not a setting. Did you mean 'block_size'"):
        config.blocksize = 4
    config.scheduler = {"update_steps": [1, 2]}
    assert config.scheduler == PolynomialDecayScheduler([1, 2])


def test_a_ratio_that_is_assigned_brings_its_target():
    config = ModuleMagnitudePrunerConfig()
    config.n_m_ratio = (1, 4)
    assert config.target_sparsity == 0.25
    config.n_m_ratio = (3, 4)
    assert config.target_sparsity == 0.75
    config.n_m_ratio = None
    assert config == ModuleMagnitudePrunerConfig()
    config.target_sparsity = 0.9
    with pytest.raises(ConfigError, match="Leave one of the two out"):
        config.n_m_ratio = (1, 4)
    assert config == ModuleMagnitudePrunerConfig(target_sparsity=0.9)


def test_a_level_that_is_assigned_is_checked_too():
    config = MagnitudePrunerConfig()
    config.global_config = {"target_sparsity": 0.9}
    assert config.global_config == ModuleMagnitudePrunerConfig(target_sparsity=0.9)
    config.module_type_configs = {"Conv2d": {"block_size": 2}, nn.Conv2d: None}
    assert config.module_type_configs == {nn.Conv2d: None}
    with pytest.raises(ConfigError, match="global_config.target_sparsity must be a fraction"):
        config.global_config = {"target_sparsity": 75}
    with pytest.raises(ConfigError, match="module_name_configs must be a dict of rules"):
        config.module_name_configs = ["head"]
    with pytest.raises(ConfigError, match="Did you mean 'global_config'"):
        config.globl_config = None
    assert config.global_config.target_sparsity == 0.9


def test_a_configuration_that_was_read_is_no_longer_the_users():
    rule = ModuleMagnitudePrunerConfig(target_sparsity=0.9)
    source = MagnitudePrunerConfig(rule, module_name_configs={"head": rule})
    for read in (load_config(source), load_config(rule)):
        rule.target_sparsity = 0.9
        source.set_module_name("body", None)
        rule.target_sparsity = 0.5
        assert read.global_config.target_sparsity == 0.9
        assert "body" not in read.module_name_configs
        rule.target_sparsity = 0.9
    assert load_config(MagnitudePrunerConfig().set_global(None)).global_config is None


@pytest.mark.parametrize("ratio", [(1, 2), (2, 4), (15, 22), (7, 8)])
def test_the_target_of_n_m_is_its_ratio(ratio: tuple[int, int]):
    assert ModuleMagnitudePrunerConfig(n_m_ratio=list(ratio)).target_sparsity == ratio[0] / ratio[1]


def test_configurations_of_core_ml_tools_are_accepted(coremltools):
    theirs = coremltools.optimize.torch.pruning.MagnitudePrunerConfig.from_dict(
        {
            "global_config": {"scheduler": {"update_steps": "range(0, 50, 10)", "power": 2}, "target_sparsity": 0.8},
            "module_type_configs": {"Conv2d": {"granularity": "per_kernel", "scheduler": {"begin_step": 3}}},
            "module_name_configs": {"head": None, "body": {"n_m_ratio": [2, 8], "target_sparsity": 0.1}},
        }
    )
    ours = load_config(theirs)
    assert ours.global_config == ModuleMagnitudePrunerConfig(PolynomialDecayScheduler(range(0, 50, 10), 2), 0.0, 0.8)
    assert ours.module_type_configs["Conv2d"].granularity == "per_kernel"
    assert ours.module_name_configs["head"] is None
    assert ours.module_name_configs["body"].target_sparsity == 0.25
    other = coremltools.optimize.torch.palettization.DKMPalettizerConfig()
    with pytest.raises(ConfigError, match="only its MagnitudePrunerConfig describes pruning"):
        load_config(other)


def test_hints_say_what_to_write():
    with pytest.raises(ConfigError, match="target_sparsity is not a known key. It belongs in a rule: put it under"):
        MagnitudePrunerConfig.from_dict({"target_sparsity": 0.75})
    with pytest.raises(ConfigError, match="got '5'. Write the number without quotes"):
        MagnitudePrunerConfig.from_dict({"global_config": {"scheduler": {"begin": "5"}}})
    with pytest.raises(ConfigError, match="got '75 %'. Write 0.75 for 75 %"):
        MagnitudePrunerConfig.from_dict({"global_config": {"target_sparsity": "75 %"}})
    with pytest.raises(ConfigError, match="A rule must be a dict"):
        ModuleMagnitudePrunerConfig.from_dict(3)


@dataclass
class Noted(MagnitudePrunerConfig):
    """A configuration with a field of the user's."""

    note: str = ""


def test_configurations_may_be_extended():
    config = Noted(ModuleMagnitudePrunerConfig(target_sparsity=0.9), note="mine")
    config.cache = 3
    read = load_config(config)
    assert (read.note, read.cache, read.global_config.target_sparsity) == ("mine", 3, 0.9)
    with pytest.raises(ConfigError, match="global_config.target_sparsity must be a fraction"):
        config.global_config = {"target_sparsity": 75}
    plain = MagnitudePrunerConfig()
    plain.module_name_configs["head"] = {"target_sparsity": 0.6}
    assert load_config(plain).module_name_configs["head"].target_sparsity == 0.6
