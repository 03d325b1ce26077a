import copy
import errno
import io
import logging
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coreml_nets import ResNet, Small, Tagger, TwoInputs, prune
from rich.console import Console
from torch import nn

import lightning_prune.export.coreml.attempts as coreml_module
import lightning_prune.export.coreml.export as export_module
from lightning_prune import MagnitudePruner
from lightning_prune.basics import files
from lightning_prune.errors import ConfigError, ExportError
from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil.program import read_package, walk
from lightning_prune.export.coreml.mil.run import run
from lightning_prune.export.standalone import Standalone

pytest.importorskip("coremltools")

X = torch.rand(1, 3, 16, 16)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "net.mlpackage"


def save(model, target, inputs=X, **options):
    return CoreMLExport(target, inputs, **options).save(model, masks=prune(model))


def interface(path):
    """Inputs and outputs of a package as ``{name: (type, shape)}``."""
    package = read_package(path)
    types = {name: (dtype, shape) for op in walk(package.main) for name, dtype, shape in op.outputs}
    return {name: (dtype, shape) for name, dtype, shape in package.main.inputs}, {
        name: types[name] for name in package.main.outputs
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "net.onnx"}, r"export\.path must end in \.mlpackage, got 'net\.onnx'\. Write 'net\.mlpackage'"),
        ({"compute_precision": "float8"}, r"export\.compute_precision must be one of float16, float32, got 'float8'"),
        ({"io_dtype": "int8"}, r"export\.io_dtype must be one of"),
        (
            {"frontend": "onnx"},
            r"export\.frontend must be one of auto, export, trace, export_needed, export_full, got 'onnx'",
        ),
        ({"on_error": "ignore"}, r"export\.on_error must be one of warn, raise"),
        ({"compression": "int2"}, r"export\.compression must be one of int8, int4, palette8.*got 'int2'"),
        ({"inputs": [None], "input_names": ["x"]}, "exclude each other"),
        ({"classifier_labels": ["a"], "output_names": ["x"]}, "exclude each other"),
    ],
)
def test_a_value_that_cannot_work_is_refused_when_written(options, message):
    with pytest.raises(ConfigError, match=message):
        CoreMLExport(**{"path": "net.mlpackage", "example_inputs": X, **options})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"must end in \.mlpackage, got ''\. Write 'model\.mlpackage'"),
        (".", r"must end in \.mlpackage, got '\.'\. Write 'model\.mlpackage'"),
        ("/", r"must end in \.mlpackage, got '/'\. Write '/model\.mlpackage'"),
        (b"net.mlpackage", r"must be a path that ends in \.mlpackage, got b'net\.mlpackage'"),
        (3, r"must be a path that ends in \.mlpackage, got 3"),
        (None, r"must be a path that ends in \.mlpackage, got None"),
    ],
)
def test_what_is_no_path_of_a_package_is_named(path, message):
    with pytest.raises(ConfigError, match=message):
        CoreMLExport(path, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum_deployment_target": "iOS15"}, r"must be iOS16 or newer for sparse weights, got 'iOS15'"),
        ({"minimum_deployment_target": "android"}, r"minimum_deployment_target must be one of .*iOS16.*got 'android'"),
        ({"compression": "int8"}, r"must be iOS18 or newer for compression='int8' on top of sparsity.*Write 'iOS18'"),
        ({"example_inputs": None}, r"Small has no example_input_array\. Write CoreMLExport\(path, example_inputs="),
        ({"submodule": "head"}, r"must name a part of Small, got 'head'\. Its parts are: conv, norm, fc"),
    ],
)
def test_what_needs_the_model_or_core_ml_tools_is_checked_before_training(options, message, target):
    with pytest.raises(ConfigError, match=message):
        CoreMLExport(target, **{"example_inputs": X, **options}).check(Small())


