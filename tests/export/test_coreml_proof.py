"""Verification must find what is wrong: packages damaged on purpose, bad pipelines, models that capturing falsifies."""

import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coreml_nets import Decoder, ResNet, Small, TwoInputs, prune
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_prune.export.coreml.attempts as coreml_module
from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.compression import quantization_error
from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.inputs import ImageInput
from lightning_prune.export.coreml.match import compare
from lightning_prune.export.coreml.mil.program import Constant, read_package
from lightning_prune.export.coreml.mil.run import run
from lightning_prune.export.coreml.running import prove_on_device
from lightning_prune.export.findings import Findings
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.numbers import difference
from lightning_prune.export.standalone import Standalone

pytest.importorskip("coremltools")

X = torch.rand(1, 3, 16, 16)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "net.mlpackage"


def save(model, target, **options):
    return CoreMLExport(target, X, **options).save(model, masks=prune(model))


def tampered(monkeypatch, change):
    """Let every saved weight file be changed behind the exporter's back."""
    honest = coreml_module.save_package

    def save_package(converted, path):
        honest(converted, path)
        file = path / "Data/com.apple.CoreML/weights/weight.bin"
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    monkeypatch.setattr(coreml_module, "save_package", save_package)


def record(content, size):
    """Where the data of the first record of a size begins."""
    for at in range(64, len(content) - 64, 64):
        sentinel, _, length, offset = struct.unpack_from("<IIQQ", content, at)
        if sentinel == 0xDEADBEEF and length == size:
            return offset
    raise AssertionError(f"no record of {size} bytes")


@pytest.mark.parametrize("what", ["mask", "values"])
def test_one_wrong_bit_in_the_saved_file_is_found(what, target, monkeypatch):
    model = Small()
    keep = prune(model)["conv.weight"]
    size = keep.numel() // 8 if what == "mask" else 2 * int(keep.sum())

    def change(content):
        at = record(content, size)
        if what == "mask":  # a zero moves to its neighbour
            bits = np.unpackbits(np.frombuffer(content[at : at + size], np.uint8), bitorder="little")
            first = int(np.flatnonzero(bits[:-1] & ~bits[1:] & 1)[0])
            bits[first : first + 2] = bits[first + 1], bits[first]
            content[at : at + size] = np.packbits(bits, bitorder="little").tobytes()
        else:
            content[at + 1] ^= 0x04  # the exponent of the first value

    tampered(monkeypatch, change)
    with pytest.raises(ExportError, match=r"conv\.weight: no constant of the package has its zeros and values"):
        CoreMLExport(target, X, frontend="trace").save(model, masks={"conv.weight": keep})
    assert not target.exists()


def test_a_wrong_value_that_belongs_to_no_pruned_weight_is_found_in_the_numbers(target, monkeypatch):
    model = Small()

    def change(content):
        at = record(content, 32)  # sixteen float16 biases of the convolution
        content[at : at + 32] = np.full(16, 3, np.float16).tobytes()

    tampered(monkeypatch, change)
    with pytest.raises(ExportError, match="computes something else than the model: output 'output' differs"):
        CoreMLExport(target, X, frontend="trace").save(model, masks=prune(model))


class Detector(Small):
    """Boxes in pixels and scores of two heads in one tensor."""

    def __init__(self):
        super().__init__()
        self.box, self.one, self.two = (nn.Conv2d(16, 4, 1) for _ in range(3))

    def forward(self, x):
        x = F.relu(self.conv(x))
        return torch.cat([self.box(x).sigmoid() * 640, self.one(x).sigmoid(), self.two(x).sigmoid() * 0.1], 1)


@pytest.mark.parametrize("head", ["one", "two"])
def test_small_numbers_beside_large_ones_in_an_output_are_judged_by_themselves(head, target, monkeypatch):
    model = Detector()
    masks = prune(model, 0.5)
    assert CoreMLExport(target, X).save(model, masks=masks).max_error < 2e-3
    values = model.get_parameter(f"{head}.weight").detach().numpy().astype(np.float16)
    values = values[values != 0].tobytes()

    def turn(content):
        at = content.index(values)
        content[at : at + len(values)] = (-np.frombuffer(values, np.float16)).tobytes()

    tampered(monkeypatch, turn)
    with pytest.raises(ExportError, match=r"output 'output' differs by .* of one slice's largest value"):
        CoreMLExport(target, X, frontend="trace").save(model, masks=masks)


