"""docs/api.md names what there is: every name can be imported, every argument exists, and none is left out."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lightning_prune.cli.commands import build_parser
from lightning_prune.export import ExportResult
from lightning_prune.pruner import MagnitudePruner

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# Names that other rooms import, and nobody else needs to.
INNER = {
    "lightning_prune.analysis": {"Method", "module_patterns", "read_checkpoint", "read_tensors"},
    "lightning_prune.cli": {"build_parser", "main"},
    "lightning_prune.config": {"load_config", "score_name"},
    "lightning_prune.masking": {
        "ForeignWeights",
        "HeldMask",
        "Masking",
        "MaskingWay",
        "OptimizerLink",
        "hooked_names",
        "plain_state_dict",
        "remove_hooks",
        "way_of",
    },
    "lightning_prune.masks": {
        "Bound",
        "Channels",
        "FORMATS",
        "GOLDEN",
        "Given",
        "Granularity",
        "Structure",
        "along_axis",
        "count_zeros",
        "default_maximum",
        "gather_state",
        "holds_nan",
        "keep_coupled",
        "n_m_groups",
        "pruned_count",
        "rank_together",
        "structure_of",
        "whole_rows",
        "zero_blocks",
        "zero_channels",
        "zero_counts",
        "zero_kernels",
    },
    "lightning_prune.page": {"History", "check_page_path", "gather_page", "now", "page_path", "planned_curve"},
    "lightning_prune.plan": {
        "Coupled",
        "Owner",
        "computed_weight",
        "computed_weights",
        "copy_module",
        "couple_plan",
        "dense_advice",
        "exact_pattern",
        "fill_zero_rows",
        "normed_names",
        "normed_weight",
        "prune_normed",
        "recompute_weights",
        "row_axis",
        "shared_patterns",
        "split_mask",
        "warn_of_dense",
    },
    "lightning_prune.pruner": {"MOST_STEPS", "Planner", "Scope", "check_choices"},
}


def read_page():
    """Lines of the page in which names stand, each with its module: the one in the heading, or in the first cell."""
    module = None
    for line in PAGE.splitlines():
        if line.startswith("#"):
            module = next(iter(re.findall(r"lightning_prune[\w.]*", line)), None)
        elif own := re.match(r"\| `(lightning_prune[\w.]*)` \|", line):
            yield own[1], line[own.end() :]
        elif module is not None and "`" in line:
            yield module, line.removeprefix("|")


LINES = list(read_page())
MODULES = {module: importlib.import_module(module) for module, _ in LINES}


def find(name):
    """An object of that name in any module of the page."""
    return next((getattr(module, name) for module in MODULES.values() if hasattr(module, name)), None)


def names_of(line):
    """Names in the first cell of a row, or in a paragraph, with the arguments that are written behind them."""
    return re.findall(r"`(\w+)(?:\(([^`]*)\))?`", line.split(" | ")[0])


@pytest.mark.parametrize(("module", "line"), LINES)
def test_every_name_can_be_imported_with_the_arguments_that_are_shown(module, line):
    assert names_of(line), "a line without a name"
    for name, arguments in names_of(line):
        target = getattr(MODULES[module], name)
        parameters = inspect.signature(target).parameters if arguments else {}
        is_keyword_only = False
        for argument in filter(lambda entry: entry not in ("", "..."), re.split(r",\s*", arguments)):
            if argument == "*":
                is_keyword_only = True
                continue
            key, _, default = argument.partition("=")
            assert (parameters[key].kind is inspect.Parameter.KEYWORD_ONLY) == is_keyword_only, (name, key)
            if default:
                assert repr(parameters[key].default).replace("'", '"') == default, (name, key)


@pytest.mark.parametrize(("module", "line"), LINES)
def test_every_class_and_attribute_in_an_explanation_exists(module, line):
    named = [name for name, _ in names_of(line)] + re.findall(r"`([A-Z]\w+)`", line)
    assert all(find(name) or name in ("ValueError", "RuntimeError") for name in named), named
    for attribute in re.findall(r"`\.(\w+)", line):
        owners = [find(name) for name in named]
        owners = [owner for owner in owners if inspect.isclass(owner)] or [find("MagnitudePruner")]
        assert any(
            hasattr(owner, attribute) or attribute in owner.__annotations__ or f"{attribute}:" in (owner.__doc__ or "")
            for owner in owners
        ), f"{attribute} of {owners}"


@pytest.mark.parametrize("module", MODULES)
def test_no_public_name_is_left_out(module):
    inner = INNER.get(module, set())
    public = set(MODULES[module].__all__)
    assert inner <= public, "INNER names what is not there any more"
    assert {name for name in public - inner if not re.search(rf"\b{name}\b", PAGE)} == set()


def test_every_member_of_the_pruner_is_told_of():
    section = PAGE.split("## Members of MagnitudePruner")[1].split("\n## ")[0]
    told = set(re.findall(r"`\.(\w+)", section))
    assert told == {name for name in dir(MagnitudePruner) if not name.startswith("_")}


def test_every_field_of_a_result_is_told_of():
    section = PAGE.split("## Fields of ExportResult")[1].split("\n## ")[0]
    assert sorted(re.findall(r"`\.(\w+)", section)) == sorted(entry.name for entry in fields(ExportResult))


def test_every_command_is_there():
    (commands,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert re.findall(r"`lightning-prune (\w+)", PAGE) == list(commands)
