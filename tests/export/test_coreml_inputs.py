"""What verification gives to a program: which shapes and values, what the model refuses, and states over two calls."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coreml_nets import Small, prune
from torch import nn

from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.inputs import ImageInput
from lightning_prune.export.coreml.mil.program import read_package
from lightning_prune.export.coreml.mil.run import run
from lightning_prune.export.draws import DRAWS, draw_inputs, fitted, fresh_inputs
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.shapes import MOST_SHAPES, flexible_shapes
from lightning_prune.export.standalone import Standalone

pytest.importorskip("coremltools")

X = torch.rand(1, 3, 16, 16)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "net.mlpackage"


class Range:
    """What a RangeDim is to us."""

    def __init__(self, lower, upper, symbol=None):
        self.lower_bound, self.upper_bound, self.symbol = lower, upper, symbol or object()


class Enumerated:
    def __init__(self, *shapes):
        self.shapes = shapes


# Shapes


def test_ranges_are_tried_at_their_ends_between_and_with_one_dimension_apart():
    shapes = flexible_shapes((1, 3, Range(8, 32), Range(8, 64)), X).shapes
    assert shapes == ((1, 3, 8, 8), (1, 3, 24, 32), (1, 3, 32, 64), (1, 3, 8, 64))


def test_dimensions_that_share_a_symbol_stay_equal():
    shapes = flexible_shapes((1, 3, Range(8, 64, "side"), Range(8, 64, "side")), X).shapes
    assert shapes == ((1, 3, 8, 8), (1, 3, 32, 32), (1, 3, 64, 64))


@pytest.mark.parametrize(
    ("example", "upper", "tried"),
    [
        (torch.rand(1, 3, 16, 16), 64, 64),  # small enough to be tried
        (torch.rand(1, 3, 16, 16), 4096, 32),
        (torch.zeros(1, 16, dtype=torch.long), 2048, 2048),
        (torch.zeros(1, 512, dtype=torch.long), 4096, 1024),  # attention takes the square of it
    ],
)
def test_what_is_too_large_to_try_is_said(example, upper, tried):
    sides = [Range(8, upper)] * (example.ndim - 1 if example.ndim < 4 else 2)
    flexible = flexible_shapes((*example.shape[: example.ndim - len(sides)], *sides), example)
    assert max(shape[-1] for shape in flexible.shapes) == tried
    assert (flexible.not_tried is None) == (tried == upper)
    if flexible.not_tried is not None:
        assert f"shapes larger than (1, {'3, ' if example.ndim == 4 else ''}{tried}" in flexible.not_tried
        assert str(upper) in flexible.not_tried


def test_enumerated_shapes_are_all_tried_up_to_a_number():
    few = [(1, 3, size, 16) for size in range(8, 8 + MOST_SHAPES)]
    assert flexible_shapes(Enumerated(*few), X).shapes == tuple(few)
    many = [(1, 3, size, 16) for size in range(8, 108)]
    flexible = flexible_shapes(Enumerated(*many), X)
    assert len(flexible.shapes) == MOST_SHAPES
    assert {flexible.shapes[0], flexible.shapes[-1]} == {many[0], many[-1]}
    assert flexible.not_tried == "84 of the 100 enumerated shapes"


class Sized(Small):
    """Computes with its input's size, which tracing takes for a constant."""

    def forward(self, x):
        h = F.relu(self.conv(x))
        return self.fc(h.mean((2, 3)) * (int(h.shape[2]) * int(h.shape[3]) / 256))


