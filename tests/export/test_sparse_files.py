"""A sparse file gives back every bit, is as small as it can be, and one that is damaged or hostile is refused."""

import json
import sys
import tracemalloc
import zlib

import pytest
import torch
from torch import nn

import lightning_prune
from lightning_prune.errors import CheckpointError, ConfigError, ExportError
from lightning_prune.export.sparse import load_sparse, read_sparse, save_sparse
from lightning_prune.export.sparse.manifest import DTYPES

safetensors = pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402 - after the skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def pruned(*shape, sparsity=0.75, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight.where(torch.rand(shape, generator=generator) >= sparsity, 0)


def bits(tensor):
    if tensor.dtype == torch.bool:
        return tensor.contiguous().flatten().to(torch.uint8)
    return tensor.contiguous().flatten().view(torch.uint8)


def check_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bits(found[name]).equal(bits(tensor)), name


def forms(path):
    return {name: getattr(value, "form", value) for name, value in read_sparse(path).entries.items()}


@pytest.mark.parametrize("sparsity", [0, 0.75, 0.97])
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_bit_of_every_type_comes_back(path, name, sparsity):
    generator = torch.Generator().manual_seed(1)
    size = DTYPES[name].itemsize
    raw = torch.randint(0, 2 if name == "bool" else 256, (40 * 16, size), generator=generator, dtype=torch.uint8)
    raw[torch.rand(640, generator=generator) < sparsity] = 0  # the others: infinities, numbers of every kind of NaN
    raw[5] = 0
    raw[5, -1] = 0 if name == "bool" else 128  # -0.0
    state = {
        "a": raw.view(DTYPES[name]).reshape(40, 16),
        "b": raw[:size].flatten()[:size].view(DTYPES[name]).reshape(()),
    }
    save_sparse(state, path)
    check_same(load_sparse(path), state)


def test_small_odd_and_empty_tensors_come_back_in_their_order(path):
    state = {
        "z": torch.zeros(0, 3),
        "b:values": torch.ones(2),
        "__metadata__": torch.tensor(3),
        "": torch.tensor([-0.0]),
        "b": pruned(64, 64),
        "b:bitmask": torch.zeros(100, 100, dtype=torch.bool),
        "ä\n'": torch.zeros(5, 0, 7, dtype=torch.int8),
    }
    save_sparse(state, path)
    check_same(load_sparse(path), state)
    save_sparse({}, path)
    assert load_sparse(path) == {}


def test_strides_come_back_where_a_tensor_fills_its_memory(path):
    weight = pruned(64, 32, 3, 3)
    state = {
        "channels_last": weight.to(memory_format=torch.channels_last),
        "turned": pruned(64, 32).t(),
        "dense": torch.randn(4, 5, 6).permute(2, 0, 1),
        "one": torch.randn(4, 4).as_strided((1, 4), (9, 1)),
        "complex": torch.complex(weight[0], weight[1]).to(torch.complex128).transpose(0, 2),
    }
    save_sparse(state, path)
    found = load_sparse(path)
    check_same(found, state)
    assert {name: tensor.stride() for name, tensor in found.items()} == {
        name: value.stride() for name, value in state.items()
    }
    save_sparse({"gaps": weight.clone()[:, ::2], "repeated": weight[:1].expand(4, 32, 3, 3)}, path)
    found = load_sparse(path)
    check_same(found, {"gaps": weight[:, ::2], "repeated": weight[:1].expand(4, 32, 3, 3)})
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_conjugate_and_negative_views_are_stored_as_they_read(path):
    tensor = torch.complex(pruned(64), pruned(64, seed=1))
    state = {"conj": tensor.conj(), "neg": tensor.conj().imag}
    save_sparse(state, path)
    check_same(load_sparse(path), {name: value.resolve_conj().resolve_neg().clone() for name, value in state.items()})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.turned = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.encoder.weight.copy_(pruned(64, 64))
        self.decoder.weight = self.encoder.weight
        self.turned.weight = nn.Parameter(self.encoder.weight.detach().t())
        self.norm = nn.BatchNorm1d(64)
        self.lstm = nn.LSTM(8, 8)


def test_tied_tensors_are_stored_once_and_tied_again(path):
    model = Tied()
    save_sparse(model, path)
    assert [type(form).__name__ for form in forms(path).values()].count("View") == 2
    found = load_sparse(path)
    check_same(found, model.state_dict())
    assert found["decoder.weight"].data_ptr() == found["encoder.weight"].data_ptr()
    found["decoder.weight"][3, 5] = 7
    assert found["encoder.weight"][3, 5] == 7 == found["turned.weight"][5, 3]
    assert (
        sum(tensor.untyped_storage().nbytes() for tensor in found.values())
        < 2.5 * path.stat().st_size + 3 * 64 * 64 * 4
    )
    save_sparse(found, path)  # and so once more
    check_same(load_sparse(path), found)


def test_a_model_loads_strictly_and_a_compiled_one_by_plain_names(path):
    model, other = Tied(), Tied()
    save_sparse(torch.compile(model, backend="eager"), path)
    load_sparse(path, into=torch.compile(other, backend="eager"))
    check_same(other.state_dict(), model.state_dict())
    assert other.decoder.weight is other.encoder.weight
    with pytest.raises(CheckpointError, match="does not fit Linear: .*Unexpected key"):
        load_sparse(path, into=nn.Linear(64, 64))
    assert len(load_sparse(path, into=nn.Linear(64, 64), strict=False)) == len(model.state_dict())


def test_three_quarters_of_zeros_make_it_3_4_times_smaller(path):
    state = {f"{index}.weight": pruned(256, 256, seed=index) for index in range(3)} | {"bias": torch.randn(256)}
    save_sparse(state, path)
    dense = path.with_name("dense.safetensors")
    save_file(state, dense)
    assert dense.stat().st_size >= 3.4 * path.stat().st_size


def test_signs_of_zeros_come_back_and_cost_a_bit_each(path):
    mask = pruned(256, 256) != 0
    state = {
        "w": torch.randn(256, 256) * mask,
        "half": torch.randn(64, 64).half() * mask[:64, :64],
        "few": torch.ones(500),
    }
    assert torch.signbit(state["w"][~mask]).any()
    state["few"][3] = -0.0
    save_sparse(state, path)
    assert sum(value.nbytes for value in state.values()) > 3 * path.stat().st_size
    entries = read_sparse(path).entries
    assert {name: value.has_signs for name, value in entries.items()} == {"w": True, "half": True, "few": False}
    check_same(load_sparse(path), state)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="crc32"):
        load_sparse(path)