def test_a_check_without_findings_writes_nothing(tmp_path):
    CoreMLExport(tmp_path / "new" / "net.mlpackage", X).check(Small())
    assert list(tmp_path.iterdir()) == []


def test_without_core_ml_tools_the_error_says_how_to_install_it(target, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(ExportError, match=r'pip install "lightning-prune\[coreml\]"'):
        CoreMLExport(target, X).check()


def test_without_scikit_learn_a_palette_is_refused_with_the_pip_line(target, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    export = CoreMLExport(target, X, compression="palette4", minimum_deployment_target="iOS18")
    with pytest.raises(ExportError, match=r'needs scikit-learn\. Write: pip install "lightning-prune\[coreml\]"'):
        export.check()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_a_package_is_never_replaced(kind, tmp_path, target):
    keep = tmp_path / "precious"
    keep.mkdir()
    (keep / "thesis.txt").write_text("years of work")
    if kind == "file":
        target.write_text("years of work")
    elif kind == "folder":
        shutil.copytree(keep, target)
    else:
        target.symlink_to(keep)
    before = sorted(tmp_path.rglob("*"))
    for act in (CoreMLExport(target, X).check, lambda: CoreMLExport(target, X).save(Small())):
        with pytest.raises((ConfigError, ExportError), match="must be free or hold a Core ML package"):
            act()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_package_is_kept_with_overwrite_false(target):
    save(Small(), target)
    with pytest.raises(ConfigError, match=r"exists\. Remove it or write overwrite=True"):
        CoreMLExport(target, X, overwrite=False).check()


def test_what_came_to_lie_at_the_path_during_the_export_is_not_replaced(tmp_path, target, monkeypatch):
    def best(self, standalone, pruned, place, *, guessed):
        place.mkdir()
        target.write_text("years of work")

    monkeypatch.setattr(export_module, "first_proven", best)
    with pytest.raises(ExportError, match="must be free or hold a Core ML package"):
        CoreMLExport(target, X).save(Small())
    assert target.read_text() == "years of work"
    target.unlink()

    def other(self, standalone, pruned, place, *, guessed):
        place.mkdir()
        target.mkdir()
        (target / "Data").mkdir()
        (target / "Manifest.json").write_text("{}")

    monkeypatch.setattr(export_module, "first_proven", other)
    with pytest.raises(ExportError, match=r"exists\. Remove it or write overwrite=True"):
        CoreMLExport(target, X, overwrite=False).save(Small())
    assert (target / "Manifest.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_the_home_folder_and_folders_that_do_not_exist_are_taken_out_of_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert CoreMLExport("~/net.mlpackage", X).path == tmp_path / "me" / "net.mlpackage"
    assert CoreMLExport("new/net.mlpackage", X).path == Path("new/net.mlpackage")
    model = Small()
    result = CoreMLExport("up/../net.mlpackage", X, frontend="trace").save(model, masks=prune(model))
    assert result.path == tmp_path / "net.mlpackage"
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_a_parent_that_is_a_link_to_nowhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="must lie in a folder that can be written to, but .*link cannot"):
        CoreMLExport(tmp_path / "link" / "net.mlpackage", X).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="must lie in a folder that can be written to"):
        CoreMLExport(tmp_path / "net.mlpackage", X).check()


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must lie in a folder that can be written to"):
        CoreMLExport(tmp_path / "file" / "net.mlpackage", X).check()


class Broken(Small):
    def forward(self, x):
        return super().forward(x) * (1 if x.mean() > 0 else -1)


def test_a_failed_export_leaves_the_old_package_and_no_litter(tmp_path, target):
    save(Small(), target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match="was not touched"):
        save(Broken(), target)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_a_failed_export_leaves_no_new_folders(tmp_path):
    with pytest.raises(ExportError, match="frontend trace: ExportError: The package computes something else"):
        save(Broken(), tmp_path / "a" / "b" / "net.mlpackage", frontend="trace")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_package_and_no_litter(tmp_path, target, monkeypatch):
    save(Small(), target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def half(converted, path):
        path.mkdir()
        (path / "Manifest.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(coreml_module, "save_package", half)
    with pytest.raises(ExportError, match="No space left on device"):
        save(Small(), target)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_when_the_last_move_fails_the_old_package_comes_back(tmp_path, target, monkeypatch):
    save(Small(), target)
    before = (target / "Manifest.json").read_bytes()
    replace = Path.replace

    def fail(self, to):
        if self.parent != target.parent and to == target and self.name == "net.mlpackage":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, to)

    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ExportError, match="Input/output error"):
        save(Small(), target)
    assert (target / "Manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_an_existing_package_is_replaced_after_success(tmp_path, target):
    first = save(Small(), target)
    second = save(ResNet(), target, torch.rand(1, 3, 32, 32))
    assert read_package(target).nbytes == second.package_bytes != first.package_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["net.mlpackage"]


def test_a_package_is_readable_as_the_umask_allows_and_holds_no_debug_map(target):
    save(Small(), target)
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in target.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert {path.name for path in files} == {"Manifest.json", "model.mlmodel", "weight.bin"}


def test_the_model_is_not_changed(target):
    model = Small().train()
    prune(model)
    before, hooks = copy.deepcopy(model.state_dict()), copy.copy(vars(model))
    CoreMLExport(target, X).save(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert vars(model).keys() == hooks.keys()


def test_a_model_in_training_mode_is_exported_with_its_running_statistics(target):
    model = Small().train()
    result = CoreMLExport(target, X).save(model, masks=prune(model))
    assert result.not_checked == ()
    assert result.max_error < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_exported(dtype, target):
    model = Small().to(dtype)
    assert save(model, target).layers[0].stored == "sparse"


class Logging(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Small()
        self.example_input_array = X

    def forward(self, x):
        y = self.net(x)
        self.log("mean", y.mean())
        return y


def test_a_lightning_module_is_exported_with_its_own_example(target):
    module = Logging()
    result = CoreMLExport(target).save(torch.compile(module, backend="eager"), masks=prune(module))
    assert [layer.name for layer in result.layers] == ["net.conv.weight", "net.fc.weight"]


def test_a_submodule_is_exported_with_the_inputs_that_the_whole_gives_it(target):
    module = Logging()
    result = CoreMLExport(target, submodule="net.fc").save(module, masks=prune(module))
    assert [layer.name for layer in result.layers] == ["weight"]
    inputs, _ = interface(target)
    assert inputs == {"input": ("fp32", (1, 16))}


def test_without_masks_weights_with_a_sixteenth_of_zeros_are_taken_as_pruned(target):
    model = Small()
    with torch.no_grad():
        model.fc.weight.view(-1)[:4] = 0
        model.conv.weight.view(-1)[:26] = 0
    result = CoreMLExport(target, X).save(model)
    assert [(layer.name, layer.zeros, layer.stored) for layer in result.layers] == [("fc.weight", 4, "sparse")]


def test_with_masks_below_break_even_dense_storage_is_reported_not_refused(target):
    model = Small()
    mask = torch.ones(4, 16)
    mask[0, 0] = 0
    with torch.no_grad():
        model.fc.weight.mul_(mask)
    result = CoreMLExport(target, X).save(model, masks={"fc.weight": mask.to(torch.uint8)})
    assert result.layers[0].stored == "dense (fewer than 6.2% zeros, which takes less than sparse)"
    assert result.notes == (f"fc.weight is stored {result.layers[0].stored}",)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"fc.wait": torch.ones(4, 16)}, r"masks\['fc.wait'\] must belong to a parameter"),
        ({"fc.weight": torch.ones(3, 16)}, r"must be broadcastable to \(4, 16\), got \(3, 16\)"),
        ({"fc.weight": torch.zeros(4, 16)}, r"prunes 64 values that are not zero in the model\. Finalize it first"),
    ],
)
def test_masks_that_do_not_belong_to_the_model_are_refused(masks, message, target):
    with pytest.raises(ExportError, match=message):
        CoreMLExport(target, X).save(Small(), masks=masks)