@pytest.mark.parametrize("kind", ["range", "enumerated", "between"])
def test_a_size_fixed_in_an_image_is_found_at_another_size(kind, target, coremltools):
    ct = coremltools
    shape = {
        "range": (1, 3, ct.RangeDim(8, 32), ct.RangeDim(8, 32)),
        "enumerated": ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 16, 24)]),
        "between": ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 8, 32), (1, 3, 16, 24)]),
    }[kind]
    image = ct.ImageType(name="img", shape=shape, scale=1 / 255, bias=[-0.5, -0.4, -0.3])
    with pytest.raises(ExportError, match="fresh input of another shape than the example's"):
        CoreMLExport(target, X, inputs=[image], frontend="trace").save(Sized())
    assert not target.exists()


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("layout", ["BGR", "GRAYSCALE", "GRAYSCALE_FLOAT16", "channels last"])
def test_flexible_images_of_every_layout_are_verified(layout, target, coremltools):
    ct = coremltools
    model, example = Small(), X
    side = ct.RangeDim(8, 32)
    shape, bias, options = (1, 3, side, side), [-0.5, -0.4, -0.3], {}
    if layout == "channels last":
        model = nn.Sequential(Permute(), model)
        example, shape, options = X.permute(0, 2, 3, 1), (1, side, side, 3), {"channel_first": False}
    else:
        options = {"color_layout": getattr(ct.colorlayout, layout)}
    if "GRAY" in layout:
        model.conv, example, shape, bias = nn.Conv2d(1, 16, 3), X[:, :1], (1, 1, side, side), -0.5
    image = ct.ImageType(name="img", shape=shape, scale=1 / 255, bias=bias, **options)
    result = CoreMLExport(target, example, inputs=[image], frontend="trace").save(model)
    assert result.not_checked == ()
    assert result.near_error < 2e-3
    draws = 2 if layout == "GRAYSCALE_FLOAT16" else 5  # whole pixels are never far from others
    assert any(f"run on {draws + 3} fresh inputs like the example" in check for check in result.checks)


def test_pixels_and_the_models_numbers_belong_together():
    spec = ImageInput("i", ((1, 3, 2, 2),), scale=1 / 255, bias=(-0.5, -0.4, -0.3), is_channel_last=True)
    pixels = torch.randint(0, 256, (1, 3, 2, 2)).float()
    model = spec.to_model(pixels)
    assert model.shape == (1, 2, 2, 3)
    torch.testing.assert_close(model[0, 1, 0, 2], pixels[0, 2, 1, 0] / 255 - 0.3)
    torch.testing.assert_close(spec.to_program(model), pixels)


def test_an_example_of_a_shape_that_is_not_allowed_is_refused_before_training(target, coremltools):
    side = coremltools.RangeDim(32, 64)
    for kind in (coremltools.TensorType, coremltools.ImageType):
        export = CoreMLExport(target, X, inputs=[kind(name="x", shape=(1, 3, side, side))])
        with pytest.raises(
            ConfigError, match=r"inputs\[0\]\.shape must allow .*\(1, 3, 16, 16\), got \(1, 3, 32\.\.64,"
        ):
            export.check(Small())


# Values


class Lengths(nn.Module):
    """Sums what lies within the lengths, which must fit."""

    def __init__(self, low=1, high=12):
        super().__init__()
        self.low, self.high = low, high
        self.embed, self.fc = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens, lengths):
        if not torch.jit.is_tracing() and not (self.low <= int(lengths.min()) and int(lengths.max()) <= self.high):
            raise ValueError(f"lengths must be {self.low} to {self.high}\nand so on")
        keep = torch.arange(tokens.shape[1]) < lengths[:, None]
        return self.fc((self.embed(tokens) * keep[..., None]).sum(1) / 10 + lengths[:, None] / 10)


EXAMPLE = (torch.randint(0, 50, (2, 12)), torch.tensor([12, 12]))


def test_what_the_model_refuses_is_drawn_again_near_the_example(target):
    result = CoreMLExport(target, EXAMPLE, frontend="trace").save(Lengths(low=9))
    assert result.not_checked == ()
    assert (
        "some values of lengths were drawn again nearer to the example's: the model refuses them (lengths must be 9 to "
        "12)"
    ) in result.notes


def test_an_input_of_which_the_model_takes_the_example_alone_is_not_checked_further(target):
    result = CoreMLExport(target, EXAMPLE, frontend="trace").save(Lengths(low=12))
    assert result.not_checked == (
        "other values of lengths than the example's: the model refuses them (lengths must be 12 to 12)",
    )
    assert result.near_error < 2e-3


