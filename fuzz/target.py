"""The target: writes bytes to a file and reads all of it with monitored readers.

Two outcomes are allowed: every tensor with its announced shape and dtype, or a `WeightsConvertError` of
printable lines.
"""

from __future__ import annotations

import codecs
import importlib
import io
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert import Checkpoint, WeightsConvertError, load
from weights_convert.examine import facts
from weights_convert.formats import open_reader
from weights_convert.optimizer.state import facts_of

READERS = {  # name -> suffix of its files
    "torch_zip": ".pth",
    "torch_stream": ".pth",
    "npz": ".npz",
    "keras_h5": ".weights.h5",
    "keras_zip": ".keras",
    "tf1": ".ckpt",
    "safetensors": ".safetensors",
    "caffe": ".caffemodel",
    "folder": "",  # an input is an archive of its files
}
_ADAM = {"optimizer": "adam", "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
CARRIED: tuple[dict[str, Any], ...] = (  # facts that a user may give about the optimiser in a file
    {},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "leave_out": "learning_rate"},
    {"optimizer": "sgd", "momentum": 0.0},
    _ADAM,
)
MEMORY = 2**30  # bytes that reading one file may take

# Forbidden for readers: names of Python's audit events, or their beginnings.
_FORBIDDEN = (
    "exec", "import", "pickle.find_class", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "subprocess.", "socket.", "ctypes.", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink",
    "os.link", "os.chmod", "os.chown", "os.truncate", "shutil.", "tempfile.", "webbrowser.", "urllib.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """Records Python's audit events while `folder` is set. A hook cannot be removed."""

    folder: str | None = None
    seen: list[str]
    installed = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            inside = isinstance(path, str) and path.startswith(self.folder)
            if not inside or (isinstance(flags, int) and flags & _WRITING):
                self.seen.append(f"open {path!r} with flags {flags}")
        elif event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:200]}")


_watch = _Watch()
# Python imports these on first use in a text
codecs.lookup("raw_unicode_escape")
codecs.lookup("utf-32-le")
importlib.import_module("unicodedata")


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise `AssertionError` for any activity except reading files of `folder`."""
    if not _watch.installed:
        sys.addaudithook(_watch.hook)
        _watch.installed = True
    _watch.seen, _watch.folder = [], str(folder)
    try:
        yield
    finally:
        _watch.folder = None
    assert not _watch.seen, _watch.seen


def put(reader: str, data: bytes, folder: Path) -> Path:
    """Write an input as the file or files that it represents."""
    path = folder / f"x{READERS[reader]}"
    if reader == "folder":
        return _unpacked(data, path)
    if reader != "tf1":
        path.write_bytes(data)
        return path
    index, shard = parts(data)
    Path(f"{path}.index").write_bytes(index)
    for number, shards in ((0, 1), (0, 2), (1, 2)):
        Path(f"{path}.data-{number:05d}-of-{shards:05d}").write_bytes(shard)
    return path


def _unpacked(data: bytes, path: Path) -> Path:
    """A folder with the plain files of an archive, without any file of the input before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if Path(info.filename).name == info.filename and info.filename.isprintable():
                (path / info.filename).write_bytes(archive.read(info))
    return path


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Split an input into the index and the data of a TF1 checkpoint; the index's length comes first."""
    length = int.from_bytes(data[:4], "little")
    return data[4 : 4 + length], data[4 + length :]


def joined(index: bytes, shard: bytes) -> bytes:
    """The inverse of `parts`."""
    return len(index).to_bytes(4, "little") + index + shard


def read_all(path: Path) -> dict[str, np.ndarray] | None:
    """Every tensor, or None if the file is refused. Then read it again with `load`, like `inspect`."""
    try:
        with open_reader(path) as reader:
            arrays = {name: reader.read(name) for name in reader.tensors}
            infos = dict(reader.tensors)
    except WeightsConvertError as error:
        check_error(error)
        arrays, infos = None, {}
    for name, array in (arrays or {}).items():
        assert (array.shape, array.dtype) == infos[name], name
        assert array.flags.c_contiguous, name
        assert array.flags.writeable, name
        assert array.dtype.isnative, name
    try:
        with load(path, assume=True) as checkpoint:
            facts(checkpoint)
            for settings in CARRIED:
                read_optimizer(checkpoint, settings)
    except WeightsConvertError as error:
        check_error(error)
    return arrays


def read_optimizer(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Every moment of the optimiser in a file, with the facts of a user, or nothing if it is refused."""
    try:
        state = checkpoint.training_state(facts_of(settings))
        for parts in state.moments.values():
            for name, part in parts.items():
                array = part.read()
                assert (array.shape, array.dtype) == (checkpoint.tensors[name].info.shape, part.info.dtype), (
                    name
                )
    except WeightsConvertError as error:
        check_error(error)


def check_error(error: WeightsConvertError) -> None:
    """Raise `AssertionError` for an error with bad lines, or one caused by a failed allocation."""
    lines = str(error).split("\n")
    assert len(lines) <= min(1 + len(error.details), 22)  # a long list ends with the number of the others
    assert all(line.isprintable() for line in lines)
    cause: BaseException | None = error
    while cause is not None:
        assert not isinstance(cause, MemoryError), "allocated what the file claims"
        cause = cause.__cause__ or cause.__context__


def try_input(reader: str, data: bytes, folder: Path) -> bool:
    """Read one input in an empty folder; return whether it was read or refused, else `AssertionError`."""
    path = put(reader, data, folder)
    with watched(folder):
        arrays = read_all(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < _baseline() + MEMORY, f"{peak} bytes of memory"
    return arrays is not None


def _baseline(start: list[int] = []) -> int:  # noqa: B006  (kept between calls)
    """The process's peak memory at the first call."""
    if not start:
        start.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return start[0]