def test_the_converters_plain_pipeline_is_found_to_store_dense(target, coremltools):
    with pytest.raises(
        ExportError, match=r"conv\.weight: \d+ of 432 values are pruned, but it is stored dense \(read by"
    ):
        save(Small(), target, convert_kwargs={"pass_pipeline": coremltools.PassPipeline.DEFAULT})


def test_the_converters_pruning_pipeline_is_found_to_store_small_layers_dense(target, coremltools):
    with pytest.raises(ExportError, match="stored dense"):
        save(Small(), target, convert_kwargs={"pass_pipeline": coremltools.PassPipeline.DEFAULT_PRUNING})


def test_a_pipeline_that_zeroes_small_weights_is_found(target, coremltools):
    ct = coremltools
    passes = ct.PassPipeline.DEFAULT
    passes.append_pass("compression::prune_weights")
    rule = ct.optimize.coreml.OpThresholdPrunerConfig(
        threshold=1e-2, minimum_sparsity_percentile=0.1, weight_threshold=0
    )
    config = ct.optimize.coreml.OptimizationConfig(op_type_configs={"conv": rule, "linear": rule})
    passes.set_options("compression::prune_weights", {"config": config})
    model = Small()
    masks = prune(model)
    with torch.no_grad():
        model.fc.weight[masks["fc.weight"]] = torch.where(torch.rand(int(masks["fc.weight"].sum())) > 0.5, 5e-3, 1.0)
    with pytest.raises(ExportError, match=r"fc\.weight: no constant of the package has its zeros and values"):
        CoreMLExport(target, X, convert_kwargs={"pass_pipeline": passes}).save(model, masks=masks)


class Branches(Small):
    def forward(self, x):
        y = super().forward(x)
        return y if x.mean() > 0 else -y


class ReadsNumber(Small):
    def forward(self, x):
        return super().forward(x) * float(x.abs().max())


class ReadsSize(Small):
    def forward(self, x):
        keep = int((x > 0.5).sum())
        return super().forward(x) + keep


@pytest.mark.parametrize("model", [Branches, ReadsNumber, ReadsSize])
@pytest.mark.parametrize("frontend", ["auto", "trace"])
def test_what_tracing_fixed_at_the_example_is_found(model, frontend, target):
    found = "frontend trace: ExportError: The package computes something else than the model"
    with pytest.raises(ExportError, match=f"(?s){found}.*write both with torch.where and tensors"):
        save(model(), target, frontend=frontend)
    assert not target.exists()


def test_a_fixed_decision_that_changes_nothing_is_only_noted(target):
    class Asks(Small):
        def forward(self, x):
            return super().forward(x) if bool((x * 0 == 0).all()) else x

    result = save(Asks(), target, frontend="trace")
    assert len(result.notes) == 1
    assert "tracing fixed a Python decision on a tensor at" in result.notes[0]
    assert "test_coreml_proof.py:" in result.notes[0]


def test_a_weight_that_is_computed_from_a_pruned_one_is_found_not_to_be_sparse(target):
    class Standardizes(Small):
        def forward(self, x):
            weight = (self.conv.weight - self.conv.weight.mean()) / self.conv.weight.std()
            return self.fc(F.conv2d(x, weight).mean((2, 3)))

    with pytest.raises(ExportError, match=r"conv\.weight: no constant .* If forward computes another tensor from it"):
        save(Standardizes(), target)


def test_layers_that_see_no_input_are_folded_away_and_the_rest_is_proven(target):
    model, x = Decoder(), torch.randn(1, 10, 16)
    masks = prune(model)
    result = CoreMLExport(target, x, frontend="export").save(model, masks=masks)
    assert {layer.name: layer.stored for layer in result.layers} == {
        "cross.in_proj_weight": "sparse",
        "cross.out_proj.weight": "sparse",
        "out.weight": "sparse",
    }
    assert result.layers[0].shape == (32, 16)  # those of key and value
    folded = [note for note in result.notes if "no input: what is computed from that is folded into a constant" in note]
    assert [note.split(" meets")[0] for note in folded] == [
        "query.weight",
        "position.weight",
        "own.in_proj_weight",
        "own.out_proj.weight",
        "in 16 of 48 rows, cross.in_proj_weight",
        "bias.0.weight",
        "bias.2.weight",
    ]
    assert result.max_error < 5e-3
    assert not result.not_checked