def test_tied_weights_are_found_under_both_names(target):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            self.out = nn.Linear(16, 20, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(self.embed(tokens))

    model = Tied()
    keep = torch.rand(20, 16) > 0.5
    with torch.no_grad():
        model.embed.weight.mul_(keep)
    masks = {"embed.weight": keep, "out.weight": keep}
    result = CoreMLExport(target, torch.randint(0, 20, (2, 3))).save(model, masks=masks)
    assert [layer.stored for layer in result.layers] == ["sparse", "sparse"]
    stored = [constant for constant in read_package(target).constants.values() if constant.values.size == 320]
    assert len(stored) == 1


def test_weight_norm_is_exported_as_the_weight_that_it_makes(target):
    model = Small()
    torch.nn.utils.parametrizations.weight_norm(model.conv)
    v = model.conv.parametrizations.weight.original1
    keep = torch.rand(v.shape) > 0.5
    with torch.no_grad():
        v.mul_(keep)
    result = CoreMLExport(target, X).save(model, masks={"conv.parametrizations.weight.original1": keep})
    assert [(layer.name, layer.zeros) for layer in result.layers] == [("conv.weight", int((~keep).sum()))]


@pytest.mark.parametrize("style", ["old", "new"])
def test_rows_that_a_weight_norm_lost_are_zeros_of_the_package(target, style):
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old style is deprecated
        (nn.utils if style == "old" else nn.utils.parametrizations).weight_norm(model.conv)
        with torch.no_grad():
            (model.conv.weight_g if style == "old" else model.conv.parametrizations.weight.original0)[0] = 1e-3
    rule = {"target_sparsity": 0.5, "initial_sparsity": 0.5}
    pruner = MagnitudePruner(model, {"module_name_configs": {"conv": rule}}, masking="resident")
    pruner.prepare(inplace=True)
    pruner.finalize(inplace=True)
    (mask,) = pruner.masks().values()
    assert not mask[0].any()
    (layer,) = CoreMLExport(target, X).save(model, masks=pruner.masks()).layers
    assert (layer.name, layer.zeros) == ("conv.weight", int((~mask).sum()))


def test_a_parameter_that_the_outputs_do_not_depend_on_is_reported(target):
    model = Small()
    model.auxiliary = nn.Linear(16, 4)
    result = save(model, target)
    assert "unused: auxiliary.weight has no influence on the outputs and is not in the package" in result.notes


def test_a_weight_that_two_kinds_of_operation_read_is_stored_sparse(target):
    class Twice(Small):
        def forward(self, x):
            return super().forward(x) + (self.fc.weight * x.mean()).sum()

    assert [layer.stored for layer in save(Twice(), target).layers] == ["sparse", "sparse"]


def test_a_fully_pruned_layer_is_exported(target):
    model = Small()
    with torch.no_grad():
        model.fc.weight.zero_()
    result = CoreMLExport(target, X).save(model, masks={"fc.weight": torch.zeros(4, 1)})
    assert (result.layers[0].zeros, result.layers[0].stored) == (64, "sparse")


def test_names_and_types_of_inputs_and_outputs_are_as_a_user_expects(target):
    model = TwoInputs()
    examples = {"features": torch.randn(2, 7), "image": torch.randn(2, 3, 16, 16)}
    save(model, target, examples)
    assert interface(target) == (
        {"features": ("fp32", (2, 7)), "image": ("fp32", (2, 3, 16, 16))},
        {"logits": ("fp32", (2, 3)), "embedding": ("fp32", (2, 96))},
    )
    save(model, target, examples, input_names=["a", "b"], output_names=["c", "d"], io_dtype="float16")
    assert interface(target) == (
        {"a": ("fp16", (2, 7)), "b": ("fp16", (2, 3, 16, 16))},
        {"c": ("fp16", (2, 3)), "d": ("fp16", (2, 96))},
    )
    with pytest.raises(ExportError, match=r"output_names must have one item for each of the 2 tensors .* got 1"):
        save(model, target, examples, output_names=["c"])


def test_integer_inputs_and_outputs_stay_integers(target):
    class Picks(Tagger):
        def forward(self, tokens):
            scores = super().forward(tokens)
            return scores, scores.argmax(-1), scores > 0

    result = save(Picks(layers=1), target, torch.randint(0, 50, (2, 5)))
    inputs, outputs = interface(target)
    assert inputs == {"tokens": ("int32", (2, 5))}
    assert [dtype for dtype, _ in outputs.values()] == ["fp32", "int32", "int32"]
    assert result.not_checked == ()


def test_single_precision_is_exact(target):
    result = save(Small(), target, compute_precision="float32")
    assert result.max_error < 1e-5
    assert {constant.dtype for constant in read_package(target).constants.values() if constant.sparse} == {"fp32"}


def test_an_image_input_with_scale_and_bias_is_verified(target, coremltools):
    image = coremltools.ImageType(name="img", shape=(1, 3, 16, 16), scale=1 / 127.5, bias=[-1.0, -0.9, -0.8])
    result = CoreMLExport(target, X, inputs=[image]).save(Small())
    assert result.not_checked == ()
    assert result.max_error < 2e-3
    kind = coremltools.utils.load_spec(str(target)).description.input[0].type.WhichOneof("Type")
    assert kind == "imageType"


def test_a_classifier_answers_with_labels_and_its_probabilities_are_verified(target, coremltools):
    class Softmax(Small):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    result = save(Softmax(), target, classifier_labels=["cat", "dog", "emu", "fox"])
    assert result.not_checked == ()
    description = coremltools.utils.load_spec(str(target)).description
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]


