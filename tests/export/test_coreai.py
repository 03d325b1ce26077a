"""Core AI: what is written is sparse, and Apple's own runtime computes with it what the model computes."""

import asyncio
import hashlib
import itertools
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.analysis import inspect_file
from lightning_prune.errors import CheckpointError, ConfigError, ExportError
from lightning_prune.export.coreai import CoreAIExport, read_asset, read_foreign_asset
from lightning_prune.export.coreai import installed as installed_file
from lightning_prune.export.coreai.constants import refuse_larger
from lightning_prune.export.coreai.installed import numbers
from lightning_prune.export.coreai.silence import silence

needs_coreai = pytest.mark.usefixtures("coreai")


def pruned(model: nn.Module, sparsity: float = 0.75) -> nn.Module:
    """The model with the smallest of each weight's values zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                count = int(parameter.numel() * sparsity)
                parameter.masked_fill_(parameter.abs() <= parameter.abs().flatten().kthvalue(count).values, 0.0)
    return model.eval()


def seeded(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pruned(make())


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, out: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(out, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class Attention(nn.Module):
    """Weights that no layer of the usual kind holds: packed projections, a matrix used by a function, a tied one."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(32, 32))
        self.mixing = nn.Parameter(torch.randn(32, 6))
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.words(tokens)
        x = self.attention(x, x, x, need_weights=False)[0]
        logits = self.head(torch.einsum("bij,jk->bik", x, self.matrix))
        return {"logits": logits, "again": logits, "is_large": logits > 1, "mixed": self.mixing @ x}


NETS = {
    "convolutions and norms": (
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 32)),
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        ("0.weight", "4.weight"),
    ),
    "an LSTM of two directions": (
        lambda: Recurrent(nn.LSTM(32, 32, bidirectional=True, batch_first=True), 64),
        torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)),
        (
            "layer.weight_ih_l0",
            "layer.weight_hh_l0",
            "layer.weight_ih_l0_reverse",
            "layer.weight_hh_l0_reverse",
            "head.weight",
        ),
    ),
    "attention, tied and bare parameters": (
        Attention,
        torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(1)),
        ("matrix", "mixing", "words.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"),
    ),
}


@needs_coreai
@pytest.mark.parametrize("net", NETS)
def test_every_weight_is_sparse_in_the_file_and_its_own_runtime_gives_the_outputs(net, tmp_path, coreai):
    make, example, names = NETS[net]
    result = CoreAIExport(tmp_path / "net.aimodel", example).save(seeded(make))
    assert [(layer.name, layer.stored) for layer in result.layers] == [(name, "sparse") for name in names]
    assert result.not_checked == ()
    assert result.near_error < 2e-6
    assert result.format == "Core AI asset"
    asset = read_asset(coreai, result.path)
    assert asset.nbytes == result.package_bytes
    named = {name for row in asset.parameters.values() for name in row}
    assert named == set(names)
    model = seeded(make)
    by_name = {name: constant for constant in asset.sparse for name in asset.parameters[constant.fingerprint]}
    for name in names:
        weight = model.get_parameter(name)
        assert torch.equal(torch.from_numpy(by_name[name].mask), weight != 0)
        assert by_name[name].values == weight[weight != 0].detach().numpy().tobytes()


@needs_coreai
def test_a_weight_is_written_once_and_not_for_every_step_of_a_sequence(tmp_path):
    model = seeded(lambda: Recurrent(nn.LSTM(64, 64, batch_first=True), 64))
    result = CoreAIExport(tmp_path / "net.aimodel", torch.randn(8, 4, 64)).save(model)
    dense = sum(parameter.nbytes for parameter in model.parameters())
    assert result.dense_package_bytes < 1.25 * dense
    assert result.ratio > 2.6
    # a dense one is not copied either
    layer = nn.Linear(64, 64).eval()
    dense_result = CoreAIExport(tmp_path / "dense.aimodel", torch.randn(16, 8, 64)).save(layer)
    assert dense_result.package_bytes < 64 * 64 * 4 + 4_000
    assert dense_result.layers == ()


@needs_coreai
def test_averages_leave_the_padding_out(tmp_path):
    pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    assert CoreAIExport(tmp_path / "net.aimodel", torch.randn(1, 4, 8, 9)).save(pool).near_error < 1e-6


@needs_coreai
def test_float16_halves_the_file_between_float32_inputs_and_outputs(tmp_path):
    model, example = seeded(NETS["convolutions and norms"][0]), NETS["convolutions and norms"][1]
    full = CoreAIExport(tmp_path / "full.aimodel", example).save(model)
    half = CoreAIExport(tmp_path / "half.aimodel", example, compute_precision="float16").save(model)
    assert half.layers[0].nbytes < 0.6 * full.layers[0].nbytes
    assert 1e-5 < half.near_error < 5e-3


@needs_coreai
def test_the_file_names_no_file_of_the_users_machine_and_is_silent(tmp_path, capfd):
    result = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 8)).save(nn.Linear(8, 4))
    assert capfd.readouterr() == ("", "")
    for file in result.path.iterdir():
        assert b"site-packages" not in file.read_bytes()
        assert os.fsencode(tmp_path) not in file.read_bytes()