def test_a_layer_that_sees_an_input_is_not_taken_as_folded_when_its_zeros_are_lost(target, monkeypatch):
    honest = coreml_module.read_package

    def without_a_weight(path):
        package = honest(path)
        lost = next(name for name, constant in package.constants.items() if constant.values.shape == (4, 16))
        return replace(package, constants={n: c for n, c in package.constants.items() if n != lost})

    monkeypatch.setattr(coreml_module, "read_package", without_a_weight)
    model = Decoder()
    with pytest.raises(ExportError, match=r"out\.weight: no constant of the package has its zeros and values"):
        CoreMLExport(target, torch.randn(1, 10, 16), frontend="export").save(model, masks=prune(model))


def test_what_cannot_be_executed_is_reported_and_the_rest_is_checked(target):
    class Samples(Small):
        def forward(self, x):
            grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, 16, 16), align_corners=False)
            return {"y": super().forward(x), "warped": F.grid_sample(self.conv(x), grid, align_corners=False)}

    result = save(Samples(), target)
    assert len(result.not_checked) == 1
    assert result.not_checked[0].startswith("numbers that depend on op '")
    assert any("gives the model's y;" in check for check in result.checks)
    assert "1 things not checked" in str(result)
    assert result.as_dict()["coreml/not_checked"] == 1


def test_a_model_without_finite_results_is_reported_as_not_checked(target):
    class Infinite(Small):
        def forward(self, x):
            return super().forward(x) / 0.0

    result = save(Infinite(), target, compute_precision="float32")
    assert result.not_checked == ("the numbers of output: the model gives nothing finite on fresh inputs",)
    assert result.max_error is None


def test_a_model_that_is_random_in_eval_mode_is_reported_as_not_checked(target):
    class Noisy(Small):
        def forward(self, x):
            return {"y": super().forward(x), "noisy": super().forward(x) + torch.rand(1, 4)}

    result = save(Noisy(), target)
    assert "the numbers of noisy: the model is random in eval mode" in result.not_checked
    assert any("gives the model's y;" in check for check in result.checks)


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_a_buffer_that_forward_changes_is_exported_as_it_is_now(how, target):
    class Counts(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.tensor([2.0]))

        def forward(self, x):
            if how == "in place":
                self.calls += 1
            else:
                self.calls = self.calls + 1
            return super().forward(x) * self.calls

    model = Counts()
    masks = prune(model)
    result = CoreMLExport(target, X, submodule="").save(model, masks=masks)
    assert result.not_checked == ()
    assert "forward changes calls in eval mode: the package has no state" in " ".join(result.notes)
    package, fresh = read_package(target), torch.rand(X.shape)
    found = run(package, {package.main.inputs[0][0]: fresh}).outputs["output"]
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(fresh), rtol=5e-3, atol=5e-3)
    assert float(model.calls) == 3


def test_integers_may_differ_only_where_rounding_changes_them():
    from lightning_prune.export.numbers import unexplained

    want, reach = torch.tensor([3, 7, 1, 1]), torch.tensor([0.0, 4.0, 0.0, 0.0])
    assert unexplained(torch.tensor([3, 2, 1, 1]), want, reach, 0.25, 0.005) == (0.0, 0.005)
    assert unexplained(torch.tensor([4, 7, 1, 1]), want, reach, 0.25, 0.005) == (0.25, 0.005)


def test_a_model_that_amplifies_rounding_is_held_to_what_rounding_does_to_it(target):
    class Chaotic(Small):
        def forward(self, x):
            y = super().forward(x).sigmoid()
            for _ in range(6):
                y = 3.99 * y * (1 - y)
            return y

    result = save(Chaotic(), target)
    assert result.max_error > 5e-3
    assert f"(allowed: {5e-3:.0e})" not in result.checks[-1]


def test_results_too_large_for_float16_are_noted(target):
    class Loud(Small):
        def forward(self, x):
            return (super().forward(x) * 1e6).tanh()

    result = save(Loud(), target)
    assert any("too large for float16" in note and 'compute_precision="float32"' in note for note in result.notes)
    assert save(Loud(), target, compute_precision="float32").notes == ()