@pytest.mark.parametrize("frontend", ["export", "trace"])
@pytest.mark.parametrize("kind", ["range", "enumerated"])
def test_flexible_shapes_are_verified_at_other_sizes_than_the_example(kind, frontend, target, coremltools):
    ct = coremltools
    shape = (ct.RangeDim(1, 8), 3, ct.RangeDim(8, 64), 16)
    if kind == "enumerated":
        shape = ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 32, 32)])
    model = Small()
    export = CoreMLExport(target, X, inputs=[ct.TensorType(name="x", shape=shape)], frontend=frontend)
    result = export.save(model, masks=prune(model))
    runs = {"range": 6, "enumerated": 3}[kind]
    assert any(f"run on {runs} fresh inputs like the example, gives" in check for check in result.checks)
    assert result.not_checked == ()
    assert interface(target)[0]["x"][0] == "fp32"


def test_a_size_fixed_by_tracing_is_found_at_another_size(target, coremltools):
    class Fixed(Small):
        def forward(self, x):
            return super().forward(x) * float(x.shape[2])

    inputs = [coremltools.TensorType(name="x", shape=(1, 3, coremltools.RangeDim(8, 64), 16))]
    with pytest.raises(ExportError, match="fresh input of another shape"):
        CoreMLExport(target, X, inputs=inputs, frontend="trace").save(Fixed())


