from fractions import Fraction
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lightning_prune import (
    CheckpointError,
    ConfigError,
    MagnitudePruner,
    MagnitudePrunerConfig,
    PruningError,
    PruningScheduler,
    plan_pruning,
)
from lightning_prune.analysis.allocation import allocate
from lightning_prune.analysis.metrics import mask_changes
from lightning_prune.masks.selection.largest import pruned_count
from lightning_prune.masks.spreads import erdos_renyi_kernel_zeros, global_zeros, uniform_zeros

METHODS = ["uniform", "global", "erdos_renyi_kernel"]
SHAPES = {"first": (8, 3, 3, 3), "body": (16, 8, 3, 3), "wide": (64, 32), "last": (10, 64)}  # 216, 1152, 2048, 640


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10)
    )


def zeros_after_pruning(model: nn.Module, config: MagnitudePrunerConfig) -> dict[str, int]:
    pruner = MagnitudePruner(model, config)
    pruner.prepare()
    pruner.step()
    return {layer.name: layer.zeros for layer in pruner.report().layers}


# Values written by hand


def test_uniform_is_the_same_fraction_and_the_remainder_goes_to_the_largest_fractions():
    # 0.7 of 216, 1152, 2048, 640 is 151.2, 806.4, 1433.6, 448: 2839.2 in all
    assert uniform_zeros(SHAPES, 0.7) == {"first": 151, "body": 806, "wide": 1434, "last": 448}
    assert uniform_zeros({"a": (1, 1), "b": (1, 1), "c": (1, 1)}, 2 / 3) == {"a": 1, "b": 1, "c": 0}


def test_uniform_makes_the_others_take_over_what_bounds_leave():
    # 3042 zeros; first is dense, last at most 0.5: 2722 of the 3200 weights of body and wide
    found = uniform_zeros(SHAPES, 0.75, minimum={"body": 0.5}, maximum={"first": 0.0, "last": 0.5})
    assert found == {"first": 0, "body": 980, "wide": 1742, "last": 320}
    assert uniform_zeros(SHAPES, 0.5, minimum={"wide": 0.9})["wide"] == 1843


def test_erdos_renyi_kernel_keeps_in_proportion_to_the_sum_of_dimensions():
    # sums of dimensions 17, 30, 96, 74; 406 of 4056 weights are kept
    kept = {name: prod(SHAPES[name]) - zeros for name, zeros in erdos_renyi_kernel_zeros(SHAPES, 0.9).items()}
    assert sum(kept.values()) == 4056 - 3650
    for name, dimensions in {"first": 17, "body": 30, "wide": 96, "last": 74}.items():
        assert abs(kept[name] - Fraction(406 * dimensions, 217)) < 1


def test_erdos_renyi_kernel_leaves_small_layers_dense_and_the_rest_makes_up_for_them():
    found = erdos_renyi_kernel_zeros({"small": (4, 4), "a": (100, 100), "b": (200, 100)}, 0.5)
    assert found["small"] == 0
    assert sum(found.values()) == 30016 // 2
    # a and b keep 14,992 weights in proportion 200 to 300: 5996.8 and 8995.2
    assert found == {"small": 0, "a": 4003, "b": 11005}


def test_global_counts_are_those_of_one_ranking():
    weights = {
        name: torch.randn(shape) * scale for (name, shape), scale in zip(SHAPES.items(), (1, 2, 3, 4), strict=True)
    }
    everything = torch.cat([weight.flatten() for weight in weights.values()]).abs()
    cut = everything.sort().values[pruned_count(4056, 0.8) - 1]
    assert global_zeros(weights, 0.8, maximum=1.0) == {
        name: int((weight.abs() <= cut).sum()) for name, weight in weights.items()
    }