def test_kept_weights_too_small_for_float16_are_counted(target):
    model = Small()
    masks = prune(model)
    with torch.no_grad():
        masks["fc.weight"][0] = True
        model.fc.weight[0] = 1e-9
        model.fc.weight[0, 0] = 1
    result = CoreMLExport(target, X).save(model, masks=masks)
    assert result.layers[1].rounded_away == 15
    assert (
        "15 kept weights are too small for the precision of the package: zero there, or its smallest number"
        in result.notes
    )


def test_a_network_that_amplifies_rounding_is_not_refused(target):
    class Sharp(Small):
        def forward(self, x):
            return (super().forward(x) * 3e3).softmax(-1)

    assert save(Sharp(), target).not_checked == ()


class FakeCoreML:
    """What stands in for Core ML where there is none: computes with the model itself, off by a factor."""

    def __init__(self, model, factor):
        self.model, self.factor = model, factor
        self.models, self.ComputeUnit = self, self
        self.CPU_ONLY = "cpu"

    def MLModel(self, path, compute_units):
        return self

    def predict(self, inputs):
        outputs = self.model(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.detach().numpy() * self.factor for name, value in outputs.items()}


def test_core_ml_itself_is_asked_where_it_exists(target, monkeypatch):
    model = TwoInputs().eval()
    examples = (torch.rand(1, 3, 16, 16), torch.rand(1, 7))
    path = CoreMLExport(target, examples).save(model).path
    package, standalone = read_package(path), Standalone(model, examples)
    inputs = [ProgramInput("image", ((1, 3, 16, 16),)), ProgramInput("features", ((1, 7),))]
    findings = Findings()
    prove_on_device(FakeCoreML(model, 1.01), package, standalone, inputs, findings)
    assert findings.checks == ["Core ML's own results are the model's; largest error 1.0e-02"]
    with pytest.raises(ExportError, match="output 'logits' differs by 1.0e-01 of its largest value"):
        prove_on_device(FakeCoreML(model, 1.1), package, standalone, inputs, Findings())
    images = [ImageInput("image", ((1, 3, 16, 16),))]
    prove_on_device(FakeCoreML(model, 1.0), package, standalone, images, findings)
    assert findings.not_checked == ["Core ML's own results: the package takes images"]
    asked = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coreml_module, "prove_on_device", lambda *arguments: asked.append(arguments))
    CoreMLExport(target, examples).save(model)
    assert len(asked) == 1


def test_differences_of_every_kind():
    values = torch.tensor([1.0, -4.0])
    assert difference(values + torch.tensor([0.0, 0.4]), values) == pytest.approx(0.1)
    assert difference(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf])) == 0
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf])) == float("inf")
    assert difference(torch.tensor([torch.nan]), torch.tensor([1.0])) == float("inf")
    assert difference(torch.tensor([1.0]), torch.tensor([torch.nan])) is None
    assert difference(torch.tensor([1, 2, 3, 5]), torch.tensor([1, 2, 3, 4])) == 0.25
    assert difference(torch.ones(3), torch.ones(2)) == float("inf")
    assert difference(torch.ones(1, 2), torch.ones(2)) == 0


SCALES = st.floats(1e-3, 1e3).map(np.float32)


@given(st.integers(0, 2**32 - 1), st.lists(SCALES, min_size=3, max_size=3), st.sampled_from(["float16", "float32"]))
def test_a_weight_is_recognised_times_one_factor_per_output_channel(seed, factors, precision):
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(3, 4, 2)).astype(np.float32)
    keep = generator.random((3, 4, 2)) < 0.5
    folded = weight * keep * np.array(factors, np.float32).reshape(3, 1, 1)
    found = compare(folded.astype(precision), weight * keep, keep, precision)
    assert found is not None
    moved = folded.astype(precision)
    largest = np.unravel_index(np.abs(moved).argmax(), moved.shape)
    others = np.flatnonzero(keep[largest[0]])
    if len(others) > 2:  # one value off by a hundredth, in a channel with others to compare it with
        moved[largest[0]].reshape(-1)[others[0]] *= 1.02
        assert compare(moved, weight * keep, keep, precision) is None


def test_the_factors_of_a_grouped_transposed_convolution_are_per_group_and_column():
    weight = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    keep = np.random.default_rng(1).random((6, 2, 3)) < 0.6
    factor = np.repeat(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), 3, 0)[:, :, None]
    stored = (weight * keep * factor).astype(np.float16)
    assert compare(stored, weight * keep, keep, "float16", groups=2) is not None
    assert compare(stored, weight * keep, keep, "float16") is None


