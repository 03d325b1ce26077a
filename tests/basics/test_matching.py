"""Patterns of names: the answers of ``re.fullmatch``, in a time that no pattern makes long."""

import random
import re
import time

import pytest
from torch import nn

from lightning_prune import ConfigError, allocate, plan_pruning
from lightning_prune.basics.matching import _parser, _Places, check_pattern, fullmatch
from lightning_prune.config import ModuleMagnitudePrunerConfig, load_config

NAMES = ("transformer_encoder_decoder_layers_block", "encoder.layers.11.self_attn.out_proj", "a" * 60, "conv1", "")
ENDLESS = (
    r"(\w+\.?)*\.conv",
    "(a+)+x",
    "(a*)*x",
    "(a|a)*x",
    "(a|ab|b)*x",
    "(.*)*x",
    "(?:.*a){15}x",
    "((a?)*)*x",
    "a?" * 40 + "a" * 40 + "x",
    ".*.*.*.*.*.*.*.*.*x",
    "(?=(a+)+x).*",
    "(?:(?:(?:a*)*)*)*x",
    "(a{1,50}){1,50}x",
    "(?i)(A+)+x",
)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_pattern_is_tried_for_ever(pattern):
    start = time.monotonic()
    for name in NAMES:
        assert not fullmatch(pattern, name)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("pattern", "name", "answer"),
    [
        (r"encoder\.(layers\.\d+\.)*fc[12]", "encoder.layers.3.layers.1.fc2", True),
        (r"encoder\.(layers\.\d+\.)*fc[12]", "encoder.layers.fc2", False),
        (r".*\.(conv|fc)\d*", "body.3.conv12", True),
        (r".*\..*\..*\..*\..*\..*", "a.b.c.d.e.f", True),
        (r"(?!head)(\w+\.?)*", "body.0.fc", True),
        (r"(?!head)(\w+\.?)*", "head.fc", False),
        (r"(\w+\.)*(?<!not_)fc\b(\w+\.?)*", "a.b.fc", True),
        (r"(\w+\.)*(?<!not_)fc\b(\w+\.?)*", "a.b.not_fc", False),
        (r"(?i:(FC|conv)+\d?)*", "fcCONV1fc", True),
    ],
)
def test_ordinary_patterns_match_as_ever(pattern, name, answer):
    assert fullmatch(pattern, name) is answer
    assert (re.fullmatch(pattern, name) is not None) is answer


def pattern_of(rng, depth):
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(["a", "b", ".", r"\.", r"\w", "[ab]", "[^a]", r"\b", "^", "$", "", r"\d", "B"])
    if kind < 0.55:
        return pattern_of(rng, depth - 1) + pattern_of(rng, depth - 1)
    if kind < 0.7:
        return f"(?:{pattern_of(rng, depth - 1)}|{pattern_of(rng, depth - 1)})"
    if kind < 0.9:
        repeat = rng.choice(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{0,2}", "{2,}"])
        return f"(?:{pattern_of(rng, depth - 1)}){repeat}"
    return f"{rng.choice(['(?=', '(?!', '(?i:', '(?<=', '(?<!'])}{pattern_of(rng, depth - 1)})"


def test_following_places_finds_what_trying_finds():
    rng, checked = random.Random(0), 0
    while checked < 400:
        pattern = pattern_of(rng, 4)
        try:
            compiled = re.compile(pattern)
        except re.error:  # looking back takes one width
            continue
        checked += 1
        places = _Places(_parser.parse(pattern), compiled.flags)
        for _ in range(4):
            name = "".join(rng.choice("ab.A1\n") for _ in range(rng.randrange(7)))
            assert places.fullmatch(name) == (compiled.fullmatch(name) is not None), (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "missing \\)"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a{99999999999}", "repetition number is too large"),
        (r"(\w+)+\1", "may be tried in too many ways, and it has groupref"),
        ("(a|a)" * 500, "may be tried in too many ways, and it is too long for that"),
        ("x" * 10**6, "must have at most 100,000 letters, has 1,000,000"),
        (3, "must be a text, got 3"),
        (b"fc", "must be a text, got b'fc'"),
    ],
)
def test_what_cannot_be_matched_is_refused(pattern, why):
    with pytest.raises(ConfigError, match=why) as caught:
        check_pattern(pattern)
    assert len(str(caught.value)) < 300


def test_settings_say_which_pattern_cannot_be_matched():
    with pytest.raises(
        ConfigError, match=r'module_name_configs\["\(a\+\)\+.*"\]: the name must be a regular expression'
    ):
        load_config({"module_name_configs": {r"(a+)+\1": None}})
    with pytest.raises(ConfigError, match="param_name must be the name of a parameter"):
        ModuleMagnitudePrunerConfig(param_name=r"(a+)+\1")
    model = nn.ModuleDict({NAMES[0]: nn.Linear(4, 4)})
    with pytest.raises(ConfigError, match="exclude.*must be a name or a regular expression"):
        allocate(model, 0.5, exclude=[r"(a+)+\1"])


def test_a_plan_of_a_pattern_without_end_ends():
    model = nn.ModuleDict({NAMES[0]: nn.Linear(4, 4)})
    with pytest.raises(ConfigError, match="matches no module of the model"):
        plan_pruning(model, {"module_name_configs": {r"(\w+\.?)*\.conv": None}, "global_config": {}})
    with pytest.raises(ConfigError, match="matches no pruned layer"):
        allocate(model, 0.5, exclude=[r"(\w+\.?)*\.conv"])
    with pytest.raises(ConfigError, match="has no parameter"):
        plan_pruning(
            model, {"module_name_configs": {NAMES[0]: {"param_name": r"(\w+\.?)*\.conv"}}, "global_config": None}
        )
