"""HDF5 read without its library, compared with h5py."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from fuzz import target
from weights_convert import LimitError, Limits, SourceError
from weights_convert.formats import open_reader
from weights_convert.formats.hdf5.keras import KerasReader

ARRAYS = {
    **{name: np.arange(6).reshape(2, 3).astype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8")},
    **{name: np.arange(6).astype(name) for name in ("u1", "u2", "u4", "u8", ">f4", ">i2", ">f8")},
    "bool": np.array([True, False]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


def hdf5(path: Path, fill: Callable[[h5py.File], object], **options: object) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def arrays(file: h5py.File) -> None:
    for name, array in ARRAYS.items():
        file[f"a/{name}"] = array
    for number in range(300):  # a tree of more than one level
        file[f"many/{number}"] = np.int32(number)
    file.create_dataset("compact", data=np.arange(3), track_times=False)
    bfloat16 = file.create_dataset("bfloat16", data=np.arange(3).astype(ml_dtypes.bfloat16).view("V2"))
    bfloat16.attrs["dtype"] = "bfloat16"
    file.attrs["samenet"] = '{"a": 1}'


OTHERS: dict[str, Callable[[], object]] = {  # objects that are not arrays of numbers
    "text": lambda: "text",
    "opaque": lambda: np.zeros(3, "V2"),
    "record": lambda: np.zeros(2, [("a", "f4")]),
    "complex": lambda: np.ones(2, np.complex64),
    "nothing": lambda: h5py.Empty("f4"),
    "long": lambda: np.ones(2, np.longdouble),
}


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_reader(path)
    assert caught.value.message.startswith(f"{path}: ")
    return caught.value.message.removeprefix(f"{path}: ")


@pytest.mark.quick
def test_reads_what_h5py_writes(tmp_path):
    path = hdf5(tmp_path / "x.h5", arrays)
    with open_reader(path) as reader, h5py.File(path) as judge:
        assert isinstance(reader, KerasReader)
        names: list[str] = []
        judge.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert sorted(reader.tensors) == sorted(names)
        for name in names:
            found, expected = reader.read(name), judge[name][()]
            if name != "bfloat16":
                assert found.dtype == expected.dtype.newbyteorder("="), name
            assert found.shape == np.shape(expected)
            assert found.tobytes() == np.asarray(expected, expected.dtype.newbyteorder("=")).tobytes(), name
            assert found.flags.writeable
        assert reader.tensors["bfloat16"].dtype == ml_dtypes.bfloat16
        assert reader.metadata == {"a": 1}


TEXTS = {
    "variable": '{"a": 1}',
    "bytes": b'{"a": 1}',
    "fixed": np.bytes_(b'{"a": 1}'),
    "long": '{"a": 1, "text": "' + "x" * 100_000 + '"}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_reads_a_text_among_many_attributes(tmp_path, kind):
    """Keras 2 splits long lists into `weight_names0` and so on, beside a config of any length."""

    def fill(file: h5py.File) -> None:
        for number in range(100):
            file.attrs[f"weight_names{number}"] = np.array([b"conv/kernel:0"] * number, "S40")
        file.attrs["samenet"] = TEXTS[kind]
        file["w"] = np.ones(2)
        file["w"].attrs.update({f"a{number}": number for number in range(20)})

    with open_reader(hdf5(tmp_path / "x", fill)) as reader:
        assert reader.metadata["a"] == 1
        assert reader.read("w").tolist() == [1, 1]


def test_metadata_that_are_no_text(tmp_path):
    for value in (3, ["a", "b"], h5py.Empty("f4")):
        path = hdf5(tmp_path / "x", lambda file, value=value: file.attrs.update(samenet=value))
        assert "its attribute 'samenet' is not one text" in refusal(path)


def test_lists_objects_that_are_not_arrays(tmp_path):
    def fill(file: h5py.File) -> None:
        for name, make in OTHERS.items():
            file[name] = make()
        file["reference"], file["soft"], file["type"] = (
            file["text"].ref,
            h5py.SoftLink("/text"),
            np.dtype("f4"),
        )
        file.create_dataset("elsewhere", (4,), "u1", external=[("/etc/passwd", 0, 4)])
        file["w"] = np.ones(2)

    with open_reader(hdf5(tmp_path / "x", fill)) as reader:
        assert list(reader.tensors) == ["w"]
        assert set(reader.left_out) == {*OTHERS, "reference", "soft", "elsewhere"}
        assert reader.left_out["elsewhere"] == "data kept in another file, never read"
        assert reader.left_out["soft"] == "link to elsewhere, never followed"


# --------------------------------------------------------------------------------------------------
# Structures that lie


def test_every_pointer_to_every_structure(tmp_path):
    """Every possible address replaced by every other one: loops, nested trees, headers in data."""

    def fill(file: h5py.File) -> None:
        file["a/vars/0"] = np.arange(4, dtype=np.float32)
        file.attrs["samenet"] = "{}"

    data = hdf5(tmp_path / "x", fill).read_bytes()
    marks = (b"TREE", b"HEAP", b"SNOD", b"GCOL")
    addresses = [at for at in range(0, len(data), 8) if data[at : at + 4] in marks]
    addresses += [0, 96, len(data) - 8, 2**64 - 1]
    places = [at for at in range(0, len(data) - 8, 8) if data[at : at + 8] != bytes(8)
              and int.from_bytes(data[at : at + 8], "little") < len(data)]  # fmt: skip
    outcomes = [
        target.try_input("keras_h5", data[:at] + struct.pack("<Q", address) + data[at + 8 :], tmp_path / "in")
        for at in places
        for address in addresses
        if (tmp_path / "in").mkdir(exist_ok=True) is None
    ]
    assert len(outcomes) > 500
    assert 0 < sum(outcomes) < len(outcomes)


def test_a_tree_that_is_its_own_branch(tmp_path):
    data = bytearray(hdf5(tmp_path / "x", lambda file: file.create_dataset("w", data=1.0)).read_bytes())
    at = data.find(b"TREE")
    data[at + 5] = 1  # its level
    data[at + 32 : at + 40] = struct.pack("<Q", at)
    (tmp_path / "x").write_bytes(data)
    assert "no node of a tree where one should be" in refusal(tmp_path / "x")


def test_booleans_are_one_or_zero(tmp_path):
    """NumPy computes wrongly with others."""
    path = hdf5(tmp_path / "x", lambda file: file.create_dataset("w", data=np.ones(64, bool)))
    path.write_bytes(path.read_bytes().replace(b"\1" * 64, b"\2" * 64))
    with open_reader(path) as reader:
        assert reader.read("w").tobytes() == b"\1" * 64


def test_groups_that_hold_one_another(tmp_path):
    def loop(file: h5py.File) -> None:
        file["a/b"] = file.create_group("a")

    def doubling(file: h5py.File) -> None:
        group = file
        for _ in range(40):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner

    with pytest.raises(LimitError, match=r"101 levels or more of groups, limit 100; .*--max-depth"):
        open_reader(hdf5(tmp_path / "loop", loop))
    with pytest.raises(
        LimitError, match=r"160,001 or more groups and datasets, limit 160,000; .*--max-tensors"
    ):
        open_reader(hdf5(tmp_path / "doubling", doubling))


def test_a_deeper_file_with_a_higher_limit(tmp_path):
    path = hdf5(tmp_path / "x", lambda file: file.create_dataset("/".join("a" * 150), data=1.5))
    assert "101 levels" in refusal(path)
    with open_reader(path, limits=Limits(max_depth=150)) as reader:
        assert reader.read("/".join("a" * 150)) == 1.5