def test_a_shape_at_which_the_model_itself_fails_is_reported_as_not_checked(target, coremltools):
    ct = coremltools
    inputs = [ct.TensorType(name=name, shape=(2, ct.RangeDim(low, 9))) for name, low in (("a", 1), ("b", 2))]

    class Adds(nn.Module):
        def forward(self, a, b):
            return a + b

    result = CoreMLExport(target, (torch.rand(2, 5), torch.rand(2, 5)), inputs=inputs, frontend="trace").save(Adds())
    assert result.not_checked == ()  # a size of 1 fits any other

    inputs = [ct.TensorType(name=name, shape=(2, ct.RangeDim(low, 9))) for name, low in (("a", 3), ("b", 2))]
    result = CoreMLExport(target, (torch.rand(2, 5), torch.rand(2, 5)), inputs=inputs, frontend="trace").save(Adds())
    assert len(result.not_checked) == 1
    assert result.not_checked[0].startswith("the shapes (2, 3), (2, 2): the model itself fails at them")


def test_inputs_of_the_wrong_number_are_refused(target, coremltools):
    inputs = [coremltools.TensorType(shape=X.shape)] * 2
    with pytest.raises(ExportError, match=r"export\.inputs must have one item for each of the 1 tensors"):
        CoreMLExport(target, X, inputs=inputs).save(Small())