def test_global_leaves_a_tenth_of_the_density_in_a_layer_that_would_collapse():
    weights = {"large": torch.randn(100, 100), "small": torch.randn(50, 50) * 1e-6}
    assert global_zeros(weights, 0.9, maximum=1.0) == {"large": 11250 - 2500, "small": 2500}
    assert global_zeros(weights, 0.9) == {"large": 11250 - 2475, "small": 2475}
    assert global_zeros(weights, 0.9, minimum={"large": 0.89}, maximum={"small": 0.95}) == {
        "large": 8900,
        "small": 2350,
    }


def test_global_with_ties_and_equal_weights_is_exact():
    weights = {"a": torch.ones(10, 10), "b": torch.ones(5, 5), "c": torch.zeros(5, 5)}
    found = global_zeros(weights, 0.5)
    assert sum(found.values()) == 75
    assert found["c"] == 23  # 0.95 of 25


# Whatever the bounds


bounds = st.dictionaries(
    st.sampled_from(sorted(SHAPES)), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), max_size=4
)


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1), bounds, st.sampled_from(METHODS), st.integers(0, 3))
def test_the_total_is_exact_within_all_bounds_or_an_error_says_why(sparsity, bounds, method, seed):
    minimum, maximum = ({name: pair[i] for name, pair in bounds.items()} for i in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    values = SHAPES if method != "global" else {k: torch.randn(v, generator=generator) for k, v in SHAPES.items()}
    function = {"uniform": uniform_zeros, "erdos_renyi_kernel": erdos_renyi_kernel_zeros, "global": global_zeros}[
        method
    ]
    sizes = {name: prod(shape) for name, shape in SHAPES.items()}
    low = {name: pruned_count(size, minimum.get(name, 0.0)) for name, size in sizes.items()}
    high = {name: pruned_count(size, maximum.get(name, 1.0)) for name, size in sizes.items()}
    total = pruned_count(sum(sizes.values()), sparsity)
    if not sum(low.values()) <= total <= sum(high.values()):
        with pytest.raises(ConfigError, match="the bounds of the layers allow"):
            function(values, sparsity, minimum=minimum, maximum=maximum)
        return
    found = function(values, sparsity, minimum=minimum, maximum=maximum)
    assert sum(found.values()) == total
    assert all(low[name] <= zeros <= high[name] for name, zeros in found.items())


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.sampled_from([1, 3, 9, 27, 64]), st.integers(1, 9))
def test_whole_groups_come_as_near_as_they_fit(sparsity, first, second):
    groups = {"a": first, "b": second}
    shapes = {"a": (first, 50), "b": (second, 40)}
    found = uniform_zeros(shapes, sparsity, group_sizes=groups)
    total = pruned_count(first * 50 + second * 40, sparsity)
    assert all(zeros % groups[name] == 0 for name, zeros in found.items())
    room = [groups[name] for name in shapes if found[name] < prod(shapes[name])]
    assert 0 <= total - sum(found.values()) < min(room, default=1)


# From a model to a configuration


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7321, 0.9, 0.99])
def test_the_configuration_prunes_exactly_as_allocated(method: str, sparsity: float):
    model = net()
    spread = allocate(model, sparsity, method)
    counted = zeros_after_pruning(model, spread.config)
    assert counted == spread.zeros
    assert sum(counted.values()) == pruned_count(
        sum(planned.numel for planned in plan_pruning(model, spread.config)), sparsity
    )
    assert [planned.target_zeros for planned in plan_pruning(model, spread.config)] == list(spread.zeros.values())
    assert spread.sparsity == pytest.approx(sparsity, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_excluded_layers_stay_dense_and_the_model_is_as_sparse_as_asked(method: str):
    model = net()
    spread = allocate(model, 0.5, method, exclude_first=True, exclude_last=True, exclude=["2"])
    counted = zeros_after_pruning(model, spread.config)
    assert [counted[name] for name in ("0", "2", "5")] == [0, 0, 0]
    assert counted["4"] == pruned_count(216 + 1152 + 2048 + 320, 0.5)


def test_schedule_structure_and_choice_of_layers_come_from_the_configuration():
    schedule = {"update_steps": [2, 4], "power": 2}
    config = {
        "module_type_configs": {"Conv2d": {"scheduler": schedule, "granularity": "per_kernel", "initial_sparsity": 0.3}}
    }
    spread = allocate(net(), 0.5, config=config, minimum={"0": 0.7})
    assert set(spread.zeros) == {"0", "2"}
    for name, zeros in spread.zeros.items():
        leaf = spread.config.module_name_configs[name]
        assert (leaf.granularity, leaf.schedule.power) == ("per_kernel", 2)
        assert zeros % 9 == 0
        assert leaf.initial_sparsity == min(0.3, leaf.target_sparsity)
    assert 684 - sum(spread.zeros.values()) < 9


def test_blocks_are_allocated_whole():
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 24))
    spread = allocate(model, 0.6, "erdos_renyi_kernel", config={"global_config": {"block_size": 4}})
    assert zeros_after_pruning(model, spread.config) == spread.zeros
    assert 0 <= int(0.6 * 576) - sum(spread.zeros.values()) < 4


