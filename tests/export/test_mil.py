"""The reader of packages, against files put together by hand and against Core ML Tools' own reader."""

import math
import struct

import numpy as np
import pytest
import torch
from coreml_nets import ResNet, Small, prune
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.errors import ExportError
from lightning_prune.export.coreml.export import CoreMLExport
from lightning_prune.export.coreml.mil.program import read_package, walk
from lightning_prune.export.coreml.mil.values import (
    Stored,
    blob_nbytes,
    decode,
    look_up,
    repeat_to,
    scatter,
    shift_scale,
    unfold,
    unpack_bits,
)

pytest.importorskip("coremltools")
FP16, INT4, UINT3 = 10, 25, 39


def pack(values, bits):
    """Numbers as consecutive bits, lowest first: written here bit by bit."""
    row = [value >> bit & 1 for value in values for bit in range(bits)]
    row += [0] * (-len(row) % 8)
    return bytes(sum(row[at + bit] << bit for bit in range(8)) for at in range(0, len(row), 8))


@given(st.integers(1, 7), st.lists(st.integers(0, 127), max_size=40))
def test_numbers_of_few_bits_are_unpacked(bits, values):
    values = [value % 2**bits for value in values]
    assert unpack_bits(pack(values, bits), bits, len(values), signed=False).tolist() == values
    signed = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in values]
    assert unpack_bits(pack(values, bits), bits, len(values), signed=True).tolist() == signed


def test_values_are_decoded_by_their_type():
    assert decode(struct.pack("<3e", 1, -2, 0.5), FP16, (3,)).tolist() == [1, -2, 0.5]
    assert decode(bytes([0xF1, 0x08]), INT4, (3,)).tolist() == [1, -1, -8]
    assert decode(pack([7, 0, 5, 1], 3), UINT3, (2, 2)).tolist() == [[7, 0], [5, 1]]


@pytest.mark.parametrize(
    ("elements", "bits", "nbytes"), [(0, 16, 64), (1, 16, 128), (32, 16, 128), (33, 16, 192), (9, 1, 128)]
)
def test_an_array_takes_a_record_and_whole_lines_of_64_bytes(elements, bits, nbytes):
    assert blob_nbytes(elements, bits) == nbytes


def stored(**arrays):
    return {key: Stored(np.asarray(value), "", 0) for key, value in arrays.items()}


def test_sparse_weights_are_unfolded_in_both_styles():
    nonzero, mask = np.array([1, 2, 3], np.float16), [0, 1, 1, 0, 0, 1]
    old = stored(nonzero_data=nonzero, mask=np.frombuffer(pack(mask, 1), np.uint8), shape=np.array([2, 3], np.uint32))
    new = stored(nonzero_data=nonzero, mask=np.array(mask, np.uint8).reshape(2, 3))
    for parts in (old, new):
        assert unfold("constexpr_sparse_to_dense", parts, (2, 3))[0].tolist() == [[0, 1, 2], [0, 0, 3]]


def test_quantized_weights_are_unfolded_in_every_style():
    old = stored(
        quantized_data=np.array([[10, 20], [30, 40]], np.uint8),
        scale=np.array([0.5, 2], np.float16),
        zero_point=np.array([10, 20], np.uint8),
        axis=np.int32(0),
    )
    assert unfold("constexpr_affine_dequantize", old, (2, 2))[0].tolist() == [[0, 5], [20, 40]]
    data, scale = np.array([[-2, 3, 4, 1]], np.int8), np.array([[0.5, 2]], np.float16)
    new = stored(data=data, scale=scale, offset=np.array([[1, 0]], np.int8))
    assert unfold("constexpr_blockwise_shift_scale", new, (1, 4))[0].tolist() == [[-1.5, 1, 8, 2]]
    sparse = stored(data_mask=np.array([[1, 0, 0, 1]], np.uint8), nonzero_data=np.array([-2, 1], np.int8), scale=scale)
    mask, values = unfold("constexpr_sparse_blockwise_shift_scale", sparse, (2,))
    assert (mask.tolist(), values.tolist()) == ([[1, 0, 0, 1]], [-1, 2])


def test_palettized_weights_are_unfolded_in_every_style():
    lut = np.array([0.0, 1, 4, 9], np.float16)
    packed = np.frombuffer(pack([3, 0, 2, 1], 2), np.uint8)
    old = stored(indices=packed, lut=lut, shape=np.array([2, 2], np.uint32))
    assert unfold("constexpr_lut_to_dense", old, (2, 2))[0].tolist() == [[9, 0], [4, 1]]
    grouped = np.array([[[[0], [1]]], [[[5], [6]]]], np.float16)  # one table for each of two rows
    new = stored(indices=np.array([[0, 1], [1, 0]], np.uint8), lut=grouped)
    assert unfold("constexpr_lut_to_dense", new, (2, 2))[0].tolist() == [[0, 1], [6, 5]]
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    sparse = stored(indices_mask=mask, indices_nonzero_data=np.array([1, 0], np.uint8), lut=grouped)
    assert unfold("constexpr_lut_to_sparse", sparse, (2,))[1].tolist() == [1, 5]