def test_only_what_is_refused_is_drawn_again():
    standalone = Standalone(Lengths(low=12).eval(), EXAMPLE)
    specs = [ProgramInput("tokens", ((2, 12), (2, 18))), ProgramInput("lengths", ((2,),))]
    first = fresh_inputs(specs, EXAMPLE, 0, 1)
    drawn = draw_inputs(specs, standalone, 0, 1)
    assert torch.equal(drawn.inputs[0], first[0])
    assert drawn.inputs[1].tolist() == [12, 12] != first[1].tolist()
    assert (dict(drawn.shares), drawn.refusal) == ({"lengths": 0.0}, "lengths must be 12 to 12")


def test_a_model_that_refuses_even_the_example_is_heard():
    standalone = Standalone(Lengths().eval(), EXAMPLE)
    standalone.model.high = 3
    with pytest.raises(ValueError, match="lengths must be 1 to 3"):
        draw_inputs([ProgramInput("tokens", ((2, 12),)), ProgramInput("lengths", ((2,),))], standalone, 0)


def test_declared_values_are_kept_to():
    specs = [
        ProgramInput("tokens", ((2, 30),), values=(3, 7)),
        ProgramInput("lengths", ((3,),), values="fixed"),
        ProgramInput("x", ((100,),), values=(-1.0, 2.0)),
        ImageInput("image", ((1, 1, 20, 20),), values=(10, 20)),
    ]
    examples = (*EXAMPLE, torch.zeros(100), torch.full((1, 1, 20, 20), 15.0))
    means = []
    for draw in range(len(DRAWS) + 1):
        tokens, lengths, x, image = fresh_inputs(specs, examples, draw)
        assert 3 <= int(tokens.min()) <= int(tokens.max()) <= 7
        assert lengths.tolist() == [12, 12, 12]
        assert -1 <= float(x.min()) <= float(x.max()) <= 2
        assert 10 <= int(image.min()) <= int(image.max()) <= 20
        means.append(float(x.mean()))
    assert max(means) - min(means) > 1.5  # what depends on the mean shows


def test_the_examples_values_fill_another_shape():
    assert fitted(torch.tensor([[1, 2], [3, 4]]), (3, 1)).tolist() == [[1], [1], [3]]
    assert fitted(torch.tensor([5]), (2,)).tolist() == [5, 5]