def test_names_that_other_names_match_as_patterns_get_rules_of_their_own():
    model = nn.ModuleDict({"ab": nn.ModuleDict({"c": nn.Linear(4, 4)}), "ab_c": nn.Linear(8, 8), "d+": nn.Linear(4, 4)})
    spread = allocate(model, 0.5, "erdos_renyi_kernel")
    assert zeros_after_pruning(model, spread.config) == spread.zeros
    assert list(spread.config.module_name_configs) == ["ab\\.c", "ab_c", "d\\+"]
    read_back = MagnitudePrunerConfig.from_yaml(spread.config.as_yaml())
    assert zeros_after_pruning(model, read_back) == spread.zeros


def test_tied_parametrized_and_root_weights():
    model = nn.ModuleDict({name: nn.Linear(6, 6) for name in "abc"})
    model["b"].weight = model["a"].weight
    parametrizations.weight_norm(model["c"])
    spread = allocate(model, 0.5)
    assert spread.zeros == {"a": 18, "c": 18}
    assert list(spread.config.module_name_configs) == ["a", "b", "c"]
    assert len(plan_pruning(model, spread.config)) == 2
    assert allocate(nn.Linear(3, 3), 0.5).zeros == {"": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 75}, r"sparsity must be a fraction in \[0, 1\], got 75"),
        ({"sparsity": "0.75"}, "sparsity must be a fraction .* got '0.75'. It is a text"),
        ({"sparsity": None, "method": "global"}, "sparsity must be a fraction .* got None"),
        ({"sparsity": float("nan")}, "sparsity must be a fraction .* got nan"),
        ({"minimum": "none"}, "minimum must be a fraction .* got 'none'"),
        ({"maximum": {"0": 80}}, r'maximum\["0"\] must be a fraction .* got 80. Write 0.8 for 80 %'),
        ({"method": "globl"}, "method must be one of uniform, global, erdos_renyi_kernel, got 'globl'"),
        ({"exclude": ["nope"]}, 'exclude: "nope" matches no pruned layer'),
        ({"maximum": {"9": 0.5}}, 'maximum: "9" matches no pruned layer'),
        ({"exclude": ["("]}, "exclude: '\\(' must be a name or a regular expression"),
        ({"maximum": 0.5}, r"asks for 2,802 zeros of 3,736 weights, but .* allow 0 to 1,868 \(0.0% to 50.0%\)"),
        ({"minimum": 0.9}, "asks for .* Exclude fewer layers"),
        ({"minimum": {"0": 0.9}, "maximum": 0.8}, "0: minimum and maximum must be fractions .* in this order, got 0.9"),
        ({"config": {"module_name_configs": {"4": {"n_m_ratio": [2, 4]}}}}, "n_m_ratio fixes the sparsity of 4.weight"),
        ({"config": {"global_config": {"block_size": 2}}, "method": "global"}, '"global" ranks single weights'),
    ],
)
def test_what_cannot_be_allocated_says_what_to_write(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        allocate(**{"model": net(), "sparsity": 0.75, **arguments})


def test_fractions_of_numpy_are_plain_ones():
    given = allocate(net(), np.float32(0.9), minimum=np.float64(0.5), maximum={"0": np.float32(0.9)})
    assert given.zeros == allocate(net(), 0.9, minimum=0.5, maximum={"0": 0.9}).zeros
    assert "numpy" not in given.config.as_yaml()
    assert uniform_zeros({"a": (10,)}, np.float32(0.9)) == {"a": 9}, "as it prints, not as float32 holds it"


def test_modules_with_several_pruned_parameters_are_refused():
    config = {"module_name_configs": {"0": {"param_name": "weight_.*"}}}
    with pytest.raises(ConfigError, match="beside other parameters of its module"):
        allocate(nn.Sequential(nn.LSTM(4, 4)), 0.5, config=config)


def test_unknown_names_in_the_bounds_of_the_pure_functions_are_refused():
    with pytest.raises(ConfigError, match=r'maximum\["bdy"\] names no layer. Did you mean .body'):
        uniform_zeros(SHAPES, 0.5, maximum={"bdy": 0.5})


@pytest.mark.parametrize("exclude", ["10", 5, None])
def test_what_is_excluded_is_a_list(exclude):
    """The characters of a text would be taken one by one."""
    with pytest.raises(ConfigError, match=rf"exclude must be a list of names of layers, got {exclude!r}"):
        allocate(net(), 0.6, exclude=exclude)


def test_patterns_bound_several_layers():
    spread = allocate(net(), 0.6, maximum={"[02]": 0.25})
    assert spread.sparsities["0"] == spread.sparsities["2"] == 0.25
    assert str(spread.__rich__().caption) == "2,241 of 3,736 weights are zero (59.9839%)."


GLOBAL = {"global_config": {"scheduler": {"update_steps": [1, 2, 3, 4]}, "target_sparsity": 0.6}}


def small_head() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[4].weight *= 0.01
    return model


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_a_global_scope_ranks_all_layers_anew_at_every_update(masking):
    ours = MagnitudePruner(small_head(), GLOBAL, masking=masking, scope="global")
    uniform = MagnitudePruner(small_head(), GLOBAL)
    for pruner in (ours, uniform):
        pruner.prepare(inplace=True)
    ours.attach_optimizers(torch.optim.SGD(ours.model.parameters(), lr=0.0))
    for _ in range(4):
        ours.step()
        uniform.step()
        # rounded down once, not in each layer
        assert ours.report().total.zeros == pruned_count(3736, uniform._layers[0].sparsity)
        assert 0 <= ours.report().total.zeros - uniform.report().total.zeros < len(uniform.plan)
    by_name = {layer.name: layer.sparsity for layer in ours.report().layers}
    assert by_name["4"] == pytest.approx(0.96, abs=1e-3)  # a tenth of the density of 0.4
    assert max(value for name, value in by_name.items() if name != "4") < 0.3
    assert ours.report().layers[0].target_sparsity is None
    plain = ours.finalize(inplace=True)
    assert sum(int((plain[index].weight == 0).sum()) for index in (0, 2, 4, 5)) == ours.report().total.zeros


def test_a_global_scope_follows_weights_that_grow():
    model = small_head()
    pruner = MagnitudePruner(model, GLOBAL, scope="global", track_changes=True)
    pruner.prepare(inplace=True)
    for _ in range(3):
        pruner.step()
    assert pruner.report()["4"]["unstructured_weight_sparsity"] > 0.9
    assert pruner.changes.returned == 0
    with torch.no_grad():
        model[4].weight_orig.mul_(1e4)
    before = {name: mask.clone() for name, mask in pruner.masks().items()}
    pruner.step()
    assert pruner.report()["4"]["unstructured_weight_sparsity"] < 0.4
    pruned, returned, weights = mask_changes(before, pruner.masks())
    assert (pruner.changes.pruned, pruner.changes.returned, pruner.changes.weights) == (pruned, returned, weights)
    assert returned > 1000


def test_a_global_scope_needs_single_weights():
    config = {"module_type_configs": {"Linear": {"n_m_ratio": (2, 4)}}}
    model = net()
    with pytest.raises(ConfigError, match=r'scope="global" ranks the single weights of all layers together, but'):
        MagnitudePruner(model, config, scope="global").prepare(inplace=True)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ConfigError, match='scope must be "layer" or "global", got \'model\''):
        MagnitudePruner(model, scope="model")


