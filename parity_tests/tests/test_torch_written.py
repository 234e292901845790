"""PyTorch files that are written here, read by torch."""

from __future__ import annotations

import collections
import struct
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest

from parity_tests.tests.test_torch_file import TYPED, assert_same, bits, coded, layouts, seen, torch
from weights_convert.errors import MismatchError
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.torch import objects
from weights_convert.formats.torch.file import open_torch
from weights_convert.formats.torch.writer import write_torch

# --- Our files read by torch


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> Path:
    arrays = {
        name: np.frombuffer(bits(tensor), objects.DTYPES[str(tensor.dtype)]).reshape(tensor.shape)
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