def test_arguments_for_the_converter_are_passed_on(target):
    with pytest.raises(ExportError, match="TypeError.*no_such_argument"):
        save(Small(), target, convert_kwargs={"no_such_argument": 1})


def test_auto_takes_the_first_frontend_whose_package_is_right(target):
    class Views(Small):
        def forward(self, x):
            return super().forward(x).view(x.size(0), -1)

    assert save(Views(), target).frontend == "export"
    assert save(Tagger(layers=1), target, torch.randint(0, 50, (1, 4))).frontend == "trace"


@pytest.mark.parametrize("frontend", ["export", "trace", "export_full"])
def test_pooling_with_its_default_stride_is_exported_by_every_frontend(frontend, target):
    class Pools(Small):
        def forward(self, x):
            x = F.avg_pool2d(F.max_pool2d(self.conv(x), 2), 2)
            return self.fc(self.norm(x).mean((2, 3)))

    assert save(Pools(), target, frontend=frontend).max_error < 2e-3


def test_a_failure_in_forward_is_an_export_error_with_its_cause(target):
    with pytest.raises(ExportError, match="No Core ML package could be made of Small") as caught:
        CoreMLExport(target, torch.rand(1, 5, 16, 16)).save(Small())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_nothing_is_printed_and_no_logger_is_left_changed(target, capfd):
    before = (logging.getLogger("coremltools").level, logging.root.manager.disable)
    save(Small(), target)
    with pytest.raises(ExportError, match="frontend trace: ExportError: The package computes something else"):
        save(Broken(), target)
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger("coremltools").level, logging.root.manager.disable) == before
    assert torch.backends.mha.get_fastpath_enabled()


def test_names_that_core_ml_does_not_take_are_noted_with_the_new_ones(target, coremltools):
    model = Small()
    result = save(model, target, input_names=["in-put"], output_names=["class-probs"])
    package = read_package(target)
    assert ([name for name, _, _ in package.main.inputs], package.main.outputs) == (["in_put"], ("class_probs",))
    assert [note.split(" in the package")[0] for note in result.notes] == [
        "the input 'in-put' is called 'in_put'",
        "the output 'class-probs' is called 'class_probs'",
    ]
    result = CoreMLExport(target, X, inputs=[coremltools.TensorType("1st", X.shape)]).save(model)
    assert [note.split(" in the package")[0] for note in result.notes] == ["the input '1st' is called 'var_1st'"]

    class Keys(Small):
        def forward(self, x):
            return {"class-probs": super().forward(x), "x": x.mean() + x, "fine": x + 1}

    result = save(Keys(), target)
    assert [note.split(" in the package")[0] for note in result.notes] == [
        "the output 'class-probs' is called 'class_probs'",
        "the output 'x' is called 'x_out'",
    ]