def test_a_global_scope_names_the_weight_that_is_nan_and_leaves_all_masks():
    model = small_head()
    pruner = MagnitudePruner(model, GLOBAL, scope="global")
    pruner.prepare(inplace=True)
    pruner.step()
    masks = {name: mask.clone() for name, mask in pruner.masks().items()}
    with torch.no_grad():
        model[2].weight_orig[0, 0] = torch.nan
    with pytest.raises(PruningError, match=r"^2.weight cannot be pruned: NaN"):
        pruner.step()
    assert all(torch.equal(mask, masks[name]) for name, mask in pruner.masks().items())


def test_a_run_resumes_in_the_scope_that_it_had():
    pruner = MagnitudePruner(small_head(), GLOBAL, scope="global")
    pruner.prepare(inplace=True)
    pruner.step()
    pruner.step()
    state, weights = pruner.state_dict(), pruner.finalize().state_dict()
    other = small_head()
    other.load_state_dict(weights)
    plain = MagnitudePruner(other, GLOBAL)
    plain.prepare()
    with pytest.raises(CheckpointError, match='saved with scope="global", but this is a run with scope="layer"'):
        plain.load_state_dict(state)
    again = MagnitudePruner(other, GLOBAL, scope="global")
    again.prepare(inplace=True)
    again.load_state_dict(state)
    for _ in range(2):
        pruner.step()
        again.step()
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, again.masks()[name])
    assert again.report().total.zeros == pruner.report().total.zeros