def test_silence_reaches_compiled_code_and_ends_with_an_error(capfd):
    def talk_and_fail():
        with silence():
            os.write(1, b"from below")
            sys.stderr.write("from Python")
            raise ValueError

    with pytest.raises(ValueError):
        talk_and_fail()
    os.write(1, b"heard ")
    sys.stdout.write("again")
    sys.stdout.flush()
    assert capfd.readouterr() == ("heard again", "")


@needs_coreai
def test_it_works_within_a_running_event_loop_as_in_a_notebook(tmp_path):
    async def cell():
        return CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 8)).save(nn.Linear(8, 4))

    assert asyncio.run(cell()).near_error < 1e-6


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) + self.calls


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


@needs_coreai
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Counting(), "its forward changes .*calls"),
        (Fourier(), "does not know these operations of the model: aten._fft_r2c"),
    ],
)
def test_what_cannot_be_written_is_refused_plainly_and_the_old_file_stays(model, message, tmp_path):
    export = CoreAIExport(tmp_path / "net.aimodel", torch.randn(2, 4))
    export.save(nn.Linear(4, 4))
    before = {file.name: file.read_bytes() for file in (tmp_path / "net.aimodel").iterdir()}
    with pytest.raises(ExportError, match=message):
        export.save(model)
    assert {file.name: file.read_bytes() for file in (tmp_path / "net.aimodel").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.aimodel"]


class Remembering(nn.Module):
    """Computes with a number that was read out of the example."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return x * x.mean()
        return x * 0.5


@needs_coreai
def test_a_file_that_computes_something_else_is_not_kept(tmp_path):
    with pytest.raises(ExportError, match="The asset computes something else than the model"):
        CoreAIExport(tmp_path / "net.aimodel", torch.ones(2, 4)).save(Remembering())
    assert list(tmp_path.iterdir()) == []


@needs_coreai
def test_a_run_that_takes_long_is_made_twice(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(0, 100).__next__)
    monkeypatch.setattr("lightning_prune.export.proof.time", clock)  # a run takes 100 seconds
    result = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 8)).save(nn.Linear(8, 4))
    assert any("2 of 5 fresh inputs were run" in note for note in result.notes)
    assert None not in (result.near_error, result.far_error)


@needs_coreai
def test_all_runs_may_take_as_long_as_making_the_file_took(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_prune.export.coreai.export.PATIENCE", 0.0)
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 1e-4).__next__)
    monkeypatch.setattr("lightning_prune.export.proof.time", clock)  # a run takes a tenth of a millisecond
    result = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 8)).save(nn.Linear(8, 4))
    assert not any("fresh inputs were run" in note for note in result.notes)


@needs_coreai
def test_names_and_part_are_the_users(tmp_path, coreai):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    export = CoreAIExport(
        tmp_path / "net.aimodel", torch.zeros(1, 4), input_names=["pixels"], output_names=["scores"], submodule="1"
    )
    result = export.save(model)
    summary = coreai.authoring.AIModelAsset.load(result.path).summary()
    assert [name for name, _ in summary.function_inputs("main")] == ["pixels"]
    assert [name for name, _ in summary.function_outputs("main")] == ["scores"]
    with pytest.raises(ConfigError, match="export.input_names must have one item for each of the 1 tensors"):
        CoreAIExport(tmp_path / "a.aimodel", torch.zeros(1, 4), input_names=["a", "b"]).check(model)


@needs_coreai
def test_masks_decide_what_is_stored_as_zero(tmp_path, coreai):
    model = nn.Linear(32, 32)
    keep = torch.ones(32, 32, dtype=torch.bool)
    keep[:16] = False
    with torch.no_grad():
        model.weight.masked_fill_(~keep, 0.0)
        model.weight[31, 31] = 0.0  # zero by chance, and kept
    result = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(model, masks={"weight": keep})
    assert result.layers[0].zeros == 512
    (constant,) = read_asset(coreai, result.path).sparse
    assert torch.equal(torch.from_numpy(constant.mask), keep)
    with pytest.raises(ExportError, match="prunes 511 values that are not zero"):
        CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(model, masks={"weight": ~keep})


@needs_coreai
def test_inspect_lists_the_weights_by_name_and_as_they_are_stored(tmp_path):
    model = seeded(lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16)))
    with torch.no_grad():
        model[1].weight.normal_()
    CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(model)
    found = inspect_file(tmp_path / "net.aimodel")
    assert [(row.name, row.stored, row.zeros, row.shape) for row in found.tensors] == [
        ("0.weight", "sparse", 768, (32, 32)),
        ("dense_1", "dense", 0, (16, 32)),
    ]
    assert (found.kind, found.others) == ("Core AI asset", 48)
    (tmp_path / "net.aimodel" / "main.mlirb").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read as a Core AI asset"):
        inspect_file(tmp_path / "net.aimodel")


@needs_coreai
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda program: b"damaged", id="no program"),
        pytest.param(lambda program: program[: len(program) // 2], id="half of it"),
        pytest.param(lambda program: program[:40] + bytes(40) + program[80:], id="zeros in its head"),
        pytest.param(lambda program: program[:-200] + bytes(range(200)), id="other bytes at its end"),
    ],
)
def test_a_damaged_file_with_the_right_hash_does_not_end_the_process_that_inspects_it(tmp_path, spoil):
    path = tmp_path / "net.aimodel"
    CoreAIExport(path, torch.zeros(1, 32)).save(seeded(lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16))))
    program = spoil((path / "main.mlirb").read_bytes())
    (path / "main.mlirb").write_bytes(program)
    (path / "main.hash").write_bytes(hashlib.sha256(program).digest())
    with pytest.raises(CheckpointError, match="cannot be read as a Core AI asset: .+"):
        inspect_file(path)


@needs_coreai
def test_what_a_process_of_its_own_reads_of_a_file_is_what_is_read_here(tmp_path, coreai):
    model = seeded(lambda: nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 16)))
    path = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 3, dtype=torch.long)).save(model).path
    here, there = read_asset(coreai, path), read_foreign_asset(path)
    assert [(one.fingerprint, one.dtype, one.nbytes) for one in here.sparse] == [
        (one.fingerprint, one.dtype, one.nbytes) for one in there.sparse
    ]
    assert len(here.sparse) == 3
    for one, other in zip(here.dense, there.dense, strict=True):
        assert (one.dtype, one.nbytes) == (other.dtype, other.nbytes)
        assert (one.is_zero is None and other.is_zero is None) or (one.is_zero == other.is_zero).all()
    assert (here.parameters, here.nbytes) == (there.parameters, there.nbytes)


@needs_coreai
def test_a_file_that_takes_too_long_to_be_read_is_given_up(tmp_path, monkeypatch):
    path = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(seeded(lambda: nn.Linear(32, 32))).path
    monkeypatch.setattr("lightning_prune.export.coreai.asset.PATIENCE", 0.01)
    with pytest.raises(CheckpointError, match="reading it took more than 0 seconds"):
        inspect_file(path)


def test_constants_larger_than_a_file_can_hold_are_refused_before_memory_is_taken():
    kind = SimpleNamespace(shape=[2**20, 2**20], element_type=SimpleNamespace(width=32))
    constant = SimpleNamespace(result=SimpleNamespace(type=kind))
    with pytest.raises(ValueError, match="would take 4,398,046,511,104 bytes"):
        refuse_larger([constant], 2**30)
    refuse_larger([constant], 2**43)


@needs_coreai
def test_a_weight_that_is_not_in_the_file_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_prune.export.coreai.weights.weight_fingerprint", lambda weight: "another")
    with pytest.raises(ExportError, match="does not hold the pruned weights: weight must be stored as bit mask"):
        CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(seeded(lambda: nn.Linear(32, 32)))


@needs_coreai
def test_constants_that_cannot_be_read_are_said_not_to_be_checked(tmp_path, monkeypatch):
    def fail(core, path):
        raise AttributeError("no such reader")

    monkeypatch.setattr("lightning_prune.export.coreai.export.read_asset", fail)
    result = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 32)).save(seeded(lambda: nn.Linear(32, 32)))
    assert result.not_checked == (
        "the zeros of the stored weights: this version of coreai-core does not let them be read (no such reader)",
    )
    assert result.near_error < 1e-6


def test_a_missing_or_old_converter_and_an_old_python_are_said_before_training(monkeypatch, tmp_path):
    export = CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 4))
    monkeypatch.setitem(sys.modules, "coreai_torch", None)
    if sys.version_info >= (3, 11):
        with pytest.raises(ExportError, match=r'pip install "lightning-prune\[coreai\]"'):
            export.check(nn.Linear(4, 4))
    monkeypatch.setattr(installed_file, "OLDEST_PYTHON", (9, 0))
    with pytest.raises(ExportError, match="needs Python 9.0 or newer"):
        export.check(nn.Linear(4, 4))
    assert numbers("0.4.3.dev1") == (0, 4, 3)


def test_what_lies_at_the_path_and_is_no_such_file_is_never_replaced(tmp_path, coreai):
    (tmp_path / "net.aimodel").mkdir()
    with pytest.raises(ConfigError, match="must be free or hold a Core AI asset"):
        CoreAIExport(tmp_path / "net.aimodel", torch.zeros(1, 4)).check(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"must end in .aimodel, got 'net.mlpackage'. Write 'net.aimodel'"):
        CoreAIExport("net.mlpackage")


def test_metadata_of_another_writer_is_no_names(tmp_path):
    from lightning_prune.export.coreai.asset import written_names

    for content in ("", "[]", "{}", json.dumps({"creatorDefinedMetadata": {"lightning_prune": {"parameters": [1]}}})):
        (tmp_path / "metadata.json").write_text(content)
        assert written_names(tmp_path) == {}