def test_what_the_converter_warns_of_is_noted_but_for_its_noise(target, monkeypatch, caplog):
    honest = coreml_module.convert

    def convert(ct, program, arguments):
        logger = logging.getLogger("coremltools")
        logger.warning("Core ML embedding (gather) layer does not support\n   any %s", "padding")
        logger.warning("Core ML embedding (gather) layer does not support any padding")
        logging.getLogger("coremltools.converters").warning("buffer has been cast to fp16")
        logger.warning("Tuple detected at graph output. This will be flattened in the converted model.")
        logger.info("Converting")
        warnings.warn("the shape may be wrong", stacklevel=1)
        warnings.warn("use another name", DeprecationWarning, stacklevel=1)
        return honest(ct, program, arguments)

    monkeypatch.setattr(coreml_module, "convert", convert)
    assert save(Small(), target, frontend="export").notes == (
        "Core ML Tools: Core ML embedding (gather) layer does not support any padding",
        "Core ML Tools: buffer has been cast to fp16",
        "Core ML Tools: the shape may be wrong",
    )
    assert not [record for record in caplog.records if record.name.startswith("coremltools")]


@pytest.mark.parametrize("compression", ["int8", "int4", "palette4", "palette2"])
def test_compression_comes_on_top_of_sparsity(compression, target):
    model = ResNet()
    inputs = torch.rand(1, 3, 32, 32)
    plain = save(model, target, inputs)
    masks = {name: p != 0 for name, p in model.named_parameters() if p.ndim > 1}
    export = CoreMLExport(target, inputs, compression=compression, minimum_deployment_target="iOS18")
    result = export.save(model, masks=masks)
    assert result.package_bytes < plain.package_bytes
    assert result.dense_package_bytes == pytest.approx(plain.dense_package_bytes, rel=0.1)
    assert result.compression_error > plain.max_error
    assert {layer.stored for layer in result.layers} == {f"sparse, {compression}", "sparse"}
    left = [layer.name for layer in result.layers if layer.stored == "sparse"]
    assert [note.split()[0] for note in result.notes] == left
    assert any("compression changed nothing but weights" in check for check in result.checks)


def test_layers_too_small_to_compress_are_named(target):
    result = save(Small(), target, compression="palette8", minimum_deployment_target="iOS18")
    assert result.notes == tuple(
        f"{name} is not compressed further: {size} values are too few to gain by it"
        for name, size in (("conv.weight", 432), ("fc.weight", 64))
    )


def test_the_result_reads_as_text_table_and_numbers(target):
    result = save(ResNet(), target, torch.rand(1, 3, 32, 32))
    numbers = result.as_dict()
    assert numbers["coreml/ratio"] == pytest.approx(result.dense_package_bytes / result.package_bytes)
    assert numbers["coreml/not_checked"] == 0
    assert 0.7 < numbers["coreml/sparsity"] < 0.8
    assert numbers["coreml/layer_ratio/fc.weight"] > 1
    assert all(isinstance(value, float) for value in numbers.values())
    assert f"{result.package_bytes:,} bytes" in str(result)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(result)
    text = console.export_text()
    assert "whole package" in text
    assert "sparse, scaled" in text
    assert "verified: 10 of 10 pruned parameters are stored sparse" in text


def test_fresh_inputs_differ_from_the_example_and_stay_in_the_range_of_integers():
    from lightning_prune.export.draws import DRAWS, fresh_inputs
    from lightning_prune.export.inputs import ProgramInput

    spec = [ProgramInput("x", ((64, 64),)), ProgramInput("tokens", ((100,),)), ProgramInput("on", ((9,),))]
    examples = (torch.randn(64, 64) * 2 + 5, torch.randint(3, 7, (100,)), torch.ones(9, dtype=torch.bool))
    means = []
    for draw in range(len(DRAWS) + 1):
        x, tokens, on = fresh_inputs(spec, examples, draw)
        means.append(float(x.mean()))
        assert 3 <= int(tokens.min()) <= int(tokens.max()) <= 6
        assert on.dtype == torch.bool
    assert np.std(means) > 3


