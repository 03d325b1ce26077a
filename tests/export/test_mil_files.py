"""A package from anywhere: nothing outside of it is read, and damage is an error in little time and memory."""

import gc
import json
import os
import random
import shutil
import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune.analysis.inspection import inspect_file
from lightning_prune.errors import CheckpointError, ExportError
from lightning_prune.export.coreml.conversion import quiet
from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil import program as mil
from lightning_prune.export.coreml.mil.program import read_functions, read_package

pytest.importorskip("coremltools")

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A package whose weights are sparse and quantized."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    for layer in (model[0], model[2]):
        layer.weight.data[torch.rand_like(layer.weight) < 0.75] = 0
    path = tmp_path_factory.mktemp("packages") / "net.mlpackage"
    export = CoreMLExport(
        path, torch.rand(1, 64), compression="int4", minimum_deployment_target="iOS18", frontend="export"
    )
    return export.save(model).path


@pytest.fixture
def package(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "net.mlpackage")


@contextmanager
def little(seconds=10, megabytes=64):
    """Whatever is done within takes little time and memory."""
    begin = time.monotonic()
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < megabytes * 2**20
    assert time.monotonic() - begin < seconds


def edit(package, change):
    """Let a function change the protobuf of a package."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    (function,) = spec.mlProgram.functions.values()
    change(spec, function.block_specializations[function.opset])
    (package / MODEL).write_bytes(spec.SerializeToString())


def stored_values(block):
    """All values of a program that lie in its weight file."""
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.value.WhichOneof("value") == "blobFileValue":
                    yield binding.value
        for value in op.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                yield value


def with_weights_at(package, name):
    def change(spec, block):
        for value in stored_values(block):
            value.blobFileValue.fileName = name

    edit(package, change)


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "@model_path//dev/zero", "@model_path/../../../secret.bin", "weights/weight.bin", "@model_path/"],
)
def test_weights_outside_of_the_package_are_not_read(name, package):
    shutil.copy(package / WEIGHTS, package.parent / "secret.bin")
    with_weights_at(package, name)
    with pytest.raises(ExportError, match=r"no part of it|leads out of it|regular file"), little():
        read_package(package)


@pytest.mark.parametrize("what", ["link to a device", "link to a file outside", "pipe", "folder", "link to itself"])
@pytest.mark.parametrize("file", [WEIGHTS, MODEL, "Manifest.json"])
def test_only_regular_files_of_the_package_itself_are_read(file, what, package):
    place = package / file
    secret = shutil.copy(place, package.parent / "secret")
    place.unlink()
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to({"link to a device": "/dev/zero", "link to itself": place}.get(what, secret))
    with pytest.raises(ExportError, match=r"leads out of it to|must be a regular file|cannot be read|has no"), little():
        read_package(package)
    with pytest.raises(CheckpointError):
        inspect_file(package)


def test_a_link_within_the_package_and_one_to_it_are_followed(package, tmp_path):
    (package / WEIGHTS).rename(package / "moved.bin")
    (package / WEIGHTS).symlink_to("../../../moved.bin")
    (tmp_path / "link.mlpackage").symlink_to(package)
    assert len(read_package(tmp_path / "link.mlpackage").constants) > 4


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "", "com.apple.CoreML/other.mlmodel", "\0"])
def test_the_manifest_names_a_file_of_the_package(path, package):
    shutil.copy(package / MODEL, package.parent / "secret")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"leads out of it|regular file|has no Data/"), little():
        read_package(package)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"rootModelIdentifier": 1}', "[" * 100_000, "9" * 10_000])
def test_a_manifest_that_says_nothing_is_an_error(manifest, package):
    (package / "Manifest.json").write_text(manifest)
    with pytest.raises(ExportError, match="cannot be read as a Core ML package"), little():
        read_package(package)


def test_shapes_beyond_the_file_are_an_error(package):
    def change(spec, block):
        for value in stored_values(block):
            for dimension in value.type.tensorType.dimensions:
                dimension.constant.size = 10**9

    edit(package, change)
    with pytest.raises(ExportError, match=r"is damaged: \d+ bytes at byte \d+, where \d+ are declared"), little():
        read_package(package)


def test_one_record_read_many_times_takes_its_memory_once(package):
    def change(spec, block):
        constants = [op for op in block.operations if op.type.startswith("constexpr")]
        for number in range(300):
            for op in constants:
                copy = block.operations.add()
                copy.CopyFrom(op)
                for output in copy.outputs:
                    output.name += f"_{number}"

    edit(package, change)
    with little(megabytes=32):
        assert len(read_package(package).constants) > 600


def test_a_tower_of_decompressions_is_an_error_before_it_takes_the_memory(package, monkeypatch):
    def change(spec, block):
        last = next(op for op in block.operations if op.type == "constexpr_sparse_to_dense")
        source = last.outputs[0].name
        for number in range(1000):  # 16 megabytes, out of a few kilobytes
            op = block.operations.add(type="constexpr_cast")
            op.inputs["source_val"].arguments.add().name = source
            value = op.inputs["output_dtype"].arguments.add().value
            value.type.tensorType.dataType = 2
            value.immediateValue.tensor.strings.values.append("fp32")
            op.outputs.add().CopyFrom(last.outputs[0])
            op.outputs[0].name = source = f"cast_{number}"

    edit(package, change)
    monkeypatch.setattr(mil, "MOST_PER_BYTE", 4)
    with pytest.raises(ExportError, match="declares more values than its files can hold"), little(megabytes=12):
        read_package(package)


def test_encodings_that_are_named_over_and_over_do_not_grow(package):
    def change(spec, block):
        last = next(op for op in block.operations if op.type == "constexpr_sparse_to_dense")
        source = last.inputs["nonzero_data"].arguments[0].name
        for number in range(60):  # each names its source twice: 2**60 steps
            op = block.operations.add()
            op.CopyFrom(last)
            op.inputs["more"].arguments.add().name = source
            op.inputs["again"].arguments.add().name = source
            op.outputs[0].name = source = f"again_{number}"

    edit(package, change)
    with little():
        assert max(len(constant.encoding) for constant in read_package(package).constants.values()) < 40


def test_records_that_overlap_are_an_error(package):
    content = bytearray((package / WEIGHTS).read_bytes())
    records = [at for at in range(64, len(content), 64) if content[at : at + 4] == b"\xef\xbe\xad\xde"]
    for at in records:  # each takes all that follows
        content[at + 8 : at + 16] = (len(content) - at - 64).to_bytes(8, "little")
    (package / WEIGHTS).write_bytes(content)
    with pytest.raises(ExportError, match="its records overlap"):
        read_package(package)


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the system does not tell of holes")
def test_a_file_of_which_most_was_never_written_is_an_error(package):
    with (package / WEIGHTS).open("r+b") as file:
        file.truncate(2**33)
    if (package / WEIGHTS).stat().st_blocks * 512 > 2**30:
        pytest.skip("the file system has no holes")
    with pytest.raises(ExportError, match="more than half were never written"), little():
        read_package(package)


def test_blocks_within_blocks_without_end_are_an_error(package):
    inner = b""
    for _ in range(20_000):  # operations = 3, blocks = 5, as lengths allow
        inner = b"\x1a" + length(inner) + inner
        inner = b"\x2a" + length(inner) + inner
        if len(inner) > 100_000:
            break
    (package / MODEL).write_bytes(b"\xb2\x1f" + length(inner) + inner)
    with pytest.raises(ExportError), little():
        read_package(package)


def length(content):
    """How protobuf writes the length of a field."""
    size, out = len(content), b""
    while size > 127:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    return out + bytes([size])


@pytest.mark.parametrize("file", [MODEL, WEIGHTS, "Manifest.json"])
def test_damage_anywhere_is_an_error_or_another_package(file, saved, tmp_path):
    rng = random.Random(file)
    package = shutil.copytree(saved, tmp_path / "net.mlpackage")
    honest = (package / file).read_bytes()
    refused = 0
    with little(seconds=60, megabytes=128):
        for _ in range(120):
            content = bytearray(honest)
            kind = rng.randrange(4)
            if kind == 0:
                content = content[: rng.randrange(len(content))]
            elif kind == 1:
                at = rng.randrange(len(content))
                content[at:at] = rng.randbytes(rng.randrange(1, 40))
            else:
                for _ in range(rng.randrange(1, 20)):
                    content[rng.randrange(len(content))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            (package / file).write_bytes(content)
            try:
                read_functions(package)
            except ExportError:
                refused += 1
    assert refused > 5


@pytest.fixture(scope="module")
def several(saved, tmp_path_factory, coremltools):
    """The same network at two batch sizes, as two functions that share their weights, and one of other weights."""
    folder = tmp_path_factory.mktemp("functions")
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.Linear(64, 16)).eval() for _ in range(2))
    functions = coremltools.utils.MultiFunctionDescriptor()
    for name, net, batch in (("one", model, 1), ("four", model, 4), ("other", other, 1)):
        net[0].weight.data[:, ::2] = 0
        export = CoreMLExport(
            folder / f"{name}.mlpackage",
            torch.rand(batch, 64),
            minimum_deployment_target="iOS18",
            frontend="export",
        )
        functions.add_function(str(export.save(net).path), "main", name)
    functions.default_function_name = "four"
    with quiet():
        coremltools.utils.save_multifunction(functions, str(folder / "all.mlpackage"))
        gc.collect()  # its temporary folders
    return folder / "all.mlpackage"


def test_every_function_of_a_package_is_read(several):
    functions = read_functions(several)
    assert list(functions) == ["four", "one", "other"]
    assert [package.main.inputs[0][2] for package in functions.values()] == [(4, 64), (1, 64), (1, 64)]
    weights = [
        next(constant.values for constant in package.constants.values() if constant.values.shape == (16, 64))
        for package in functions.values()
    ]
    assert weights[0] is weights[1]
    assert not np.array_equal(weights[0], weights[2])
    assert read_package(several).main == functions["four"].main
    assert read_package(several, "one").main == functions["one"].main
    with pytest.raises(ExportError, match=r"has no function 'main'\. Its functions are: four, one, other\."):
        read_package(several, "main")


def test_weights_that_functions_share_are_inspected_once(several):
    found = inspect_file(several)
    assert [(tensor.shape, tensor.sparsity, tensor.stored) for tensor in found.tensors] == [
        ((16, 64), 0.5, "sparse")
    ] * 2
    assert len({tensor.name for tensor in found.tensors}) == 2
    assert found.notes == ("Has the functions four, one, other; a weight that several share is listed once.",)


@pytest.mark.parametrize("default", ["", "gone"])
def test_a_package_without_a_default_function_must_be_asked_for_one(default, several, tmp_path):
    from coremltools.proto import Model_pb2

    package = shutil.copytree(several, tmp_path / "net.mlpackage")
    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    spec.description.defaultFunctionName = default
    (package / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(ExportError, match=r"none is its default\. Say which|has no function 'gone'"):
        read_package(package)
    assert len(inspect_file(package).tensors) == 2