class Branches(nn.Module):
    """Takes another branch for lengths that are not 12."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x, lengths):
        return self.fc(x) * (1 if bool((lengths == 12).all()) else 2)


def test_an_input_that_is_declared_fixed_has_the_examples_values(target):
    example = (torch.rand(2, 16), torch.tensor([12, 12]))
    with pytest.raises(ExportError, match=r"If 'lengths' takes certain values only, say so: input_values="):
        CoreMLExport(target, example, frontend="trace").save(Branches())
    with pytest.raises(ExportError, match="computes something else"):
        CoreMLExport(target, example, frontend="trace", input_values={"lengths": (10, 12)}).save(Branches())
    result = CoreMLExport(target, example, frontend="trace", input_values={"lengths": "fixed"}).save(Branches())
    assert result.not_checked == ()
    assert "lengths was given the example's values alone, as input_values says" in result.notes


@pytest.mark.parametrize("declared", ["fix", (3,), (7, 3), (0, float("inf")), 5])
def test_declared_values_that_are_no_range_are_refused(declared, target):
    with pytest.raises(
        ConfigError, match=r"input_values\['tokens'\] must be \"fixed\" or the smallest and the largest"
    ):
        CoreMLExport(target, EXAMPLE, input_values={"tokens": declared})


def test_declared_values_that_fit_no_input_are_refused_before_training(target):
    with pytest.raises(ConfigError, match=r"names 'length', which is no input\. Did you mean 'lengths'\?"):
        CoreMLExport(target, EXAMPLE, input_values={"length": "fixed"}).check(Lengths())
    with pytest.raises(ConfigError, match=r"input_values\['lengths'\] must be whole numbers as the input is"):
        CoreMLExport(target, EXAMPLE, input_values={"lengths": (0.5, 2)}).check(Lengths())


# Near and far


class Squares(Small):
    """Amplifies rounding, but only of large numbers."""

    def forward(self, x):
        y = super().forward(x.clamp(-1, 2))
        far = (x.abs().mean((1, 2, 3)) - 1).clamp(min=0)[:, None]
        return y + (3e3 * far * y).sin()


def test_the_error_on_inputs_like_the_example_comes_first(target):
    result = CoreMLExport(target, X, frontend="trace").save(Squares())
    assert result.near_error < 2e-3 < result.far_error == result.max_error
    near, far = result.checks[-2:]
    assert "run on 2 fresh inputs like the example, gives the model's output" in near
    assert f"largest error {result.near_error:.1e} of an output's largest value (allowed: 5e-03)" in near
    assert far.startswith("and on 3 fresh inputs far from the example")
    assert f"{result.far_error:.1e}" in far
    numbers = result.as_dict()
    assert (numbers["coreml/near_error"], numbers["coreml/far_error"]) == (result.near_error, result.far_error)
    assert f"largest error {result.near_error:.1e}" in str(result)


# States


class Adds(nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.register_buffer("cache", torch.full((1, 16), start))

    def forward(self, x):
        self.cache.add_(self.fc(x))
        return self.cache * 1.0


def stateful(ct, target, *, shape=(1, 16), name="cache", dtype=np.float16, system="iOS18", **options):
    states = [ct.StateType(ct.TensorType(shape=shape, dtype=dtype), name=name)]
    kwargs = {"states": states}
    export = CoreMLExport(
        target, torch.randn(1, 16), minimum_deployment_target=system, convert_kwargs=kwargs, **options
    )
    return export, states


@pytest.mark.parametrize("frontend", ["export", "trace"])
def test_a_package_with_states_is_verified_over_two_calls(frontend, target, coremltools):
    export, (state,) = stateful(coremltools, target, frontend=frontend, name="model.cache")
    model = Adds()
    result = export.save(model, masks=prune(model))
    assert (state.name, state.shape.shape) == ("model.cache", (1, 16))
    assert result.not_checked == ()
    assert any(
        "called twice with each, gives the model's output, output of the second call" in c for c in result.checks
    )
    assert "the package keeps model_cache from one call to the next" in " ".join(result.notes)
    assert float(model.cache.count_nonzero()) == 0
    package, x = read_package(target), torch.randn(1, 16)
    assert package.states == {"model_cache": (1, 16)}
    first = run(package, {"x": x})
    second = run(package, {"x": x}, states=first.states)
    torch.testing.assert_close(second.outputs["output"], 2 * first.outputs["output"], rtol=2e-3, atol=2e-3)


def test_a_state_that_is_not_written_is_found_in_the_second_call(target, coremltools, monkeypatch):
    import lightning_prune.export.coreml.running as running

    monkeypatch.setattr(running, "run", lambda package, inputs, tensors, states: run(package, inputs))
    export, _ = stateful(coremltools, target, frontend="trace")
    with pytest.raises(ExportError, match="output 'output of the second call' differs by"):
        export.save(Adds())


def test_a_state_that_does_not_begin_with_zeros_is_refused_before_the_conversion(target, coremltools, monkeypatch):
    monkeypatch.setattr(coremltools, "convert", None)
    export, _ = stateful(coremltools, target)
    with pytest.raises(ExportError, match="Core ML begins every state with zeros, but cache of the model holds other"):
        export.save(Adds(1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "iOS17"}, "must be iOS18 or newer for states, got 'iOS17'"),
        ({"name": "cach"}, r"must name buffers of Adds, got 'cach'\. Did you mean 'cache'\?"),
        ({"shape": (1, 15)}, r"cache has \(1, 16\), got \(1, 15\)"),
        ({"dtype": np.float32}, "must be float16, which is what Core ML keeps, got fp32 for cache"),
    ],
)
def test_states_that_cannot_be_are_refused_before_training(options, message, target, coremltools):
    export, _ = stateful(coremltools, target, **options)
    with pytest.raises(ConfigError, match=message):
        export.check(Adds())


def test_states_that_were_not_asked_for_are_not_made(target):
    options = {"minimum_deployment_target": "iOS18"}
    with pytest.raises(ExportError, match=r"forward changes cache in eval mode\. From iOS18 on the converter makes a"):
        CoreMLExport(target, torch.randn(1, 16), frontend="export", **options).save(Adds())
    result = CoreMLExport(target, torch.randn(1, 16), **options).save(Adds())
    assert read_package(target).states == {}
    assert "forward changes cache in eval mode: the package has no state" in " ".join(result.notes)


# Names, ranks, labels


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x, y):
        return self.fc(x) + y, self.fc(x)


PAIR = (torch.rand(1, 8), torch.rand(1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_names": ["a", "a"]}, r"input_names must differ from each other, got 'a' and 'a'"),
        ({"output_names": ["a-b", "a_b"]}, r"output_names must differ .* which are both 'a_b' in a package"),
    ],
)
def test_equal_names_are_refused_at_once(options, message, target):
    with pytest.raises(ConfigError, match=message):
        CoreMLExport(target, PAIR, **options)


def test_names_that_do_not_fit_the_model_are_refused_before_training(target, coremltools):
    ct = coremltools
    with pytest.raises(ConfigError, match=r"output_names must not be names of inputs, got 'x'"):
        CoreMLExport(target, PAIR, output_names=["x", "b"]).check(Two())
    with pytest.raises(ConfigError, match=r"output_names must have one item for each of the 2 tensors"):
        CoreMLExport(target, PAIR, output_names=["b"]).check(Two())
    with pytest.raises(ConfigError, match=r"input_names must have one item for each of the 2 tensors"):
        CoreMLExport(target, PAIR, input_names=["b"]).check(Two())
    twice = [ct.TensorType(name="x", shape=tensor.shape) for tensor in PAIR]
    with pytest.raises(ConfigError, match=r"export\.inputs must differ from each other, got 'x' and 'x'"):
        CoreMLExport(target, PAIR, inputs=twice)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((PAIR[0], torch.tensor(1.0)), r"but y has 0\. Let forward take a tensor of shape \(1,\) as y"),
        ((torch.rand(1, 1, 1, 1, 1, 8), PAIR[1]), r"tensors of 1 to 5 dimensions, .* but x has 6"),
    ],
)
def test_inputs_of_ranks_that_core_ml_does_not_take_are_refused_before_training(example, message, target):
    with pytest.raises(ConfigError, match=message):
        CoreMLExport(target, example).check(Two())


class Noisy(Small):
    def forward(self, x):
        return super().forward(x) + torch.rand(4)


@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_number_of_class_labels_is_found_before_training(count, target):
    export, model = CoreMLExport(target, X, classifier_labels=list(range(count))), Noisy()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=rf"one for each of the 4 numbers .* got {count} labels"):
        export.check(model)
    assert torch.equal(torch.get_rng_state(), before)  # training goes on as it would have
    with pytest.raises(ExportError, match=rf"got {count} labels"):
        export.save(model)


def test_class_labels_of_a_model_with_two_outputs_are_refused_before_training(target):
    with pytest.raises(ConfigError, match=r"must belong to the only tensor that the model gives, but it gives 2"):
        CoreMLExport(target, PAIR, classifier_labels=list("abcd")).check(Two())


@pytest.mark.parametrize("labels", [["a", 1], [], "abcd", ["a", "b", "a", "c"]])
def test_class_labels_that_cannot_be_are_refused_at_once(labels, target):
    with pytest.raises(
        ConfigError, match=r"classifier_labels must (be texts, or whole numbers|differ from each other)"
    ):
        CoreMLExport(target, X, classifier_labels=labels)


def test_a_model_that_cannot_be_called_yet_passes_the_check(target):
    class Later(Small):
        def forward(self, x):
            raise RuntimeError("not configured yet")

    export = CoreMLExport(target, X, classifier_labels=list("abc"))
    assert export.check(Later()) is None
    assert not target.exists()
