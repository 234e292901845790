"""HDF5 that Keras does not write is refused with a line that saves it again; .keras archives."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity_tests.tests.test_bombs import lying
from parity_tests.tests.test_hdf5 import ARRAYS, arrays, hdf5, refusal
from weights_convert import SourceError
from weights_convert.formats import open_reader


def gzip(file: h5py.File) -> None:
    file.create_dataset("w", data=np.ones((8, 8)), chunks=(4, 4), compression="gzip", shuffle=True)


def chunks(file: h5py.File) -> None:
    file.create_dataset("w", data=np.ones((8, 8)), chunks=(4, 4))


def unwritten(file: h5py.File) -> None:
    file.create_dataset("w", (2, 2), "f4", fillvalue=2.0)


def ordered(file: h5py.File) -> None:
    file.create_group("a", track_order=True)["w"] = np.ones(2)


def named_type(file: h5py.File) -> None:
    file["type"] = np.dtype("f4")
    file.create_dataset("w", data=np.ones(2), dtype=file["type"])


def external(file: h5py.File) -> None:
    file["w"] = np.ones(2)
    file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    file["w"] = np.arange(4, dtype="u1")
    layout[:] = h5py.VirtualSource(".", "w", (4,))
    file.create_virtual_dataset("view", layout)


UNUSUAL: dict[Callable[[h5py.File], None], str] = {
    gzip: "compressed data",
    chunks: "a dataset in chunks",
    unwritten: "a dataset without data",
    ordered: "object headers 2, a newer layout",
    named_type: "a shared message",
    external: "a group with links",
    virtual: "a virtual dataset",
}


def saved_again(path: Path) -> Path:
    """Run the line in the error for a file, and return the new file."""
    with pytest.raises(SourceError, match="save it again with this line of Python:") as caught:
        open_reader(path)
    message, line = str(caught.value).split("\n")
    assert message == caught.value.message
    subprocess.run([sys.executable, "-c", line.strip()], check=True, cwd="/")
    return path.with_name(f"{path.stem}.plain.h5")


@pytest.mark.quick
@pytest.mark.parametrize("fill", UNUSUAL)
def test_unusual_hdf5_is_refused_with_the_line_that_saves_it_again(tmp_path, fill):
    path = hdf5(tmp_path / "it's.h5", fill)
    assert refusal(path).startswith(
        f"HDF5 with {UNUSUAL[fill]}, expected what h5py and Keras write by default;"
    )
    with open_reader(saved_again(path)) as reader, h5py.File(path) as judge:
        assert {"w", "a/w"} & set(reader.tensors)
        assert not reader.left_out
        for name in reader.tensors:
            assert reader.read(name).tolist() == judge[name][()].tolist()


@pytest.mark.parametrize("libver", ["v108", "latest"])
def test_newer_layouts_keep_everything_when_saved_again(tmp_path, libver):
    with open_reader(saved_again(hdf5(tmp_path / "x.h5", arrays, libver=libver))) as reader:
        assert reader.metadata == {"a": 1}
        assert reader.read("bfloat16").astype(int).tolist() == [0, 1, 2]
        for name, array in ARRAYS.items():
            assert reader.read(f"a/{name}").tolist() == array.tolist()
            assert reader.tensors[f"a/{name}"].dtype == array.dtype.newbyteorder("=")


# --------------------------------------------------------------------------------------------------
# .keras


def keras(path: Path, method: int = 0, libver: str = "earliest", **others: bytes) -> Path:
    inner = io.BytesIO()
    with h5py.File(inner, "w", libver=libver) as file:
        file["conv/vars/0"] = np.arange(1000, dtype=np.float32)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model.weights.h5", inner.getvalue())
        for name, content in others.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_only_the_weights_are_opened(tmp_path, method, monkeypatch):
    opened = []
    real = zipfile.ZipFile.open

    def spy(archive: zipfile.ZipFile, name: zipfile.ZipInfo, *arguments: object) -> object:
        opened.append(name.filename)
        return real(archive, name, *arguments)

    path = keras(tmp_path / "x.keras", method, config=b"\x80\x04cos\nsystem\n.")
    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    with open_reader(path) as reader:
        assert reader.read("conv/vars/0").tolist() == list(range(1000))
    assert set(opened) <= {"model.weights.h5"}


def test_a_newer_layout_inside_a_zip(tmp_path):
    with open_reader(saved_again(keras(tmp_path / "x.keras", libver="latest"))) as reader:
        assert reader.read("conv/vars/0").tolist() == list(range(1000))


def test_a_wrong_bit_in_a_keras_file(tmp_path):
    path = keras(tmp_path / "x.keras")
    data = bytearray(path.read_bytes())
    data[data.find(np.float32(500).tobytes())] ^= 1
    path.write_bytes(data)
    assert "the checksum (CRC-32) differs" in refusal(path)


def test_weights_that_unpack_to_much_more(tmp_path):
    path = lying(keras(tmp_path / "x.keras", zipfile.ZIP_DEFLATED), "model.weights.h5", 2**31)
    assert "2,147,483,648 bytes or more from a file of" in refusal(path)


def test_a_zip_behind_hdf5_is_not_looked_at(tmp_path):
    """A file that is both: its first bytes decide."""
    path = hdf5(tmp_path / "x", lambda file: file.create_dataset("w", data=np.ones(2)))
    path.write_bytes(path.read_bytes() + keras(tmp_path / "y").read_bytes())
    with open_reader(path) as reader:
        assert list(reader.tensors) == ["w"]
