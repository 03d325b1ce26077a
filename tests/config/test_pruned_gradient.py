"""Settings of straight-through gradients: checked, written, and unknown to Core ML Tools."""

from __future__ import annotations

import pytest

from lightning_prune import ConfigError, MagnitudePrunerConfig, ModuleMagnitudePrunerConfig

EVERY_STEP = {"begin_step": 1, "frequency": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pruned_gradient": "dense"}, r'pruned_gradient must be "zero" or "straight_through", got \'dense\''),
        ({"decay": -0.1}, r"decay must be a number of at least 0.0, got -0.1"),
        ({"decay": float("inf")}, r"decay must be a number of at least 0.0, got inf"),
        ({"decay": float("nan")}, r"decay must be a number of at least 0.0, got nan"),
        ({"decay": True}, r"decay must be a number of at least 0.0, got True"),
        ({"decay": "2e-4"}, r"decay must be .* write 0.0002"),
        ({"decay": 2e-4}, r'decay must be 0.0 with pruned_gradient="zero", got 0.0002. Write pruned_gradient="stra'),
        ({"pruned_gradient": "straight_through"}, r"needs a scheduler that computes masks more than once"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_written(values, message):
    with pytest.raises(ConfigError, match=message):
        ModuleMagnitudePrunerConfig(**values)


def test_settings_survive_a_round_trip_and_are_checked_when_they_change():
    rule = ModuleMagnitudePrunerConfig(EVERY_STEP, pruned_gradient="straight_through", decay=1)
    assert type(rule.decay) is float
    assert ModuleMagnitudePrunerConfig.from_dict(rule.as_dict()) == rule
    assert rule.as_dict()["scheduler"] == EVERY_STEP
    with pytest.raises(ConfigError, match="decay must be 0.0"):
        rule.pruned_gradient = "zero"
    rule.decay = 0.0
    rule.pruned_gradient = "zero"
    assert rule == ModuleMagnitudePrunerConfig(EVERY_STEP)


@pytest.mark.parametrize("frequency", [2, 0.25, "1 epoch"])
def test_yaml_has_the_settings_and_the_frequency(frequency):
    text = f"""
global_config:
  scheduler: {{begin_step: 1, frequency: {frequency}}}
  n_m_ratio: [2, 4]
  pruned_gradient: straight_through
  decay: 0.0002
"""
    config = MagnitudePrunerConfig.from_yaml(text)
    rule = config.global_config
    assert (rule.scheduler.frequency, rule.pruned_gradient, rule.decay) == (frequency, "straight_through", 0.0002)
    assert MagnitudePrunerConfig.from_yaml(config.as_yaml()) == config


def test_core_ml_tools_reads_our_configurations_and_refuses_what_it_does_not_have(coremltools):
    theirs = coremltools.optimize.torch.pruning.MagnitudePrunerConfig
    schedule = {"update_steps": [1, 2, 3]}
    plain = MagnitudePrunerConfig(ModuleMagnitudePrunerConfig(schedule, target_sparsity=0.75))
    assert theirs.from_dict(plain.as_dict()).global_config.target_sparsity == 0.75
    for rule in (
        ModuleMagnitudePrunerConfig(schedule, pruned_gradient="straight_through"),
        ModuleMagnitudePrunerConfig(schedule, pruned_gradient="straight_through", decay=0.1),
        ModuleMagnitudePrunerConfig(EVERY_STEP),
    ):
        with pytest.raises(Exception, match="While structuring"):
            theirs.from_dict(MagnitudePrunerConfig(rule).as_dict())
