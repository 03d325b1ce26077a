"""What LightningCLI makes of the callback: rules in YAML, and changed on the command line."""

import pytest
import yaml
from conftest import ToyModule
from lightning.pytorch.cli import LightningCLI

from lightning_prune import ConfigError, MagnitudePruningCallback

RULES = {
    "global_config": {"scheduler": {"begin": 0.1, "end": 0.6}, "target_sparsity": 0.75},
    "module_name_configs": {"fc2": None},
}
CALLBACK = "lightning_prune.MagnitudePruningCallback"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def parse(tmp_path, *arguments: str, config: object = RULES) -> MagnitudePruningCallback:
    path = tmp_path / "run.yaml"
    callbacks = [{"class_path": CALLBACK, "init_args": {"config": config}}]
    path.write_text(yaml.safe_dump({"trainer": {"logger": False, "accelerator": "cpu", "callbacks": callbacks}}))
    cli = LightningCLI(ToyModule, run=False, args=["--config", str(path), *arguments], save_config_callback=None)
    return next(one for one in cli.trainer.callbacks if isinstance(one, MagnitudePruningCallback))


@pytest.mark.parametrize(
    ("argument", "read", "value"),
    [
        ("global_config.target_sparsity=0.9", lambda rule: rule.target_sparsity, 0.9),
        ("global_config.scheduler.begin=0.3", lambda rule: rule.scheduler.begin, 0.3),
        ("global_config.granularity=per_channel", lambda rule: rule.granularity, "per_channel"),
        ("global_config.block_size=2", lambda rule: rule.block_size, 2),
    ],
)
def test_one_value_changed_on_the_command_line_leaves_the_others(tmp_path, argument, read, value):
    config = parse(tmp_path, f"--trainer.callbacks.config.{argument}").config
    assert read(config.global_config) == value
    changed = config.as_dict()
    name = argument.split(".")[1]
    del changed["global_config"][name.split("=")[0]]
    expected = parse(tmp_path).config.as_dict()
    del expected["global_config"][name.split("=")[0]]
    assert changed == expected
    assert changed["module_name_configs"] == {"fc2": None}


def test_a_wrong_value_on_the_command_line_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"global_config.target_sparsity must be a fraction in \[0, 1\], got 75"):
        parse(tmp_path, "--trainer.callbacks.config.global_config.target_sparsity=75")
    with pytest.raises(ValueError, match="global_config.target_sparsity is 0.5 by n_m_ratio"):
        parse(tmp_path, "--trainer.callbacks.config.global_config.n_m_ratio=[2,4]")


def test_a_configuration_may_be_a_path_a_text_or_a_class(tmp_path):
    path = tmp_path / "prune.yaml"
    path.write_text(yaml.safe_dump(RULES))
    expected = parse(tmp_path).config
    rule = {"class_path": "lightning_prune.ModuleMagnitudePrunerConfig", "init_args": RULES["global_config"]}
    whole = {"class_path": "lightning_prune.MagnitudePrunerConfig", "init_args": RULES}
    assert parse(tmp_path, config=str(path)).config == expected
    assert parse(tmp_path, f"--trainer.callbacks.config={path}", config=None).config == expected
    assert parse(tmp_path, "--trainer.callbacks.config", yaml.safe_dump(RULES), config=None).config == expected
    assert parse(tmp_path, config=whole).config == expected
    assert parse(tmp_path, config=rule).config.as_dict() == {**expected.as_dict(), "module_name_configs": {}}
    with pytest.raises((ConfigError, ValueError), match="class_path of a configuration must be one of"):
        parse(tmp_path, config={"class_path": "no.such.Thing", "init_args": {}})