@pytest.mark.parametrize(
    ("factors", "scales", "recognised"),
    [
        ([-2, -2, -2], [], True),  # one number in forward
        ([-1, 2, 3], [[-0.1, 1, 1]], True),
        ([-1, 2, 3], [[0.1, 1, 1], [1, -1, 1]], False),
        ([-1, -2, 3], [[-1, 1, 1], [1, -1, 1]], True),
        ([-1, 2, 3], [[-1]], True),
        ([-1, 2, 3], [[-1, 1]], False),
        ([0, 0, 0], [], False),
        ([0, 2, 3], [[1, 1, 1]], False),
        ([0, 2, 3], [[1e-9, 1, 1]], True),
        ([0, 0, 0], [[0]], True),
        ([np.inf, 2, 3], [[1, 1, 1]], False),
        ([np.nan, 2, 3], [[1, 1, 1]], False),
    ],
)
def test_channels_turn_or_vanish_only_where_the_model_has_a_scale_that_does_it(factors, scales, recognised):
    weight = np.random.default_rng(0).uniform(0.5, 1, (3, 4)).astype(np.float32)
    stored = (weight * np.array(factors, np.float32)[:, None]).astype(np.float16)
    found = compare(stored, weight, weight != 0, "float16", scales=[np.array(scale) for scale in scales])
    assert (found is not None) is recognised


def test_channels_that_are_too_small_for_float16_vanish_without_a_scale():
    weight = np.array([[1e-6, 1e-6], [0.5, 0.3]], np.float32)
    assert compare((weight * 0.01).astype(np.float16), weight, weight != 0, "float16") is not None


def test_a_batch_norm_that_the_converter_folds_wrongly_is_left_unfolded(target):
    class Grouped(Small):
        def __init__(self):
            super().__init__()
            self.up, self.up_norm = nn.ConvTranspose2d(16, 16, 2, groups=4), nn.BatchNorm2d(16)

        def forward(self, x):
            x = self.up_norm(self.up(F.relu(self.conv(x))))
            return self.fc(F.relu(x).mean((2, 3)))

    result = save(Grouped(), target, frontend="trace")
    assert result.notes == ("batch norms are not folded into weights: with them folded, verification failed",)
    assert not any(layer.scaled for layer in result.layers)


def test_a_factor_that_forward_makes_up_is_told_of(target):
    class Flipped(Small):
        def forward(self, x):
            signs = torch.tensor([1.0, -1.0, 0.5, 0.0] * 4).reshape(1, -1, 1, 1)
            return self.fc(F.relu(self.conv(x) * signs).mean((2, 3)))

    result = save(Flipped(), target)
    assert any("channels of conv.weight are stored with another sign or as zeros" in note for note in result.notes)
    assert result.not_checked == ()


@pytest.mark.parametrize("frontend", ["export", "trace", "export_full"])
def test_a_batch_norm_that_turns_and_erases_channels_is_folded(frontend, target):
    class Turned(Small):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(-1, 1, 16).reshape(16, 1, 1))
            self.second = nn.Conv2d(16, 16, 1)
            self.third = nn.Conv2d(16, 16, 1)
            self.signs = torch.tensor([-1.0, 1.0] * 8).reshape(16, 1, 1)  # not a buffer
            self.fourth = nn.Conv2d(16, 16, 1)

        def forward(self, x):
            x = F.relu(self.second(F.relu(self.norm(self.conv(x)))) * self.scale)
            x = F.relu(self.fourth(x) * self.signs)
            return self.fc((-self.third(x)).mean((2, 3)))

    model = Turned()
    masks = prune(model)
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(-1.5, 1.5, 16))
        model.norm.weight[3:5] = torch.tensor([0.0, 1e-9])
    result = CoreMLExport(target, X, frontend=frontend).save(model, masks=masks)
    assert {layer.name: layer.scaled for layer in result.layers} == {
        "conv.weight": True,
        "second.weight": True,
        "third.weight": True,
        "fourth.weight": True,
        "fc.weight": False,
    }


def test_a_weight_of_another_shape_or_with_other_zeros_is_not_recognised():
    weight, keep = np.ones((2, 2), np.float32), np.array([[True, False], [True, True]])
    assert compare(np.ones((4,), np.float16), weight, keep, "float16") is None
    assert compare(np.ones((2, 2), np.float16), weight * keep, keep, "float16") is None
    assert compare((weight * keep).astype(np.float16), weight * keep, keep, "float16") == (False, 0, 0.0)