def test_n_m_is_stored_as_values_and_positions(path):
    weight = torch.randn(64, 64, 3)
    groups = weight.view(64, 16, 4, 3)
    groups.scatter_(2, groups.abs().topk(2, dim=2, largest=False).indices, 0)
    save_sparse({"weight": weight, "last": weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)}, path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.get_tensor("weight:values").shape == (64, 3, 32)
        assert file.get_tensor("weight:positions").numel() == 64 * 64 * 3 // 8
        rows = json.loads(file.metadata()["tensors"])
    assert rows["weight"].items() >= {"form": "n_m", "num_zeros": 2, "group_size": 4, "dim": 1}.items()
    check_same(load_sparse(path), {"weight": weight, "last": weight})


def test_what_a_file_is_stands_in_its_metadata_and_what_is_dense_reads_as_ever(path):
    state = {"weight": pruned(64, 64), "bias": torch.randn(64, dtype=torch.float64)}
    save_sparse(state, path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "lightning_prune.sparse"
        assert file.metadata()["format_version"] == "1"
        assert json.loads(file.metadata()["tensors"])["weight"]["form"] == "bitmask"
        assert set(file.keys()) == {"weight:bitmask", "weight:values", "bias"}
        assert file.get_tensor("bias").equal(state["bias"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_extra_state": {"a": 1}}, "'_extra_state' is {'a': 1}"),
        ({3: torch.ones(2)}, "holds tensors by name, but 3 is"),
        ({"a": torch.eye(3).to_sparse()}, "'a' must be a plain tensor"),
        ({"a": torch.ones(3, device="meta")}, "on meta"),
        ({"\ud800": torch.ones(3)}, "cannot be written"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(path, state, message):
    with pytest.raises(ExportError, match=message):
        save_sparse(state, path)
    assert list(path.parent.iterdir()) == []


def test_only_another_sparse_file_is_replaced(path):
    save_sparse({"a": torch.ones(2)}, path)
    mode = path.stat().st_mode
    path.with_name("usual").touch()
    assert mode == path.with_name("usual").stat().st_mode
    save_sparse({"b": torch.ones(2)}, path)
    assert list(load_sparse(path)) == ["b"]
    with pytest.raises(ConfigError, match="overwrite=False"):
        save_sparse({"c": torch.ones(2)}, path, overwrite=False)
    link = path.with_name("link.safetensors")
    link.symlink_to(path)
    dense = path.with_name("dense.safetensors")
    save_file({"a": torch.ones(2)}, dense)
    (path.with_name("text.safetensors")).write_text("a text")
    (path.with_name("folder.safetensors")).mkdir()
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    for name in ("link", "dense", "text", "folder"):
        with pytest.raises(ConfigError, match="is something else"):
            save_sparse({"c": torch.ones(2)}, path.with_name(f"{name}.safetensors"))
    assert before == {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    with pytest.raises(CheckpointError, match=r"another one of safetensors.*load_file"):
        load_sparse(dense)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_sparse(path.with_name("none.safetensors"))
    with pytest.raises(CheckpointError, match="is no file"):
        load_sparse(path.parent)
    with pytest.raises(ConfigError, match="a module or a state dict"):
        save_sparse([torch.ones(2)], path)


def test_without_the_package_the_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: save_sparse({}, path), lambda: load_sparse(path)):
        with pytest.raises(ImportError, match="pip install safetensors"):
            call()


def test_a_file_with_any_one_byte_changed_is_refused_or_gives_the_same(path):
    state = {
        "w": pruned(16, 16),
        "v": torch.tensor([[1.0, 0, 0, 0]] * 20),
        "i": torch.zeros(900),
        "b": torch.randn(3).double(),
    }
    state["i"][7] = 1
    state["tied"] = state["w"]
    save_sparse(state, path)
    assert {str(form) for form in forms(path).values()} >= {"Bitmask()", "Indices()", "Dense()"}
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found = load_sparse(path)
        except CheckpointError:
            refused += 1
        else:
            check_same(found, state)
    assert refused > 0.95 * len(whole) / 5
    for end in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            load_sparse(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        load_sparse(path)


def crc(*parts):
    value = 0
    for part in parts:
        value = zlib.crc32(part.flatten().view(torch.uint8).numpy(), value)
    return value


def forge(path, rows, parts, **metadata):
    """A file whose checksums are right."""
    tensors = rows if isinstance(rows, str) else json.dumps(rows)
    crc32 = str(zlib.crc32(f"{tensors}\0{metadata.get('checkpoint', '')}".encode()))
    known = {"format": "lightning_prune.sparse", "format_version": "1", "tensors": tensors, "crc32": crc32}
    save_file(parts, path, {**known, **metadata})


EMPTY, BYTE = torch.zeros(0), torch.zeros(1, dtype=torch.uint8)
ROW = {"form": "dense", "dtype": "float32", "shape": [0], "crc32": 0}
BITS = {"w:bitmask": BYTE, "w:values": EMPTY}
PLACES = {"w:counts": torch.zeros(1, dtype=torch.int16), "w:offsets": BYTE[:0], "w:values": EMPTY}


@pytest.mark.parametrize(
    ("rows", "parts", "message"),
    [
        ({"w": {**ROW, "form": "bitmask", "shape": [10**12], "crc32": crc(BYTE, EMPTY)}}, BITS, "must be 125,000,000,000, but are 1"),
        ({"w": {**ROW, "form": "indices", "shape": [10**12], "crc32": crc(PLACES["w:counts"])}}, PLACES, "must be 3,906,250,000, but are 1"),
        ({"w": {**ROW, "form": "n_m", "shape": [10**12], "num_zeros": 2, "group_size": 4, "dim": 0}}, {"w:positions": BYTE[:0], "w:values": EMPTY}, "must be 500,000,000,000, but are 0"),
        ({"w": {**ROW, "shape": [10**12]}}, {"w": EMPTY}, "must be 1,000,000,000,000, but are 0"),
        ({"w": {**ROW, "shape": [0, 2**60]}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "shape": [2**30, 2**30, 0]}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "shape": [1] * 100}}, {"w": torch.ones(1)}, "must be described by"),
        ({"w": {**ROW, "shape": [-1]}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "shape": [True]}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "dtype": "object"}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "form": "pickle"}}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "form": ["dense"]}}, {"w": EMPTY}, "must be described by"),
        ({"w": []}, {"w": EMPTY}, "must be described by"),
        ({"w": {**ROW, "dtype": "float64"}}, {"w": EMPTY}, "must be of torch.float64"),
        ({"w": {**ROW, "dtype": "complex128", "shape": [1]}}, {"w:dense": BYTE}, "whole numbers of complex128"),
        ({"w": {**ROW, "shape": [2, 2], "stride": [0, 1]}}, {"w:dense": torch.ones(4)}, "must fill its memory"),
        ({"w": {**ROW, "shape": [2], "stride": [1, 1]}}, {"w:dense": torch.ones(2)}, "must fill its memory"),
        ({"w": {**ROW, "shape": [4], "form": "n_m", "num_zeros": 2, "group_size": 4, "dim": 1}}, {}, "must be described by"),
        ({"w": {**ROW, "signs": True, "crc32": crc(BYTE)}}, {"w:dense": EMPTY, "w:signs": BYTE}, "one bit for each of its 0 zeros"),
        ({"w": ROW}, {"v": EMPTY}, "must hold all that it says and nothing else, but not v, w"),
        ({"w": ROW}, {"w": EMPTY, "w:values": EMPTY}, "but not w:values"),
        ({"w": {**ROW, "shape": [2]}}, {"w": torch.ones(2)}, "crc32 of its bytes"),
        ({"v": {"form": "view", "of": "v", "shape": [1], "stride": [1], "offset": 0}}, {}, "must lie within"),
        ({"v": {"form": "view", "of": "w", "shape": [10**12], "stride": [0], "offset": 0}, "w": {**ROW, "shape": [2]}}, {"w": torch.ones(2)}, "must lie within"),
        ({"v": {"form": "view", "of": "w", "shape": [2], "stride": [1], "offset": 1}, "w": {**ROW, "shape": [2]}}, {"w": torch.ones(2)}, "must lie within"),
        ({"v": {"form": "view", "of": "w", "shape": [2], "stride": [], "offset": 0}, "w": {**ROW, "shape": [2]}}, {"w": torch.ones(2)}, "must lie within"),
        ("[" * 100_000, {}, "must be JSON"),
        ("[]", {}, "a JSON object"),
        ('{"w": ' + "9" * 10_000 + "}", {}, "must be"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_before_memory_is_taken(path, rows, parts, message):
    forge(path, rows, parts)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            load_sparse(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_newer_version_and_a_wrong_checkpoint_are_refused(path):
    for metadata, message in (
        ({"format_version": "2"}, "a newer version of lightning-prune"),
        ({"checkpoint": "[]"}, "JSON object"),
        ({"crc32": "1"}, "crc32 of what it says"),
    ):
        forge(path, {}, {}, **metadata)
        with pytest.raises(CheckpointError, match=message):
            load_sparse(path)


def test_both_functions_are_imported_from_the_package_when_they_are_used():
    assert lightning_prune.save_sparse is save_sparse
    assert lightning_prune.load_sparse is load_sparse
