import pytest
import torch
from coreml_nets import Small, prune
from torch import nn

from lightning_prune.masking.metadata import register_coreml_metadata


def test_the_buffers_are_those_that_core_ml_tools_writes(coremltools):
    from coremltools.optimize.torch._utils.metadata_utils import CompressionMetadata, register_metadata_version

    ours, theirs = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)) for _ in range(2))
    register_coreml_metadata(ours, {"0": "weight", "1": ["weight", "bias"]})
    register_metadata_version(theirs)
    for module, name in ((theirs[0], "weight"), (theirs[1], "weight"), (theirs[1], "bias")):
        CompressionMetadata(param_name=name, compression_type=["pruning"]).register(module)
    expected = dict(theirs.named_buffers())
    found = dict(ours.named_buffers())
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_registering_twice_changes_nothing():
    model = nn.Linear(2, 2)
    for _ in range(2):
        register_coreml_metadata(model, {"": "weight"})
    assert model.get_buffer("_COREML_/weight/compression_type").tolist() == [1]


def test_what_other_compression_has_registered_stays():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))  # as quantization fuses them
    model[0][0].register_buffer("_COREML_/weight/compression_type", torch.tensor([3]))
    for _ in range(2):
        register_coreml_metadata(model, {"0": "weight"})
    assert model.get_buffer("0.0._COREML_/weight/compression_type").tolist() == [1, 3]


def test_what_the_metadata_path_does_to_small_weights_is_as_documented(coremltools, tmp_path):
    """Core ML Tools zeroes |w| <= 2**-10 of a marked weight, which the export of this library does not."""
    import warnings

    from lightning_prune.export.coreml.export import CoreMLExport
    from lightning_prune.export.coreml.mil.program import read_package

    model = Small().eval()
    masks = prune(model)
    with torch.no_grad():
        model.fc.weight[0, :3] = torch.tensor([2.0**-10, 2.0**-9, 0.5])
        masks["fc.weight"][0, :3] = True
    ours = CoreMLExport(tmp_path / "ours.mlpackage", torch.rand(1, 3, 8, 8)).save(model, masks=masks)
    register_coreml_metadata(model, {"conv": "weight", "fc": "weight"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecation of tracing
        traced = torch.jit.trace(model, torch.rand(1, 3, 8, 8))
        package = coremltools.convert(
            traced,
            inputs=[coremltools.TensorType(shape=(1, 3, 8, 8))],
            minimum_deployment_target=coremltools.target.iOS17,
            skip_model_load=True,
        )
        package.save(str(tmp_path / "theirs.mlpackage"))

    def first_row(path):
        constants = read_package(path).constants.values()
        return next(c.values[0, :3].tolist() for c in constants if c.values.shape == (4, 16))

    assert first_row(ours.path) == [2.0**-10, 2.0**-9, 0.5]
    assert first_row(tmp_path / "theirs.mlpackage") == pytest.approx([0, 2.0**-9, 0.5])
    theirs = {op.type for op in read_package(tmp_path / "theirs.mlpackage").main.operations}
    assert "batch_norm" in theirs