def test_compressed_values_are_held_to_the_bound_of_their_encoding():
    exact = np.array([[0.0, 0.31, -1.0, 0.5]], np.float16)

    def error(values, **how):
        constant = Constant("w", np.array([values], np.float16), "fp16", "sparse, any", **how)
        return quantization_error(exact, constant)

    scale = np.array([[0.25]], np.float16)
    assert error([0, 0.25, -1, 0.5], scale=scale) <= 1
    assert error([0, 0.5, -1, 0.5], scale=scale) > 1
    lut = np.array([[[[0.3], [-1.0], [0.55], [0.0]]]], np.float16)
    assert error([0, 0.3, -1, 0.55], lut=lut) <= 1
    assert error([0, 0.55, -1, 0.55], lut=lut) > 1
    assert error([0, 9, 9, 9]) == 0  # not compressed: compared elsewhere


def swap_codes(content):
    """Exchange the codes of two weights of the same size, which no bound of one value would forgive."""
    found = []
    for at in range(64, len(content) - 64, 64):
        sentinel, _, length, offset = struct.unpack_from("<IIQQ", content, at)
        if sentinel == 0xDEADBEEF and length > 1000:
            found.append((offset, length))
    offset, length = max(found, key=lambda item: item[1])
    content[offset : offset + length] = content[offset : offset + length][::-1]


def test_a_damaged_compressed_package_is_found(target, monkeypatch):
    model = ResNet()
    masks = prune(model)
    honest, calls = coreml_module.save_package, []

    def save_package(converted, path):
        honest(converted, path)
        calls.append(path)
        if len(calls) == 2:
            file = path / "Data/com.apple.CoreML/weights/weight.bin"
            content = bytearray(file.read_bytes())
            swap_codes(content)
            file.write_bytes(content)

    monkeypatch.setattr(coreml_module, "save_package", save_package)
    export = CoreMLExport(target, X, compression="int8", minimum_deployment_target="iOS18", frontend="trace")
    with pytest.raises(ExportError, match="Compression moved"):
        export.save(model, masks=masks)


def test_a_guessed_weight_that_only_other_operations_read_may_stay_dense(target):
    class Positions(Small):
        def __init__(self):
            super().__init__()
            self.pos = nn.Parameter(torch.rand(1, 16) * (torch.rand(1, 16) > 0.5))

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)) + self.pos)

    model = Positions()
    result = CoreMLExport(target, X).save(model)
    assert [(layer.name, layer.stored) for layer in result.layers] == [("pos", "dense (read by add)")]
    with pytest.raises(ExportError, match=r"pos: \d+ of 16 values are pruned, but it is stored dense \(read by add\)"):
        CoreMLExport(target, X).save(model, masks={"pos": model.pos != 0})


def test_a_weight_stored_once_for_every_sample_is_found(target, monkeypatch):
    import lightning_prune.export.coreml.conversion as convert_module

    # Broken up entirely, a linear layer on sequences becomes a batched product with an expanded weight.
    monkeypatch.setattr(convert_module, "decompositions", lambda: None)

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 8, bias=False)

        def forward(self, x):
            return self.fc(x.transpose(0, 1)).sum(0)

    model = Sequence()
    with pytest.raises(ExportError, match=r"fc\.weight: stored 3 times over, as"):
        CoreMLExport(target, torch.rand(2, 3, 16), frontend="export_full").save(model, masks=prune(model))


class Padded(nn.Module):
    """Attention in which a token that is padding may see none."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Linear(8, 8)

    def forward(self, tokens, mask):
        seen = mask[:, None] * mask[:, :, None]
        scores = self.queries(tokens) @ tokens.transpose(1, 2)
        return scores.masked_fill(seen == 0, torch.finfo(torch.float32).min).softmax(-1) @ tokens


def test_numbers_beyond_float16_are_named_with_the_precision_that_holds_them(target):
    torch.manual_seed(0)
    example = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.int64)
    with pytest.raises(ExportError, match='float16 ends at 65,504: write compute_precision="float32"'):
        CoreMLExport(target, example).save(Padded())
    assert CoreMLExport(target, example, compute_precision="float32").save(Padded()).near_error < 1e-4