def test_a_second_run_in_global_scope_keeps_the_zeros_of_the_first():
    first = MagnitudePruner(small_head(), GLOBAL, scope="global")
    first.prepare(inplace=True)
    for _ in range(4):
        first.step()
    sparsities = [layer.sparsity for layer in first.report().layers]
    model = first.finalize(inplace=True)
    second = MagnitudePruner(
        model, {"global_config": {**GLOBAL["global_config"], "target_sparsity": 0.8}}, scope="global"
    )
    second.prepare(inplace=True, keep_zeros=True)
    assert [layer.sparsity for layer in second.report().layers] == sparsities
    totals = []
    for _ in range(4):
        second.step()
        totals.append(second.report().sparsity)
    assert totals == sorted(totals)
    assert (totals[0], totals[-1]) == (pytest.approx(0.6, abs=1e-3), pytest.approx(0.8, abs=1e-3))


def test_a_global_scope_may_empty_layers_of_a_few_weights():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    schedule = {"scheduler": {"update_steps": [1, 2]}}
    rules = {"0": {**schedule, "target_sparsity": 1.0}, "[12]": {**schedule, "target_sparsity": 0.5}}
    pruner = MagnitudePruner(model, {"module_name_configs": rules}, scope="global")
    pruner.prepare(inplace=True)
    pruner.step()
    pruner.step()
    assert pruner.report().total.zeros == 3


@pytest.mark.parametrize("number", [np.float32, torch.tensor])
def test_a_global_scope_takes_any_number_of_a_schedule(number):
    class Half(PruningScheduler):
        def compute_sparsity(self, step_count, prev_sparsity, config):
            return number(0.5)

    config = {"global_config": {"scheduler": Half()}}
    pruner = MagnitudePruner(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), config, scope="global")
    pruner.prepare(inplace=True)
    pruner.step()
    assert pruner.report().total.zeros == 48


def test_a_global_scope_counts_the_zeros_of_many_small_layers_together():
    model = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(20)])
    pruner = MagnitudePruner(model, {"global_config": {"target_sparsity": 0.3}}, scope="global")
    pruner.prepare(inplace=True)
    pruner.step()
    assert pruner.report().total.zeros == 54
