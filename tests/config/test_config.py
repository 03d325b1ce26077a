import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from torch import nn

import lightning_prune
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
        ({"n_m_ratio": "2:4"}, r"n_m_ratio must be two whole numbers .* got '2:4'.* write \[2, 4\]"),
        ({"n_m_ratio": 124}, r"n_m_ratio .* got 124. YAML makes 124 of 2:4, a number in base 60: write \[2, 4\]"),
        ({"n_m_ratio": (2.0, 4.0)}, r"n_m_ratio must be two whole numbers .* got \(2.0, 4.0\)"),
        ({"n_m_ratio": (True, 4)}, r"n_m_ratio must be two whole numbers .* got \(True, 4\)"),
        ({"dim": 1.0}, "dim must be 0 .* a whole number, got 1.0"),
        ({"dim": True}, "dim must be 0 .* got True. YAML makes True of yes, on and true: write a number"),
        ({"dim": float("inf")}, "dim must be 0 .* got inf"),
        ({"block_size": np.float64(2)}, "block_size must be a whole number .* got 2.0"),
        ({"block_size": "1e0"}, "block_size .* got '1e0'.* which YAML makes of 1e0: write 1"),
        ({"target_sparsity": np.True_}, "target_sparsity must be a fraction .* got (np.)?True"),
        ({"target_sparsity": np.float32(1.5)}, "target_sparsity must be a fraction .* got .*1.5"),
        ({"target_sparsity": b"0.5"}, "target_sparsity must be a fraction .* got b'0.5'"),
        ({"target_sparsity": "5e-1"}, "target_sparsity .* got '5e-1'.* which YAML makes of 5e-1: write 0.5"),
        ({"target_sparsity": "75%"}, "target_sparsity .* got '75%'. Write 0.75 for 75 %"),
        ({"param_name": b"weight"}, "param_name must be the name .* a text, got b'weight'"),
        (
            {"param_name": True},
            'param_name .* got True. YAML makes True of yes, on and true: write it in quotes, "yes"',
        ),
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


def test_numbers_of_numpy_are_stored_as_plain_ones():
    rule = ModuleMagnitudePrunerConfig(
        {"update_steps": np.array([1, 2]), "power": np.float32(2)},
        np.float32(0.1),
        np.float32(0.9),
        np.str_("per_scalar"),
        np.int64(2),
        dim=np.int8(0),
    )
    assert (rule.initial_sparsity, rule.target_sparsity) == (0.1, 0.9), "as they print, not as float32 holds them"
    plain = {**rule.as_dict(), "scheduler": None}
    assert [type(value) for value in plain.values()] == [type(None), float, float, str, int, type(None), int, str]
    assert MagnitudePrunerConfig.from_yaml(MagnitudePrunerConfig(rule).as_yaml()).global_config == rule
    rule.target_sparsity = np.float64(0.5)
    rule.n_m_ratio = None
    assert type(rule.target_sparsity) is float
    ratio = ModuleMagnitudePrunerConfig(n_m_ratio=(np.int64(2), np.int64(4))).n_m_ratio
    assert ratio == (2, 4)
    assert {type(number) for number in ratio} == {int}
    assert ModuleMagnitudePrunerConfig(target_sparsity=Fraction(3, 4)).target_sparsity == 0.75


class ListConfig(Sequence):
    """A list as configuration tools make it: no list, and printed as one."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


class DictConfig(Mapping):
    """A dict as configuration tools make it."""

    def __init__(self, **items: object) -> None:
        self.items_ = items

    def __getitem__(self, key):
        return self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


@dataclass(frozen=True)
class Table(EveryOther):
    """A schedule of a user's own that is given a list."""

    points: Sequence = ()


def test_sequences_and_mappings_of_any_class_are_lists_and_dicts():
    config = load_config(
        DictConfig(
            global_config=DictConfig(scheduler=DictConfig(update_steps=ListConfig(2, 4)), target_sparsity=0.75),
            module_name_configs=DictConfig(
                body=DictConfig(n_m_ratio=ListConfig(2, 4)),
                head=DictConfig(
                    scheduler=DictConfig(
                        class_path=f"{__name__}.Table",
                        init_args=DictConfig(limit=np.float32(0.5), points=ListConfig(1, ListConfig(2))),
                    )
                ),
                tail=None,
            ),
        )
    )
    assert config.global_config.scheduler.update_steps == (2, 4)
    assert config.module_name_configs["body"].n_m_ratio == (2, 4)
    assert config.module_name_configs["tail"] is None
    described = config.as_dict()["module_name_configs"]["head"]["scheduler"]["init_args"]
    assert described == {"limit": 0.5, "points": [1, [2]]}, "plain values, which a checkpoint can hold"
    assert "points:" in config.as_yaml()
    with pytest.raises(ConfigError, match="n_m_ratio must be two whole numbers"):
        ModuleMagnitudePrunerConfig(n_m_ratio=ListConfig(1, 2, 3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("global_config: {n_m_ratio: 2:4}", r"n_m_ratio .* YAML makes 124 of 2:4, a number in base 60: write \[2, 4\]"),
        ("global_config: {scheduler: {begin: 1:30}}", "begin .* YAML makes a number in base 60 of 1:30"),
        ("global_config: {scheduler: {begin_step: 0100}}", "begin_step .* octal: write 100"),
        ("global_config: {scheduler: {update_steps: [1e1, 1e2]}}", "update_steps .* of 1e1: write 10"),
        ("global_config: {target_sparsity: }", "target_sparsity .* got None. YAML makes None of nothing"),
        ("global_config: {target_sparsity: on}", "target_sparsity .* got True. YAML makes True of yes, on and true"),
        (
            "module_name_configs: {0: null}",
            'the name must be a regular expression, a text, got 0. Write it in quotes, "0"',
        ),
        (
            "module_name_configs: {off: null}",
            'got False. YAML makes False of no, off and false: write it in quotes, "no"',
        ),
    ],
)
def test_what_yaml_makes_of_a_value_is_said(line: str, message: str):
    with pytest.raises(ConfigError, match=message):
        MagnitudePrunerConfig.from_yaml(line)


def test_decimal_numbers_in_yaml_stay_numbers():
    text = "global_config: {scheduler: {update_steps: [0, 1_000, 0x7D0]}, target_sparsity: 9.0e-1}"
    assert MagnitudePrunerConfig.from_yaml(text).global_config == ModuleMagnitudePrunerConfig(
        PolynomialDecayScheduler([0, 1000, 2000]), target_sparsity=0.9
    )


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
    with pytest.raises(ConfigError, match="got '5'. It is a text: write the number without quotes"):
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


@pytest.mark.parametrize("name", ["config MagnitudePrunerConfig", "schedules PolynomialDecayScheduler"])
def test_pickles_from_when_these_were_files_still_name_the_class(name):
    module, attribute = name.split()
    found = pickle.loads(f"clightning_prune.{module}\n{attribute}\n.".encode())
    assert found is getattr(lightning_prune, attribute)