class Tokens(nn.Module):
    """Takes the sum of two inputs as tokens, and treats all but the token 0 in another way."""

    def __init__(self, rows=50):
        super().__init__()
        self.embed, self.out = nn.Embedding(rows, 16), nn.Linear(16, 4)

    def forward(self, tokens, offset):
        x = self.embed(tokens + offset)
        return self.out(x.mean(1) * (2 if bool((tokens > 0).any()) else 1))


def test_an_example_of_zeros_does_not_hide_what_the_network_does_to_other_tokens(target):
    zeros = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(ExportError, match="The package computes something else than the model"):
        save(Tokens(), target, (zeros, zeros[:, :1]), frontend="trace")
    result = save(Tokens(rows=1), target, (zeros, zeros[:, :1]), frontend="trace")
    assert result.not_checked == (
        "other values of tokens than 0: none is known to be taken",
        "other values of offset than 0: none is known to be taken",
    )


@pytest.mark.parametrize("rows", [2, 50, 30_000])
def test_fresh_tokens_are_those_that_the_model_accepts(rows):
    from lightning_prune.export.draws import largest_values

    zeros = torch.zeros(1, 8, dtype=torch.long)
    assert largest_values(Standalone(Tokens(rows), (zeros, zeros))) == [rows - 1, None]
    assert largest_values(Standalone(Tokens(rows), (zeros, zeros + 1))) == [{2: None, 50: 9, 30_000: 99}[rows], None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_exported_and_stays_there(target):
    model = Small()
    masks = prune(model)
    model = model.cuda().bfloat16()
    result = CoreMLExport(target, X.cuda()).save(model, masks={name: mask.cuda() for name, mask in masks.items()})
    assert result.not_checked == ()
    assert {p.device.type for p in model.parameters()} == {"cuda"}


@pytest.mark.slow
def test_the_example_of_an_export_alone_runs(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "export_alone.py"
    done = subprocess.run([sys.executable, script, "--out", tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("3 of 3 pruned parameters are stored sparse") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sparse-palette4.mlpackage", "sparse.mlpackage"]


@pytest.mark.parametrize("frontend", ["export", "trace"])
def test_a_lightning_module_without_a_trainer_is_captured(target, frontend):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x)

    assert CoreMLExport(target, torch.rand(1, 8), frontend=frontend).save(Module().eval()).frontend == frontend


def test_pruned_biases_are_exported_as_they_are(target):
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            masks[name] = torch.rand(parameter.shape) > 0.5
            parameter.mul_(masks[name])
    result = CoreMLExport(target, torch.rand(1, 8)).save(model, masks=masks)
    assert [layer.name for layer in result.layers] == ["0.weight", "2.weight"]


def test_a_lightning_module_that_asks_whether_it_has_a_trainer_is_exported(target):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            try:
                return self.fc(x) / self.trainer.world_size
            except RuntimeError:
                return self.fc(x)

    model = Module().eval()
    result = CoreMLExport(target, torch.rand(1, 8), frontend="export").save(model)
    assert (result.frontend, result.path) == ("export", target)
    assert result.max_error is not None
    assert result.max_error < 0.01


@pytest.mark.parametrize("frontend", ["export", "trace", "export_full"])
def test_a_lightning_module_that_reads_the_epoch_computes_with_that_of_now(frontend, tmp_path):
    class Warm(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x) / (1 + self.current_epoch)

    model, inputs = Warm(), torch.ones(1, 8)
    model._trainer = types.SimpleNamespace(current_epoch=2, global_step=8, global_rank=0, local_rank=0)
    result = CoreMLExport(tmp_path / "a.mlpackage", inputs, frontend=frontend).save(model)
    package = read_package(result.path)
    outputs = run(package, {package.main.inputs[0][0]: inputs}).outputs
    torch.testing.assert_close(next(iter(outputs.values())), model.fc(inputs).detach() / 3, rtol=2e-3, atol=2e-3)
