"""HDF5 of any kind, by its own library; for files that `hdf5_plain` does not read.

The library may loop, crash or fill the memory on hostile input. So another process opens the file first and
reads it whole, in bounded time and memory (`probe`); only a file that it came through is opened here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from weights_convert.errors import SourceError, WeightsConvertError
from weights_convert.formats.base import one_line
from weights_convert.formats.hdf5_plain import BFLOAT16, STEPS_PER_TENSOR, Dataset
from weights_convert.limits import LimitReached, Limits

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_CHECKSUM = 4  # bytes that Fletcher's may add to a chunk before it is packed
_MOST_CHUNKS = 300_000  # HDF5 visits each of them, even those that are not there: 3.6 us each
_SECONDS, _BYTES_PER_SECOND = 10, 50 * 2**20  # what a probe may take
_REFUSED = 2


class LibraryFile:
    """An HDF5 file that h5py has open; the same view of it as `PlainFile`."""

    def __init__(self, file: Any, limits: Limits):
        self._limits, self._steps, self._chunks = limits, 0, 0
        self._file = h5py.File(file, "r")

    def __enter__(self) -> LibraryFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def attribute(self, name: str) -> Any:
        return self._file.attrs.get(name)

    def has_attribute(self, name: str) -> bool:
        return name in self._file.attrs

    def datasets(self) -> Iterator[Dataset]:
        return self._walk(self._file, "", 1)

    def read(self, dataset: Dataset) -> np.ndarray:
        found = self._file[dataset.path]
        if found.chunks is not None:
            _check_chunks(found)
        array = np.asarray(found[()])
        array = array.view(BFLOAT16) if dataset.dtype == BFLOAT16 else array
        return np.asarray(array, dtype=dataset.dtype, order="C").reshape(dataset.shape)

    def _walk(self, group: h5py.Group, prefix: str, depth: int) -> Iterator[Dataset]:
        """As `PlainFile` does it: groups may hold one another in any number of ways."""
        if depth > self._limits.max_depth:
            raise LimitReached("levels or more of groups", depth, "max_depth", self._limits.max_depth)
        for name in group:
            self._steps += 1
            most = self._limits.max_tensors * STEPS_PER_TENSOR
            if self._steps > most:
                raise LimitReached("or more groups and datasets", self._steps, "max_tensors", most)
            # h5py gives bytes for a name that is not UTF-8
            raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
            path = prefix + raw.decode("utf-8", "backslashreplace")
            if group.id.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                yield Dataset(path, "link to elsewhere, never followed")
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from self._walk(item, f"{path}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                yield self._dataset(path, item)

    def _dataset(self, path: str, dataset: h5py.Dataset) -> Dataset:
        if why := _why_not(dataset):
            return Dataset(path, why)
        chunks = self._chunks + _chunks(dataset)
        if chunks > _MOST_CHUNKS:
            return Dataset(path, f"dataset in chunks, of which at most {_MOST_CHUNKS} in all are read")
        self._chunks = chunks
        dtype = BFLOAT16 if dataset.dtype.kind == "V" else dataset.dtype.newbyteorder("=")
        return Dataset(path, "", dataset.shape, dtype)


def _why_not(dataset: h5py.Dataset) -> str:
    """Why a dataset is not read; "" for one that is."""
    made, dtype = dataset.id.get_create_plist(), dataset.dtype
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        return "data kept in another file, never read"
    if not (_is_bfloat16(dataset) or (dataset.shape is not None and dtype.kind in "fiub")):
        return f"dataset of dtype {one_line(dtype)}"
    if not _FILTERS.issuperset(filters) or len(set(filters)) < len(filters):
        return (
            f"dataset packed by the filters {filters}, of which only {sorted(_FILTERS)} are read, once each"
        )
    return ""


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Keras keeps it as two opaque bytes, and says so in an attribute."""
    if dataset.dtype.kind != "V" or dataset.dtype.itemsize != 2 or dataset.shape is None:
        return False
    said = dataset.attrs.get("dtype")
    return isinstance(said, str) and said == "bfloat16"


def _chunks(dataset: h5py.Dataset) -> int:
    """How many pieces a dataset is kept in; 0 where it is one."""
    if dataset.chunks is None:
        return 0
    return math.prod(-(-n // m) for n, m in zip(dataset.shape, dataset.chunks, strict=True))


def _check_chunks(dataset: h5py.Dataset) -> None:
    """`ValueError` for a chunk that unpacks to more than it is: HDF5 unpacks all before it looks."""
    wanted = math.prod(dataset.chunks) * dataset.dtype.itemsize + _CHECKSUM
    infos: list[Any] = []
    dataset.id.chunk_iter(infos.append)  # one by one by their numbers would take n^2 steps
    for info in infos:
        if info.size > wanted + wanted // 64 + 64:
            raise ValueError(f"a chunk of {info.size} bytes for {wanted}")
        if dataset.compression is not None and not info.filter_mask:
            _, packed = dataset.id.read_direct_chunk(info.chunk_offset)
            if len(zlib.decompressobj().decompress(packed, wanted + 1)) > wanted:
                raise ValueError(f"a chunk that unpacks to more than its {wanted} bytes")


# --------------------------------------------------------------------------------------------------
# The other process


def probe(path: Path, limits: Limits, unusual: str) -> None:
    """Raise `SourceError` unless another process has opened the file and read all of it."""
    size = path.stat().st_size
    seconds = _SECONDS + limits.bytes_of(size) // _BYTES_PER_SECOND
    request = {"path": str(path.absolute()), "seconds": seconds, "limits": dataclasses.asdict(limits)}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, json.dumps(request)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        ended = f"was still reading after {seconds} s"
    except OSError as error:
        ended = f"could not be started ({error.strerror})"
    else:
        if done.returncode == 0:
            return
        if done.returncode == _REFUSED:
            raise SourceError(json.loads(done.stdout))
        ended = f"ended with {done.returncode}"
    raise SourceError(
        f"{path}: HDF5 of a kind that Keras does not write ({unusual}), and the process that was to try it "
        f"{ended}; if you trust it, save it again with Keras"
    )


def _limit_process(seconds: int, nbytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows; there is still the time
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def _main(request: dict[str, Any]) -> int:
    """What the other process does."""
    from weights_convert.formats import keras_hdf5

    limits, path = Limits(**request["limits"]), Path(request["path"])
    _limit_process(request["seconds"], 2 * limits.bytes_of(path.stat().st_size) + 2**31)
    try:
        with keras_hdf5.KerasReader(path, limits, probed=True) as reader:
            for name in reader.tensors:
                reader.read(name)
    except WeightsConvertError as error:
        sys.stdout.write(json.dumps(error.message))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