def test_a_stored_type_is_cast():
    parts = stored(source_val=np.array([1, 2], np.float16), output_dtype=np.array("fp32", object))
    assert unfold("constexpr_cast", parts, (2,))[0].dtype == np.float32


def test_an_encoding_that_is_not_known_is_an_error():
    with pytest.raises(ExportError, match="constexpr_magic, which cannot be read back"):
        unfold("constexpr_magic", {}, ())
    with pytest.raises(ExportError, match="palettized in vectors"):
        look_up(np.zeros((2, 2), np.uint8), np.zeros((1, 1, 4, 2)), None)


def test_blocks_are_repeated_and_scattered():
    assert repeat_to(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert scatter(np.array([5.0]), np.array([[0, 1]])).tolist() == [[0, 5]]
    assert shift_scale(np.array([2], np.int8), np.array([0.5], np.float16), None).tolist() == [1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = ResNet()
    masks = prune(model)
    folder = tmp_path_factory.mktemp("packages")
    x = torch.rand(1, 3, 32, 32)
    paths = {"sparse": CoreMLExport(folder / "sparse.mlpackage", x).save(model, masks=masks).path}
    for kind in ("int8", "int4", "palette4", "palette3"):
        export = CoreMLExport(
            folder / f"{kind}.mlpackage", x, compression=kind, minimum_deployment_target="iOS18", frontend="trace"
        )
        paths[kind] = export.save(model, masks=masks).path
    return paths


@pytest.mark.parametrize("kind", ["sparse", "int8", "int4", "palette4", "palette3"])
def test_every_weight_is_read_as_core_ml_tools_reads_it(kind, saved, coremltools):
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(saved[kind]))
    weights = str(saved[kind] / "Data/com.apple.CoreML/weights")
    program = load(spec, spec.specificationVersion, file_weights_dir=weights)
    compared = 0
    ours = read_package(saved[kind])
    for operation in program.functions["main"].operations:
        if not operation.op_type.startswith("constexpr_sparse_to_dense"):
            continue
        expected = operation.materialized_val_inference()
        found = ours.constants[operation.outputs[0].name]
        assert found.sparse
        np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-7)
        compared += 1
    assert compared == 10


def test_files_inputs_and_uses_are_known(saved):
    package = read_package(saved["sparse"])
    assert package.nbytes == sum(path.stat().st_size for path in saved["sparse"].rglob("*") if path.is_file())
    assert package.main.inputs == (("x", "fp32", (1, 3, 32, 32)),)
    assert package.specification_version == 7
    convs = [operation for operation in walk(package.main) if operation.type == "conv"]
    assert len(convs) == 9
    for conv in convs:
        name = conv.inputs["weight"][0]
        assert (conv, "weight") in package.uses[name]
        assert package.constants[name].encoding == "sparse"
        assert package.constants[name].nbytes < package.constants[name].dense_nbytes


def test_a_damaged_weight_file_is_an_error(tmp_path):
    path = tmp_path / "net.mlpackage"
    model = Small()
    CoreMLExport(path, torch.rand(1, 3, 8, 8)).save(model, masks=prune(model))
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[64:68] = b"\0\0\0\0"
    weights.write_bytes(content)
    with pytest.raises(ExportError, match=r"weight\.bin is damaged: no whole record at byte 64"):
        read_package(path)
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match="is damaged"):
        read_package(path)


def test_a_neural_network_of_the_old_kind_is_refused(tmp_path, coremltools):
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    builder = NeuralNetworkBuilder([("x", datatypes.Array(2))], [("y", datatypes.Array(2))])
    builder.add_activation("relu", "RELU", "x", "y")
    path = tmp_path / "old.mlmodel"
    coremltools.utils.save_spec(builder.spec, str(path))
    with pytest.raises(ExportError, match="holds a neuralNetwork, not an ML program"):
        read_package(path)


def test_the_mask_of_a_sparse_weight_costs_a_bit_per_weight(saved):
    package = read_package(saved["sparse"])
    for constant in package.constants.values():
        if constant.sparse and constant.values.size > 512:
            nonzero = np.count_nonzero(constant.values)
            expected = blob_nbytes(nonzero, 16) + 64 + math.ceil(constant.values.size / 8)
            assert constant.nbytes == pytest.approx(expected, abs=128)
