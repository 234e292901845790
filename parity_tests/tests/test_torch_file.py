"""PyTorch checkpoints, compared with torch; damaged and hostile files give a one-line error."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weights_convert.errors import MismatchError, SourceError
from weights_convert.formats import torch_pickle
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.torch_file import (
    TorchReader,
    looks_like_torch_stream,
    open_torch,
    torch_zip_stem,
    write_torch,
)

torch = pytest.importorskip("torch")

FORMS = {"zip": True, "stream": False}
TYPED = [name for name, prefix, _ in torch_pickle.TYPES if prefix]
UNTYPED = [name for name, prefix, _ in torch_pickle.TYPES if not prefix]


@pytest.fixture(params=FORMS)
def save(request, tmp_path):
    """`save(object) -> path`, in the zip form and in the stream form."""

    def save(value: object) -> Path:
        path = tmp_path / f"{request.param}.pth"
        torch.save(value, path, _use_new_zipfile_serialization=FORMS[request.param])
        return path

    return save


def coded(*shape: int, dtype: str = "float32") -> torch.Tensor:
    """A tensor whose elements encode their position, as far as the dtype can count."""
    numbers = torch.arange(int(np.prod(shape))) % (2 if dtype == "bool" else 100)
    return numbers.to(torch.float32).to(getattr(torch, dtype)).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return (
        tensor.detach()
        .clone(memory_format=torch.contiguous_format)
        .flatten()
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def assert_same(path: Path, expected: dict[str, torch.Tensor], key: str | None = None) -> None:
    with open_torch(path, key) as reader:
        assert list(reader.tensors) == list(expected)
        for name, tensor in expected.items():
            array = reader.read(name)
            assert reader.tensors[name] == (array.shape, array.dtype) == (tuple(tensor.shape), array.dtype), (
                name
            )
            assert str(tensor.dtype) == f"torch.{array.dtype}", name
            assert array.flags.c_contiguous, name
            assert array.flags.writeable, name
            assert array.dtype.isnative, name
            assert array.tobytes() == bits(tensor), name


def seen(path: Path) -> TorchReader:
    """A reader of the file, closed again."""
    with open_torch(path) as reader:
        return reader


def error_of(path: Path, key: str | None = None) -> str:
    """The one-line error for the file, which begins with the path."""
    with pytest.raises(SourceError) as caught:
        open_torch(path, key)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    return str(caught.value).removeprefix(f"{path}: ")


class Call:
    """Pickles as a call of any function by its name, via `__reduce__`."""

    def __init__(self, *reduced: object):
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


class Reference(tuple):
    """Pickles as a persistent id."""


def pickled(value: object, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return tuple(value) if isinstance(value, Reference) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


def storage(key: str, numel: int, *view: object) -> Reference:
    return Reference(("storage", torch.FloatStorage, key, "cpu", numel, *view))


def placed(storage: Reference, offset: int, size: tuple, stride: tuple) -> Call:
    hooks = collections.OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, hooks))


def zip_file(path: Path, root: object, storages: dict[str, bytes], stem: str = "x", **entries: bytes) -> Path:
    """A zip written without torch; `root` is an object or a pickle."""
    data = {f"data/{key}": value for key, value in storages.items()} | entries
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{stem}/data.pkl", root if isinstance(root, bytes) else pickled(root))
        for name, value in data.items():
            file.writestr(f"{stem}/{name}", value)
    return path


def stream_file(path: Path, root: object, storages: dict[str, np.ndarray]) -> Path:
    heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, root, list(storages)]
    bodies = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join([*map(pickled, heads), *bodies]))
    return path


# --- Reading what torch writes


@pytest.mark.parametrize("dtype", TYPED + UNTYPED)
def test_reads_every_dtype(save, dtype):
    shapes = {"scalar": (), "empty": (0, 3), "matrix": (3, 5), "conv": (2, 3, 5, 7)}
    expected = {name: coded(*shape, dtype=dtype) for name, shape in shapes.items()}
    assert_same(save(expected), expected)


def layouts() -> dict[str, torch.Tensor]:
    base = coded(4, 6, 5, 3)
    tied = coded(7, 2)
    vector = coded(60)
    with_attribute = coded(3, 2)
    with_attribute.note = "pickled as a tensor with a state"
    return {
        "channels_last": coded(4, 3, 5, 7).to(memory_format=torch.channels_last),
        "transposed": coded(3, 5).t(),
        "permuted": base.permute(2, 0, 3, 1),
        "view at an offset": base[1],
        "strided slice": vector[7:50:3],
        "column": base[:, 2],
        "expanded": coded(3, 1).expand(3, 4),
        "expanded scalar": coded(1).expand(2, 3),
        "overlapping windows": vector.as_strided((10, 5), (3, 1), 4),
        "empty view at the end": vector[60:],
        "tied.a": tied,
        "tied.b": tied,
        "tied.part": tied[2:4],
        "parameter": torch.nn.Parameter(coded(2, 2)),
        "frozen": torch.nn.Parameter(coded(2, 2), requires_grad=False),
        "buffer": torch.nn.Buffer(coded(3)),
        "with attribute": with_attribute,
    }


def test_reads_every_layout(save):
    expected = layouts()
    assert_same(save(collections.OrderedDict(expected)), expected)


def test_reads_a_parameter_with_state(save):
    parameter = torch.nn.Parameter(coded(3))
    parameter.note = "kept by torch"
    assert_same(save({"w": parameter}), {"w": parameter})


def test_arrays_are_fresh(save):
    with open_torch(save({"w": coded(5)})) as reader:
        first = reader.read("w")
        first[:] = -1
        assert reader.read("w").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_reads_every_pickle_protocol(tmp_path, form, protocol):
    expected = {"a.weight": coded(3, 4).t(), "a.bias": coded(4, dtype="float64")}
    torch.save(expected, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=FORMS[form])
    assert_same(tmp_path / "x", expected)


def test_reads_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(layouts(), tmp_path / "x")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(tmp_path / "x", layouts())


def test_reads_what_another_tool_packed_again(tmp_path):
    torch.save(layouts(), tmp_path / "x")
    with (
        zipfile.ZipFile(tmp_path / "x") as old,
        zipfile.ZipFile(tmp_path / "y", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(f"anything/{name.partition('/')[2]}", old.read(name))
    assert_same(tmp_path / "y", layouts())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "complex64", "bool"])
def test_reads_big_endian_files(tmp_path, dtype):
    tensor = coded(3, 4, dtype=dtype)
    kind = getattr(torch, torch_pickle.STORAGE_CLASS[np.dtype(torch_pickle.DTYPES[f"torch.{dtype}"])])
    reference = Reference(("storage", kind, "0", "cpu", 12))
    swapped = np.frombuffer(bits(tensor), torch_pickle.DTYPES[f"torch.{dtype}"]).byteswap().tobytes()
    path = zip_file(
        tmp_path / "x", {"w": placed(reference, 0, (3, 4), (4, 1))}, {"0": swapped}, byteorder=b"big"
    )
    assert_same(path, {"w": tensor})
    path = zip_file(
        tmp_path / "x", {"w": placed(reference, 0, (3, 4), (4, 1))}, {"0": swapped}, byteorder=b"odd"
    )
    assert "byte order b'odd'" in error_of(path)


def test_reads_views_of_storages_as_before_torch_0_4(tmp_path):
    """The sixth item of a persistent id: key, first element and size of a part of the storage."""
    root = {
        "all": placed(storage("7", 10, None), 2, (4, 2), (2, 1)),
        "part": placed(storage("7", 10, ("8", 4, 6)), 1, (5,), (1,)),
    }
    numbers = np.arange(10, dtype=np.float32)
    path = stream_file(tmp_path / "x", root, {"7": numbers})
    assert_same(path, {"all": torch.arange(2.0, 10.0).reshape(4, 2), "part": torch.arange(5.0, 10.0)})
    root = {"part": placed(storage("7", 10, ("8", 4, 7)), 1, (5,), (1,))}
    assert "impossible size" in error_of(stream_file(tmp_path / "x", root, {"7": numbers}))


def test_reads_tensors_of_torch_0_1(tmp_path):
    """An empty tensor with its position as state; a Parameter around one; a Variable of five parts."""
    old = Call(torch.FloatTensor, (), (storage("7", 6, None), 0, (2, 3), (1, 2)))
    root = {
        "tensor": old,
        "parameter": Call(torch.nn.parameter.Parameter, (old,), (True, False, collections.OrderedDict())),
        "variable": Call(
            torch.nn.parameter.Parameter, (), (old, None, collections.OrderedDict(), True, False)
        ),
    }
    path = stream_file(tmp_path / "x", root, {"7": np.arange(6, dtype=np.float32)})
    expected = torch.tensor([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    assert_same(path, dict.fromkeys(root, expected))


def test_reads_pickles_of_python_2(tmp_path):
    """There a str is bytes (SHORT_BINSTRING), and an OrderedDict is built from a list of pairs."""
    pairs = [["conv.weight", placed(storage("0", 6), 0, (2, 3), (3, 1))], ["caf\xe9", 1]]
    new = pickled(Call(collections.OrderedDict, (pairs,)))
    old, position = b"", 0
    for opcode, text, start in pickletools.genops(new):
        if opcode.name == "BINUNICODE":
            as_bytes = text.encode("latin1")
            old += new[position:start] + pickle.SHORT_BINSTRING + bytes([len(as_bytes)]) + as_bytes
            position = start + 5 + len(text.encode())
    path = zip_file(tmp_path / "x", old + new[position:], {"0": np.arange(6, dtype=np.float32).tobytes()})
    assert_same(path, {"conv.weight": coded(2, 3)})
    assert seen(path).left_out == {"caf\xe9": "int 1"}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_lists_tensors_that_numpy_cannot_hold(save):
    root = {
        "w": coded(3),
        "conjugate": coded(3, dtype="complex64").conj(),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(coded(3), 0.1, 0, torch.qint8),
        "meta": torch.empty(3, device="meta"),
        "z": coded(4),
    }
    path = save(root)
    assert_same(path, {"w": root["w"], "z": root["z"]})
    assert seen(path).left_out == {
        "conjugate": "torch.Tensor (lazily conjugated or negated)",
        "sparse": "sparse torch.Tensor",
        "quantized": "quantized torch.Tensor",
        "meta": "torch._utils._rebuild_meta_tensor_no_storage",
    }


def test_reading_a_tensor_reads_only_its_bytes(save, monkeypatch):
    path = save({"big": torch.zeros(1_000_000), "row": torch.arange(1_000_000.0).reshape(1000, 1000)[500]})
    count = 0

    class Counting(io.FileIO):
        def readinto(self, buffer):
            nonlocal count
            got = super().readinto(buffer)
            count += got
            return got

    monkeypatch.setattr(Path, "open", lambda path, mode: io.BufferedReader(Counting(path, mode)))
    with open_torch(path) as reader:
        opened = count
        assert reader.read("row")[0] == 500_000
    assert opened < 100_000
    assert count - opened < 100_000


# --- Our files read by torch


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> Path:
    arrays = {
        name: np.frombuffer(bits(tensor), torch_pickle.DTYPES[str(tensor.dtype)]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    write_torch(path, infos, arrays.__getitem__, metadata or {})
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap):
    shapes = {"scalar": (), "empty": (2, 0, 3), "one": (1,), "conv": (2, 3, 5, 7), "unit": (4, 1, 3, 1)}
    expected = {
        f"{name} {dtype}": coded(*shape, dtype=dtype) for dtype in TYPED for name, shape in shapes.items()
    }
    path = write(tmp_path / "x.pth", expected, {"spec": {"depths": [3, 4]}, "note": "caf\xe9"})
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].stride() == tensor.stride()
        assert bits(loaded[name]) == bits(tensor)
        assert loaded[name].data_ptr() % 64 == 0
    assert_same(path, expected)
    assert seen(path).metadata == {"spec": {"depths": [3, 4]}, "note": "caf\xe9"}


@pytest.mark.parametrize("names", [[], ["caf\xe9", "with\nline", "", "x" * 70_000]])
def test_torch_reads_odd_names(tmp_path, names):
    path = write(tmp_path / "x.pth", {name: coded(2) for name in names})
    assert list(torch.load(path, weights_only=True)) == names


def test_layouts_come_back_contiguous(tmp_path):
    torch.save(layouts(), tmp_path / "in")
    with open_torch(tmp_path / "in") as reader:
        write_torch(tmp_path / "out", reader.tensors, reader.read, {})
    loaded = torch.load(tmp_path / "out", weights_only=True)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: bits(tensor) for name, tensor in layouts().items()
    }


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6, dtype=">f8").reshape(3, 2),
        np.asfortranarray(np.eye(3, 2)),
    ],
    ids=["transposed", "big-endian", "fortran"],
)
def test_any_array_can_be_written(tmp_path, array):
    info = TensorInfo(array.shape, np.dtype(np.float64))
    write_torch(tmp_path / "x", {"w": info}, lambda _: array, {})
    assert torch.equal(torch.load(tmp_path / "x")["w"], torch.tensor(array.astype("=f8")))


def test_entries_are_stored_aligned_and_the_same_every_time(tmp_path):
    tensors = {"a": coded(3, 5), "b": coded(1, dtype="bool"), "c": coded(20, dtype="float64")}
    first, second = (write(tmp_path / name, tensors, {"k": 1}).read_bytes() for name in "ab")
    assert first == second
    with zipfile.ZipFile(tmp_path / "a") as file:
        assert file.testzip() is None
        infos = file.infolist()
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
        assert {info.extra for info in infos} == {b""}  # the padding is in the entries' own headers only
        assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
        assert file.read("archive/byteorder") == b"little"
        assert file.read("archive/version") == b"3\n"
        assert file.read("archive/samenet.json") == b'{"k": 1}'
    for info in infos:
        name_length, extra_length = struct.unpack_from("<HH", first, info.header_offset + 26)
        assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0, info.filename


@pytest.mark.parametrize("mmap", [False, True])
def test_zip64(tmp_path, monkeypatch, mmap):
    """The zip64 form for files beyond 2 GiB, tested with a limit of 100 bytes for entries and offsets."""
    expected = {"a": coded(20), "b": coded(50), "c": coded(7)}
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = write(tmp_path / "x", expected)
    monkeypatch.undo()
    assert b"PK\x06\x06" in path.read_bytes()  # the zip64 end of the directory
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    assert_same(path, expected)


def test_one_tensor_in_memory_at_a_time(tmp_path):
    alive: list[weakref.ref] = []

    def read(name: str) -> np.ndarray:
        assert all(reference() is None for reference in alive), f"an earlier array is alive at {name}"
        array = np.full(4, int(name), np.float32)
        alive.append(weakref.ref(array))
        return array

    infos = {str(index): TensorInfo((4,), np.dtype(np.float32)) for index in range(5)}
    write_torch(tmp_path / "x", infos, read, {})
    assert len(alive) == 5


@pytest.mark.parametrize(
    ("announced", "array"),
    [
        (TensorInfo((2, 3), np.dtype(np.float32)), np.zeros((3, 2), np.float32)),
        (TensorInfo((2, 3), np.dtype(np.float32)), np.zeros((2, 3), np.float64)),
        (TensorInfo((2,), np.dtype("U3")), np.array(["abc", "def"])),
        (TensorInfo((2,), np.dtype(np.uint16)), np.zeros(2, np.uint16)),
    ],
)
def test_refuses_to_write_what_does_not_fit(tmp_path, announced, array):
    with pytest.raises(MismatchError, match=r"'conv\.weight'"):
        write_torch(tmp_path / "x", {"conv.weight": announced}, lambda _: array, {})


# --- Choice of the state dict, and other contents


class Outer:
    class Inner:
        def __init__(self, value: int = 0):
            self.value = value


def training_checkpoint() -> tuple[dict, dict[str, torch.Tensor]]:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    factory = collections.defaultdict(list, {"loss": [0.5, 0.25]})
    cycle: list = [1]
    cycle.append(cycle)
    return {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_acc1": torch.tensor(76.1),
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(path=Path("data"))),
        "acc": np.float64(76.1),
        "confusion": np.eye(3),
        "history": factory,
        "folder": Path("runs"),
        "when": datetime.datetime(2020, 1, 2),
        "collate": functools.partial(sorted, reverse=True),
        "function": os.path.join,
        "inner": Outer.Inner(3),
        "numbers": {1, 2},
        "frozen": frozenset([1]),
        "complex": 1j,
        "raw": b"abc",
        "array": bytearray(b"abcd"),
        "cycle": cycle,
        "size": coded(2, 3).size(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "rng": np.random.RandomState(0).get_state(),
        "nothing": None,
        "flag": True,
        "lr": 0.5,
        "large": 10**5000,
        "keys": {(1, 2): "tuple", Path("p"): "path", 3: "int"},
    }, dict(model.state_dict())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_training_checkpoint(tmp_path, form, protocol):
    root, expected = training_checkpoint()
    path = tmp_path / "x.pth.tar"
    torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=FORMS[form])
    assert_same(path, expected)
    reader = seen(path)
    assert reader.notes == ["took the entry 'state_dict'; others that hold tensors: '.' (choose with --key)"]
    assert list(reader.left_out) == [name for name in root if name != "state_dict"]
    facts = {
        "epoch": "int 90",
        "arch": "str 'resnet50'",
        "optimizer": "dict of 2 (18 tensors)",
        "best_acc1": "float32 tensor ()",
        "args": "argparse.Namespace",
        "acc": "numpy scalar",
        "confusion": "numpy.ndarray",
        "history": "collections.defaultdict",
        "folder": "pathlib.PosixPath",
        "when": "datetime.datetime",
        "collate": "functools.partial",
        "inner": f"{__name__}.Outer.Inner",
        "cycle": "list of 2",
        "nothing": "None",
        "flag": "True",
        "lr": "float 0.5",
        "large": "int of 16610 bits",
        "keys": "dict of 3",
    }
    assert {name: reader.left_out[name] for name in facts} == facts
    assert all(len(text) <= 80 and text.isprintable() for text in reader.left_out.values())


W = {"w": torch.zeros(2), "b": torch.zeros(1)}
CYCLE: dict = {**W}
CYCLE["again"] = CYCLE
CHOICES = {  # root, key -> names of the tensors, note, left out
    "top": (W, None, "wb", "", {}),
    "top with others": ({**W, "epoch": 3}, None, "wb", "", {"epoch": "int 3"}),
    "top with nested": (
        {**W, "x": W},
        None,
        "wb",
        "'.'; others that hold tensors: 'x'",
        {"x": "dict of 2 (2 tensors)"},
    ),
    "top before ema": (
        {**W, "model_ema": W},
        None,
        "wb",
        "'.'; others",
        {"model_ema": "dict of 2 (2 tensors)"},
    ),
    "lone tensor": (
        {"model": W, "best": torch.zeros(())},
        None,
        "wb",
        "'model'; others that hold tensors: '.'",
        {"best": "float32 tensor ()"},
    ),
    "raw before ema": (
        {"state_dict_ema": {"e": W["w"]}, "state_dict": W},
        None,
        "wb",
        "'state_dict'; others that hold tensors: 'state_dict_ema'",
        {"state_dict_ema": "dict of 1 (1 tensor)"},
    ),
    "ema by key": (
        {"state_dict_ema": {"e": W["w"]}, "state_dict": W},
        "state_dict_ema",
        "e",
        "",
        {"state_dict": "dict of 2 (2 tensors)"},
    ),
    "not a tensor": (
        {"net": {**W, "_extra_state": 1}, "lr": 0.5},
        None,
        "wb",
        "",
        {"lr": "float 0.5", "net._extra_state": "int 1"},
    ),
    "only one, of any name": ({"student": W, "epoch": 1}, None, "wb", "", {"epoch": "int 1"}),
    "deep": ({"a": {"b": W, "n": 1}, "m": 2}, None, "wb", "", {"m": "int 2", "a.n": "int 1"}),
    "deep by key": ({"a": {"b": W}, "c": W}, "a.b", "wb", "", {"c": "dict of 2 (2 tensors)"}),
    "key with a dot": ({"a.b": W, "model": W}, "a.b", "wb", "", {"model": "dict of 2 (2 tensors)"}),
    "top by key": (
        {"model": {**W, "c": torch.zeros(3)}, **W},
        ".",
        "wb",
        "",
        {"model": "dict of 3 (3 tensors)"},
    ),
    "holding itself": (CYCLE, None, "wb", "hold tensors: 'again' (", {"again": "dict of 3 (2 tensors)"}),
    "keys of all kinds": (
        {**W, 1: W["w"], None: 2},
        None,
        "wb",
        "",
        {"1": "float32 tensor (2,)", "None": "int 2"},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice_of_the_state_dict(save, case):
    root, key, names, note, left_out = CHOICES[case]
    with open_torch(save(root), key) as reader:
        assert list(reader.tensors) == list(names)
        assert reader.left_out == left_out
        assert note in "".join(reader.notes)
        assert bool(note) == bool(reader.notes)


REFUSALS = {
    "several": (
        {"student": W, "teacher": W},
        None,
        ["2 entries hold tensors; choose one with --key", "'teacher': 2 tensors"],
    ),
    "no such key": (
        {"student": W},
        "studnet",
        ["no entry 'studnet'", "did you mean 'student'?", "'student': 2 tensors"],
    ),
    "key of no tensors": ({**W, "epoch": 3}, "epoch", ["no entry 'epoch' that holds tensors (it is int 3)"]),
    "a tensor": (torch.zeros(2, 3), None, ["float32 tensor (2, 3), expected a mapping"]),
    "a list": ([torch.zeros(2)], None, ["list of 1 (1 tensor), expected a mapping"]),
    "no tensors": (
        {"epoch": 3, "x": {}},
        None,
        ["dict of 2, expected a mapping", "epoch: int 3", "x: dict of 0"],
    ),
    "numpy arrays": ({"w": np.zeros(3)}, None, ["dict of 1, expected a mapping", "w: numpy.ndarray"]),
    "a number": (3, None, ["int 3, expected a mapping"]),
    "a whole module": (
        torch.nn.Linear(2, 2),
        None,
        ["a pickled torch.nn.modules.linear.Linear object, expected a state dict", "save model.state_dict()"],
    ),
    "a module in a dict": (
        {"model": torch.nn.Linear(2, 2), "epoch": 1},
        None,
        ["expected a mapping", "model.state_dict()", "model: torch.nn.modules.linear.Linear"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.filterwarnings("ignore")
def test_refuses_without_a_state_dict(save, case):
    root, key, texts = REFUSALS[case]
    message = error_of(save(root), key)
    assert [text for text in texts if text not in message] == []


# --- Other kinds of files


@pytest.mark.filterwarnings("ignore")
def test_refuses_archives_of_code(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.jit.script(model).save(tmp_path / "script.pt")
    assert "TorchScript" in error_of(tmp_path / "script.pt")
    with torch.package.PackageExporter(str(tmp_path / "package.pt")) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", model)
    assert "torch.package" in error_of(tmp_path / "package.pt")


@pytest.mark.parametrize(
    "name", ["x/models/model.json", "x/archive_format", "serialized_exported_program.json", "x/code/a.py"]
)
def test_refuses_zips_by_their_entries(tmp_path, name):
    path = zip_file(tmp_path / "x", {}, {})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, "")
    assert ("TorchScript" if "code" in name else "torch.export archive (.pt2)") in error_of(path)


def test_refuses_other_files(tmp_path):
    with tarfile.open(tmp_path / "tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("storages"))
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("weights.npy", b"")
    (tmp_path / "pickle").write_bytes(pickle.dumps({}))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    assert "the tar form of PyTorch 0.1" in error_of(tmp_path / "tar")
    assert "a zip without <name>/data.pkl" in error_of(tmp_path / "zip")
    assert "expected one written by torch.save" in error_of(tmp_path / "pickle")
    assert "an empty file" in error_of(tmp_path / "empty")
    assert "a directory without a TF1 checkpoint in it" in error_of(tmp_path / "folder")
    assert "there is no such file" in error_of(tmp_path / "missing")


def test_recognition(tmp_path):
    for protocol in (1, 2, 3, 4, 5):
        torch.save(W, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        assert looks_like_torch_stream((tmp_path / "x").read_bytes()[:64])
    assert not looks_like_torch_stream(b"")
    assert not looks_like_torch_stream(pickle.dumps({"a": 1}, 2))
    assert torch_zip_stem(["y/x/data.pkl", "x/data/0", "x/data.pkl"]) == "x"
    assert torch_zip_stem(["data.pkl", "weights.npy"]) is None


def test_other_zip_features_end_in_an_error(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x", "w", method) as file:
            file.writestr("x/data.pkl", pickled({}))
        message = f"packed by method {method}, expected stored or deflated ones"
        assert message in error_of(tmp_path / "x")
    path = write(tmp_path / "y", {"w": coded(3)})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the directory
    path.write_bytes(data)
    assert "encrypted" in error_of(path)


def test_no_framework_is_imported(tmp_path):
    torch.save(training_checkpoint()[0], tmp_path / "x")
    code = (
        "import sys; from pathlib import Path\n"
        "from weights_convert.formats.torch_file import open_torch, write_torch\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "with open_torch(source) as reader: write_torch(target, reader.tensors, reader.read, {})\n"
        "print(sorted({'torch', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x", tmp_path / "y"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"
    assert list(torch.load(tmp_path / "y")) == list(training_checkpoint()[1])


# --- Hostile files


def test_nothing_in_the_file_runs(save, tmp_path):
    witness = tmp_path / "ran"
    commands = [
        Call(os.system, (f"touch {witness}",)),
        Call(eval, (f"open({str(witness)!r}, 'w')",)),
        Call(functools.partial(open, str(witness)), ("w",)),
        Call(getattr, (Call(__import__, ("os",)), "system")),
        Call(Path.touch, (witness,)),
    ]
    pickle.loads(pickle.dumps(commands[0]))
    assert witness.exists()  # proves that the command works
    witness.unlink()
    root = {"w": torch.ones(2), "evil": commands, **{Call(os.system, (f"touch {witness}",)): 1}}
    path = save(root)
    assert_same(path, {"w": root["w"]})
    assert seen(path).left_out["evil"] == "list of 5"
    name = save(commands[0]).name
    assert f"a pickled {os.system.__module__}.system object" in error_of(tmp_path / name)
    assert not witness.exists()


GLOBAL_W = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOSTILE = {  # after the protocol, before STOP
    "a function given attributes": GLOBAL_W + b"}X\x01\x00\x00\x00aK\x01sb",
    "a function given defaults": GLOBAL_W + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b",
    "a function replaced": GLOBAL_W + b"N}X\x09\x00\x00\x00_functioncmodule\nname\ns\x86b",
    "a class given attributes": b"ctorch\nFloatTensor\nN}X\x04\x00\x00\x00spanK\x01s\x86b",
    "a memo index that fills the memory": b"]r\x00\x00\x00\x01",
    "a text longer than the file": b"X\xff\xff\xff\x7fabc",
    "bytes longer than memory": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc",
    "a bytearray longer than memory": b"\x96\xff\xff\xff\xff\xff\x00\x00\x00abc",
    "an unhashable key": b"}]K\x01s",
    "an empty stack": b"",
    "only a mark": b"(",
    "no such operation": b"\xff",
    "an extension": b"\x82\x01",
    "a buffer out of band": b"\x97",
    "a reference to nothing": b"h\x07",
    "a persistent id of text": b"Pabc\n",
    "a call of a number": b"K\x01)R",
    "a tensor without arguments": GLOBAL_W + b")R",
    "a tensor without a storage": GLOBAL_W + b"(K\x00K\x00))K\x00K\x00tR",
    "a class that is not one": b"K\x01)\x81",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_malformed_pickles_end_in_one_error(tmp_path, case):
    body = b"\x80\x04" + HOSTILE[case] + b"."
    assert "damaged" in error_of(zip_file(tmp_path / "x", body, {}))
    write(tmp_path / "y", {"w": coded(2)})  # without temporary files
    assert_same(tmp_path / "y", {"w": coded(2)})


OPAQUE = b"cmodule\nname\n"
HARMLESS = {
    "called": OPAQUE + b")R",
    "called twice": OPAQUE + b")R)R",
    "made new": OPAQUE + b")\x81",
    "made new with keywords": OPAQUE + b")}X\x01\x00\x00\x00aK\x01s\x92",
    "made by name": b"(K\x01imodule\nname\n",
    "made by class": b"(" + OPAQUE + b"K\x01o",
    "given a state": OPAQUE + b")RK\x01b",
    "given two states": OPAQUE + b")\x81}X\x04\x00\x00\x00pathK\x01s}\x86b",
    "a class given a state": OPAQUE + b"}b",
    "given items": OPAQUE + b")R(K\x01K\x02u",
    "given elements": OPAQUE + b")R(K\x01K\x02e",
    "given an element": OPAQUE + b")RK\x02a",
    "given members": OPAQUE + b")R(K\x01\x90",
    "a key": b"}" + OPAQUE + b")RK\x01s",
    "a class as a key": b"}" + OPAQUE + b"K\x01s",
    "holding itself": OPAQUE + b")Rq\x00(h\x00h\x00u",
    "an attribute": b"cbuiltins\ngetattr\n" + OPAQUE + b"X\x05\x00\x00\x00inner\x86R)\x81",
    "a name with an end of line": b"X\x03\x00\x00\x00a\nbX\x02\x00\x00\x00\nc\x93)R",
    "a very long name": b"c" + b"m" * 100_000 + b"\nname\n",
    "rather deep": b"]" * 90 + b"a" * 89,
    "shared very often": b"]" + b"q\x010](h\x01h\x01e" * 90,
}


@pytest.mark.parametrize("case", HARMLESS)
def test_whatever_is_done_to_unknown_objects_is_harmless(tmp_path, case):
    tensor = pickled(placed(storage("0", 2), 0, (2,), (1,)))[2:-1]
    body = b"\x80\x04}(X\x01\x00\x00\x00w" + tensor + b"X\x01\x00\x00\x00x" + HARMLESS[case] + b"u."
    path = zip_file(tmp_path / "x", body, {"0": np.arange(2, dtype=np.float32).tobytes()})
    assert_same(path, {"w": coded(2)})
    (text,) = seen(path).left_out.values()
    assert len(text) <= 80
    assert text.isprintable()


CLAIMS = {  # numel of the storage, offset, size, stride; the file has 6 elements
    "more than the file": (1000, 0, (1000,), (1,)),
    "a storage larger than the file": (1000, 0, (2,), (1,)),
    "more than the storage": (6, 0, (7,), (1,)),
    "more than the storage, not than the file": (4, 0, (5,), (1,)),
    "beyond the end": (6, 5, (2,), (1,)),
    "stride beyond the end": (6, 0, (2, 2), (5, 2)),
    "a huge offset": (6, 2**62, (1,), (1,)),
    "a huge shape": (6, 0, (2**40, 2**40), (1, 1)),
    "a negative size": (6, 0, (-1,), (1,)),
    "a negative stride": (6, 5, (6,), (-1,)),
    "a negative offset": (6, -1, (2,), (1,)),
    "a negative storage": (-6, 0, (0,), (1,)),
    "fewer strides": (6, 0, (2, 3), (1,)),
    "a fraction": (6, 0, (2.0,), (1,)),
    "too large a number": (6, 0, (10**5000,), (1,)),
    "too many dimensions": (6, 0, (1,) * 65, (1,) * 65),
}


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("form", FORMS)
def test_tensors_beyond_the_file(tmp_path, form, case):
    numel, offset, size, stride = CLAIMS[case]
    numbers = np.arange(6, dtype=np.float32)
    if form == "zip":
        root = {"conv.weight": placed(storage("0", numel), offset, size, stride)}
        message = error_of(zip_file(tmp_path / "x", root, {"0": numbers.tobytes()}))
    else:
        root = {"conv.weight": placed(storage("0", numel, None), offset, size, stride)}
        message = error_of(stream_file(tmp_path / "x", root, {"0": numbers}))
    assert "damaged" in message
    assert "'conv.weight'" in message or "Error: " in message


def test_entries_that_are_not_where_they_should_be(tmp_path):
    path = write(tmp_path / "x", {"w": coded(3)})
    data = bytearray(path.read_bytes())
    data[data.find(b"archive/data/0") - 30] ^= 1  # the first byte of the entry's own header
    path.write_bytes(data)
    with open_torch(path) as reader, pytest.raises(SourceError, match=r"wrong start of the entry.* damaged"):
        reader.read("w")

    path = stream_file(
        tmp_path / "y", {"w": placed(storage("0", 3, None), 0, (3,), (1,))}, {"0": np.zeros(4)}
    )
    assert "a storage of 4 elements, announced as 3" in error_of(path)


def test_missing_storages(tmp_path):
    root = {"conv.weight": placed(storage("0", 6), 0, (6,), (1,))}
    assert "tensor 'conv.weight' of shape (6,) needs 24 bytes" in error_of(zip_file(tmp_path / "x", root, {}))
    root = {"conv.weight": placed(storage("0", 6, None), 0, (6,), (1,))}
    assert "tensor 'conv.weight' of shape (6,) needs 24 bytes" in error_of(
        stream_file(tmp_path / "x", root, {})
    )


def test_a_size_that_compression_cannot_reach(tmp_path):
    root = {"w": placed(storage("0", 2**40), 0, (2**40,), (1,))}
    path = zip_file(tmp_path / "x", root, {"0": bytes(100)})
    with zipfile.ZipFile(path, "a") as file:
        file.getinfo("x/data/0").file_size = 2**42  # stored in the directory
        file.writestr("x/more", b"")
    assert "tensor 'w'" in error_of(path)


# --- Damage


def read_all(path: Path) -> None:
    with open_torch(path) as reader:
        for name in reader.tensors:
            array = reader.read(name)
            assert (array.shape, array.dtype) == reader.tensors[name]


def small_checkpoint() -> dict:
    return {"state_dict": layouts(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def test_every_truncation_is_noticed(save, tmp_path):
    data = save(small_checkpoint()).read_bytes()
    path = tmp_path / "short"
    for length in {*range(1, 100), *range(100, len(data), 61), *range(len(data) - 100, len(data))}:
        path.write_bytes(data[:length])
        message = error_of(path)
        assert length < 20 or "truncated or damaged" in message, length


def test_one_wrong_bit_in_a_stored_tensor_is_noticed(tmp_path):
    path = write(tmp_path / "x", {"a": coded(50), "conv.weight": coded(100)})
    data = bytearray(path.read_bytes())
    data[data.find(coded(100).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with open_torch(path) as reader:
        reader.read("a")
        with pytest.raises(SourceError, match=r"tensor 'conv.weight'.*checksum.*damaged"):
            reader.read("conv.weight")


def test_a_file_that_shrinks_while_open(save):
    path = save({"w": torch.zeros(100_000)})
    with open_torch(path) as reader:
        os.truncate(path, 50_000)
        with pytest.raises(SourceError, match=r"tensor 'w'.*truncated"):
            reader.read("w")


@functools.cache
def saved(form: str) -> bytes:
    file = io.BytesIO()
    torch.save(small_checkpoint(), file, _use_new_zipfile_serialization=FORMS[form])
    return file.getvalue()


@pytest.mark.parametrize("form", FORMS)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4)
)
def test_flipped_bits(tmp_path, form, flips):
    data = bytearray(saved(form))
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    path = tmp_path / "flipped"
    path.write_bytes(data)
    try:
        read_all(path)
    except SourceError as error:
        assert error.message.startswith(f"{path}: ")  # noqa: PT017
        assert "\n" not in error.message  # noqa: PT017
