"""HDF5 files that only the library reads, in a process of its own, and .keras archives."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity_tests.tests.test_bombs import lying
from parity_tests.tests.test_hdf5 import ARRAYS, arrays, hdf5, refusal
from weights_convert import Limits, SourceError
from weights_convert.formats import hdf5_library, hdf5_process, open_reader
from weights_convert.formats.hdf5_process import ProcessReader


@pytest.fixture(autouse=True)
def others(monkeypatch) -> list[Path]:
    """Collects files for the other process instead of starting it, which takes half a second."""
    seen: list[Path] = []

    def refuse(path: Path, *_: object) -> None:
        seen.append(path)
        raise SourceError(f"{path}: for HDF5's library")

    monkeypatch.setattr(hdf5_process, "ProcessReader", refuse)
    return seen


@pytest.fixture
def process(monkeypatch, others) -> None:  # noqa: ARG001
    monkeypatch.undo()


# --------------------------------------------------------------------------------------------------
# Files that only the library reads


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("virtual", layout)


def odd(file: h5py.File) -> None:
    file["external"] = h5py.ExternalLink("/etc/passwd", "/x")
    file.create_dataset("elsewhere", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    virtual(file)
    zeros = np.zeros((8, 8), np.float32)
    file.create_dataset("lzf", data=zeros, chunks=(4, 4), compression="lzf")
    file.create_dataset(
        "gzip", data=zeros + 1, chunks=(4, 4), compression="gzip", shuffle=True, fletcher32=True
    )
    file.create_dataset("chunks", (10**6,), "u1", chunks=(1,))
    file.create_dataset("filled", (2, 2), "f4", fillvalue=2.0)
    arrays(file)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.usefixtures("process")
def test_other_kinds_of_hdf5(tmp_path, libver):
    with open_reader(hdf5(tmp_path / "x", odd, libver=libver)) as reader:
        assert isinstance(reader, ProcessReader)
        assert reader.left_out["external"] == "link to elsewhere, never followed"
        for name in ("elsewhere", "virtual"):
            assert reader.left_out[name] == "data kept in another file, never read"
        assert "packed by the filters [32000]" in reader.left_out["lzf"]
        assert "dataset in chunks, of which at most 300000" in reader.left_out["chunks"]
        assert reader.read("gzip").tolist() == [[1] * 8] * 8
        assert reader.read("filled").tolist() == [[2, 2]] * 2
        assert reader.read("bfloat16").astype(int).tolist() == [0, 1, 2]
        assert reader.metadata == {"a": 1}
        for name, array in ARRAYS.items():
            assert reader.read(f"a/{name}").tolist() == array.tolist()


def bomb(file: h5py.File) -> None:
    dataset = file.create_dataset("w", (16,), "f4", chunks=(16,), compression="gzip")
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(20_000_000), 9))


def claims(file: h5py.File) -> None:
    file.create_dataset("w", (2**40,), "f4")


def other_text(file: h5py.File) -> None:
    file["w"] = np.ones(2)
    file.attrs["samenet"] = 3


REFUSED = {
    bomb: "a chunk of 19",  # 20 MB in 19,459 bytes
    claims: "4,398,046,511,104 bytes or more from a file of",
    other_text: "its 'samenet' metadata is int64, expected text",
}


@pytest.mark.parametrize("fill", REFUSED)
@pytest.mark.usefixtures("process")
def test_what_the_other_process_refuses(tmp_path, fill):
    path = hdf5(tmp_path / "x", fill)
    with pytest.raises(SourceError) as caught, open_reader(path) as reader:
        reader.read("w")
    assert caught.value.message.startswith(f"{path}: ")
    assert REFUSED[fill] in caught.value.message


@pytest.mark.usefixtures("process")
def test_a_chunk_that_unpacks_to_more_than_its_size(tmp_path):
    """Small when packed: the library would unpack all of it before checking the size."""

    def fill(file: h5py.File) -> None:
        dataset = file.create_dataset("w", (10_000,), "f4", chunks=(10_000,), compression="gzip")
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(20_000_000), 9))

    with open_reader(hdf5(tmp_path / "x", fill)) as reader, pytest.raises(SourceError) as caught:
        reader.read("w")
    assert "unpacks to more than its 40004 bytes" in caught.value.message


@pytest.mark.usefixtures("process")
def test_the_library_is_not_loaded_here(tmp_path):
    code = (
        "import sys; from weights_convert.formats import open_reader\n"
        "with open_reader(sys.argv[1]) as reader: print(reader.read('gzip').sum(), 'h5py' in sys.modules)"
    )
    path = hdf5(tmp_path / "x", odd, libver="latest")
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "64.0 False\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot give up files there")
def test_the_process_opens_nothing_more(tmp_path):
    """Even if the library wants to: data in other files are never read."""
    (tmp_path / "other").write_bytes(b"secret")
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("w", (4,), "u1", external=[(str(tmp_path / "other"), 0, 4)])
    code = (
        "import sys; from pathlib import Path; from weights_convert.formats import hdf5_library as other\n"
        "from weights_convert.limits import Limits; path = Path(sys.argv[1])\n"
        "if sys.argv[2] == 'careless': other._give_up_files = lambda: None\n"
        "contents = other.LibraryFile(path.open('rb'), 0, path.stat().st_size, Limits())\n"
        "print(contents._file['w'][()].tobytes())"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "x"]
    careless, careful = (
        subprocess.run([*arguments, how], capture_output=True, text=True, check=False)
        for how in ("careless", "careful")
    )
    assert careless.stdout == "b'secr'\n"
    assert careful.stdout == ""
    assert "unable to open external raw data file" in careful.stderr


def answering(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for the other process, and `script` in place of that process, with a second of time."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(hdf5_process, "_SECONDS", 1)
    monkeypatch.setattr(hdf5_process, "_BYTES_PER_SECOND", 2**40)
    return hdf5(folder / "x", claims)


def listing(*tensor: object) -> str:
    return "echo '" + json.dumps({"tensors": [tensor], "left_out": {}, "metadata": {}, "networks": {}}) + "'"


ENDINGS = {
    "kill -SEGV $$": "ended with -11",
    "exit 1": "ended with 1",
    "exec sleep 60": "was still reading after 1 s",
    "while true; do echo -n nonsense; done": "was still reading after 1 s",
    "echo 3; exec sleep 60": "ended with -9",
    "echo '{}'": "gave an invalid answer ('tensors')",
    """echo '{"tensors": [], "left_out": []}'""": "gave an invalid answer ('list' object has no attribute",
    listing("w", [2], "object"): "gave an invalid answer ('object')",
    listing("w", [2, -1], "float32"): "gave an invalid answer (shape [2, -1])",
    listing("w", [2.5], "float32"): "gave an invalid answer (shape [2.5])",
    listing("w", [2**40], "float32"): "4,398,046,511,104 bytes or more from a file of",
    listing("w", [2] * 33, "int8"): "impossible shape",
}


@pytest.mark.skipif(sys.platform == "win32", reason="starts scripts by their first line")
@pytest.mark.parametrize("script", ENDINGS)
@pytest.mark.usefixtures("process")
def test_a_process_that_ends_otherwise(tmp_path, monkeypatch, script):
    """A crash or a loop in the library is an error, and the answers of its process are not trusted."""
    message = refusal(answering(script, tmp_path, monkeypatch))
    assert ENDINGS[script] in message
    if "ended" in ENDINGS[script]:
        assert "HDF5 of a kind that Keras does not write (a dataset without data)" in message


LATER = {
    "kill -SEGV $$": "ended with -11",
    "exec sleep 60": "was still reading after 1 s",
    "echo '{}'; echo": "ended with 0",
    """echo '{"error": "x: no", "limit": false}'""": "x: no",
}


@pytest.mark.skipif(sys.platform == "win32", reason="starts scripts by their first line")
@pytest.mark.parametrize("script", LATER)
@pytest.mark.usefixtures("process")
def test_a_process_that_ends_while_it_reads(tmp_path, monkeypatch, script):
    path = answering(f"{listing('w', [2], 'float32')}; read -r line; {script}", tmp_path, monkeypatch)
    with open_reader(path) as reader, pytest.raises(SourceError) as caught:
        reader.read("w")
    assert LATER[script] in caught.value.message


@pytest.fixture
def reader(tmp_path, process) -> Iterator[ProcessReader]:  # noqa: ARG001
    with open_reader(hdf5(tmp_path / "x", odd, libver="latest")) as opened:
        assert isinstance(opened, ProcessReader)
        yield opened


def test_a_process_that_is_gone_before_it_is_asked(tmp_path, reader, run, monkeypatch):
    """Neither an unread request nor closing the pipe hides the reason."""
    real = ProcessReader._ask

    def ask(self: ProcessReader, name: str) -> None:
        self._process.kill()
        self._process.wait()
        real(self, name)

    monkeypatch.setattr(ProcessReader, "_ask", ask)
    with pytest.raises(SourceError, match="ended with -9"):
        reader.read("gzip")
    path = hdf5(tmp_path / "se.h5", chunked_block)
    ran = run("convert", path, tmp_path / "x.npz")
    assert ran.code == 2
    assert "ended with -9" in ran.err


def chunked_block(file: h5py.File) -> None:
    for layer, shape in (("fc1", (8, 2)), ("fc2", (2, 8))):
        file.create_dataset(f"{layer}/vars/0", data=np.ones(shape, np.float32), chunks=shape)
        file.create_dataset(f"{layer}/vars/1", data=np.ones(shape[1:], np.float32))


def test_after_an_interrupted_read_nothing_is_read(reader, monkeypatch):
    """Bytes left in the pipe must not be taken for the next tensor."""
    real = ProcessReader._answer

    def interrupted(self: ProcessReader, *_: object) -> None:
        self._process.stdout.peek(1)  # the answer has arrived
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessReader, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.read("gzip")
    monkeypatch.setattr(ProcessReader, "_answer", real)
    with pytest.raises(SourceError, match="ended with -9"):
        reader.read("filled")


def test_an_interrupted_ask(reader, monkeypatch):
    monkeypatch.setattr(np, "empty", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        reader.read("gzip")
    monkeypatch.undo()
    assert reader.read("filled").tolist() == [[2, 2]] * 2  # no request was sent


@pytest.mark.usefixtures("process")
def test_limits_beyond_any_clock(tmp_path):
    path = hdf5(tmp_path / "x", odd, libver="latest")
    with open_reader(path, limits=Limits(max_bytes=2**63)) as reader:
        assert reader.read("filled").tolist() == [[2, 2]] * 2


def test_unsupported_memory_limits(monkeypatch):
    """macOS accepts no memory limit; the other limits are set."""
    resource = pytest.importorskip("resource", reason="Windows has none")
    set_: dict[int, tuple[int, int]] = {}

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        if which == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")
        set_[which] = limits

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    hdf5_library._bound(2**30)
    assert set_ == {resource.RLIMIT_CORE: (0, 0), resource.RLIMIT_CPU: (1084, 1084)}


def test_files_of_keras_need_no_other_process(tmp_path, others):
    hdf5(tmp_path / "x", arrays)
    with open_reader(tmp_path / "x"):
        assert others == []
    assert "library" in refusal(hdf5(tmp_path / "y", claims))
    assert others == [tmp_path / "y"]


# --------------------------------------------------------------------------------------------------
# .keras


def keras(path: Path, method: int = 0, **others: bytes) -> Path:
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
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
