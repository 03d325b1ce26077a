"""What LightningCLI makes of the callback: rules in YAML, and changed on the command line."""

import sys

import pytest
import torch
import yaml
from conftest import ToyModule
from lightning.pytorch.cli import LightningCLI

from lightning_prune import ConfigError, CoreMLExport, FixedMasks, MagnitudePruningCallback

RULES = {
    "global_config": {"scheduler": {"begin": 0.1, "end": 0.6}, "target_sparsity": 0.75},
    "module_name_configs": {"fc2": None},
}
CALLBACK = "lightning_prune.MagnitudePruningCallback"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("extras"),
]


def parse(tmp_path, *arguments: str, config: object = RULES) -> MagnitudePruningCallback:
    path = tmp_path / "run.yaml"
    callbacks = [{"class_path": CALLBACK, "init_args": {"config": config}}]
    path.write_text(yaml.safe_dump({"trainer": {"logger": False, "accelerator": "cpu", "callbacks": callbacks}}))
    cli = LightningCLI(ToyModule, run=False, args=["--config", str(path), *arguments], save_config_callback=None)
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, MagnitudePruningCallback))


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


def test_the_name_of_a_score_is_refused_and_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "harmful_score.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    rules = {"global_config": {"score": "harmful_score.taylor"}}
    for config in (rules, {"class_path": "lightning_prune.MagnitudePrunerConfig", "init_args": rules}):
        with pytest.raises(ConfigError, match=r"global_config\.score must be a function .* No file names a function"):
            parse(tmp_path, config=config)
    assert "harmful_score" not in sys.modules


def test_masks_from_elsewhere_stand_in_yaml_by_their_file(tmp_path):
    masks = {"fc1.weight": torch.rand(32, 128) < 0.5}
    torch.save(masks, tmp_path / "masks.pt")
    given = {"class_path": "lightning_prune.FixedMasks", "init_args": {"masks": str(tmp_path / "masks.pt")}}
    assert parse(tmp_path, config=given).config == FixedMasks(masks)
    found = {"class_path": "lightning_prune.FixedMasks.from_zeros"}
    assert parse(tmp_path, config=found).config == FixedMasks.from_zeros()


class Named(MagnitudePruningCallback):
    """A callback of the user's own."""

    def __init__(self, config: object = None) -> None:
        super().__init__(config, log_prefix="named")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"global_config": {"target_sparsity": 75}}}, "global_config.target_sparsity must be"),
        ({"config": {"global_configs": {"target_sparsity": 0.75}}}, "global_configs is not a known key"),
        ({"config": "global_config: {target_sparsity: 75}"}, "global_config.target_sparsity must be"),
        ({"config": "no_such_file.yaml"}, "The configuration file 'no_such_file.yaml' cannot be read"),
        ({"config": {"global_config": {"scheduler": {"begin": 3.0}}}}, "global_config.scheduler.begin as a float"),
        ({"export": "digits.txt"}, "export.path must end in .mlpackage"),
        (
            {"export": {"class_path": "lightning_prune.CoreMLExport", "init_args": {"path": "a.onnx"}}},
            "export.path must",
        ),
        ({"export": {"path": "net.txt"}}, "export.path must end in .mlpackage, got 'net.txt'"),
        ({"export": {"path": "a.mlpackage", "compression": "int9"}}, "export.compression must be"),
        (
            {
                "export": {
                    "class_path": "lightning_prune.CoreMLExport",
                    "init_args": {"path": "a.mlpackage", "compression": "int9"},
                }
            },
            "export.compression must be",
        ),
        ({"export": {"path": "a.mlpackage", "overwrite": "maybe"}}, "export.overwrite must be True or False"),
        ({"export": {"path": "a.mlpackage", "frontend": "onnx"}}, "export.frontend must be"),
        ({"export": {"path": "a.mlpackage", "compresion": "int8"}}, "export.compresion is not a known key. Did you"),
        ({"export": {"compression": "int8"}}, "export.path must be a path that ends in .mlpackage, got None"),
        ({"export": {"class_path": "no.such.Thing", "init_args": {}}}, "class_path of an export must be CoreMLExport"),
        ({"export": 3}, "export must be a CoreMLExport, CoreAIExport, ONNXExport, SparseExport, a path or None, got 3"),
    ],
)
def test_an_error_of_a_configuration_is_the_last_thing_that_the_user_reads(tmp_path, arguments, message):
    """Not one line of thirty in an error of jsonargparse."""
    path = tmp_path / "run.yaml"
    callbacks = [{"class_path": CALLBACK, "init_args": arguments}]
    path.write_text(yaml.safe_dump({"trainer": {"logger": False, "accelerator": "cpu", "callbacks": callbacks}}))
    with pytest.raises(ConfigError) as caught:
        LightningCLI(ToyModule, run=False, args=["--config", str(path)], save_config_callback=None)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "Namespace" not in str(caught.value)


def parse_export(tmp_path, export, *arguments: str) -> CoreMLExport | None:
    path = tmp_path / "run.yaml"
    callbacks = [{"class_path": CALLBACK, "init_args": {"config": RULES, "export": export}}]
    path.write_text(yaml.safe_dump({"trainer": {"logger": False, "accelerator": "cpu", "callbacks": callbacks}}))
    cli = LightningCLI(ToyModule, run=False, args=["--config", str(path), *arguments], save_config_callback=None)
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, MagnitudePruningCallback)).export


def test_an_export_may_be_a_path_a_dict_or_a_class(tmp_path):
    path = str(tmp_path / "net.mlpackage")
    values = {"path": path, "compute_precision": "float32", "output_names": ["digit"], "overwrite": False}
    expected = CoreMLExport(**values)
    assert parse_export(tmp_path, values) == expected
    assert parse_export(tmp_path, {"class_path": "lightning_prune.CoreMLExport", "init_args": values}) == expected
    assert MagnitudePruningCallback(RULES, export=values).export == expected
    with pytest.raises(ConfigError, match=r"export.path is missing. Write where"):
        MagnitudePruningCallback(RULES, export={"compression": "int8"})
    assert parse_export(tmp_path, path) == CoreMLExport(path)
    assert parse_export(tmp_path, None) is None
    assert parse_export(tmp_path, None, f"--trainer.callbacks.export={path}") == CoreMLExport(path)
    changed = parse_export(tmp_path, values, "--trainer.callbacks.export.compute_precision=float16")
    assert changed == CoreMLExport(**{**values, "compute_precision": "float16"})


def test_a_subclass_of_the_callback_has_the_last_word_too(tmp_path):
    callbacks = [{"class_path": f"{__name__}.Named", "init_args": {"config": {"global_config": {"dim": 7}}}}]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"logger": False, "accelerator": "cpu", "callbacks": callbacks}}))
    with pytest.raises(ConfigError, match=r"^global_config.dim must be 0"):
        LightningCLI(ToyModule, run=False, args=["--config", str(path)], save_config_callback=None)
    with pytest.raises(ConfigError, match=r"^global_config.dim must be 0"):
        Named({"global_config": {"dim": 7}})


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


def test_the_page_and_the_pictures_are_arguments_of_the_command_line(tmp_path):
    page = tmp_path / "run.html"
    callback = parse(tmp_path, f"--trainer.callbacks.page={page}", "--trainer.callbacks.log_figures=true")
    assert callback.page == page
    assert callback.log_figures is True
