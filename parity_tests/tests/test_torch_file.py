"""PyTorch checkpoints, compared with torch; damaged and hostile files give a one-line error."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from weights_convert.errors import SourceError
from weights_convert.formats.torch import objects
from weights_convert.formats.torch.file import (
    TorchReader,
    open_torch,
)

torch = pytest.importorskip("torch")

FORMS = {"zip": True, "stream": False}
TYPED = [name for name, prefix, _ in objects.TYPES if prefix]
UNTYPED = [name for name, prefix, _ in objects.TYPES if not prefix]


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
    others = {
        "array": np.arange(3),
        "number": np.float64(0.5),
        "empty": np.zeros((0, 3), np.float32),
        "containers": [{"a"}, frozenset("b"), (), ((1, 2), [3.5]), {(1, "a"): None}, {0: b"bytes"}],
        "large": 2**70,
        "nested": collections.Counter("ab"),
    }
    root = {"model": expected, **others}
    torch.save(root, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=FORMS[form])
    assert_same(tmp_path / "x", expected)
    assert list(seen(tmp_path / "x").left_out) == list(others)


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
    kind = getattr(torch, objects.STORAGE_CLASS[np.dtype(objects.DTYPES[f"torch.{dtype}"])])
    reference = Reference(("storage", kind, "0", "cpu", 12))
    swapped = np.frombuffer(bits(tensor), objects.DTYPES[f"torch.{dtype}"]).byteswap().tobytes()
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


ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "flags": np.array([True, False]),
    "one number": np.array(7),
    "no numbers": np.zeros((0, 3), np.float32),
    "all bytes": np.arange(256, dtype=np.uint8),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_reads_arrays_of_numpy(tmp_path, form, protocol):
    path = tmp_path / "x.pth"
    torch.save(
        {"state_dict": ARRAYS, "epoch": 3},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=FORMS[form],
    )
    with open_torch(path) as reader:
        assert {*reader.tensors} == {*ARRAYS}
        for name, array in ARRAYS.items():
            found = reader.read(name)
            assert found.dtype == array.dtype.newbyteorder("=")
            assert found.shape == array.shape
            assert np.array_equal(found, array)
            assert found.flags.c_contiguous
