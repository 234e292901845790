"""Any HDF5 file read by HDF5's own library, in the separate process that `hdf5_process` starts.

On hostile input the library may loop, crash, or fill or damage the memory. This process cannot open or write
files and has bounded memory; the parent process limits its time.

Protocol, in lines of JSON: first the list of the file's contents or an error; then for each requested name
`{}` followed by the tensor's bytes, or an error.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from weights_convert.errors import WeightsConvertError
from weights_convert.formats.archive import Window
from weights_convert.formats.base import Reader, one_line
from weights_convert.formats.hdf5_plain import BFLOAT16, OF_LAYER, STEPS_PER_TENSOR, Dataset
from weights_convert.formats.hdf5_process import DTYPES
from weights_convert.formats.keras_hdf5 import KerasReader
from weights_convert.limits import LimitError, LimitReached, Limits

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_CHECKSUM = 4  # bytes of Fletcher's checksum, added to a chunk before packing
_MOST_CHUNKS = 300_000  # HDF5 visits each chunk, even missing ones: 3.6 us each


class LibraryFile:
    """`length` bytes of `file` from `start`, opened by h5py; the same interface as `PlainFile`.

    Use it in a process that ends with it: afterwards the process cannot open other files.
    """

    def __init__(self, file: BinaryIO, start: int, length: int, limits: Limits):
        self._limits, self._steps, self._chunks = limits, 0, 0
        self.layers: dict[str, str] = {}
        _give_up_files()
        self._file = h5py.File(Window(file, start, length), "r")

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
        """Walk like `PlainFile`: groups may contain each other in any number of ways."""
        if depth > self._limits.max_depth:
            raise LimitReached("levels or more of groups", depth, "max_depth", self._limits.max_depth)
        for name in group:
            self._steps += 1
            most = self._limits.max_tensors * STEPS_PER_TENSOR
            if self._steps > most:
                raise LimitReached("or more groups and datasets", self._steps, "max_tensors", most)
            # h5py returns bytes for a name that is not UTF-8
            raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
            path = prefix + raw.decode("utf-8", "backslashreplace")
            if group.id.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                yield Dataset(path, "link to elsewhere, never followed")
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                if OF_LAYER.fullmatch(path) and isinstance(layer := item.attrs.get("name"), str):
                    self.layers[path.removesuffix("/vars")] = layer
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
    """The reason why a dataset is not read, else ""."""
    made, dtype = dataset.id.get_create_plist(), dataset.dtype
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        return "data kept in another file, never read"
    if not (_is_bfloat16(dataset) or (dataset.shape is not None and dtype.name in DTYPES)):
        return f"dataset of dtype {one_line(dtype)}"
    if not _FILTERS.issuperset(filters) or len(set(filters)) < len(filters):
        return (
            f"dataset packed by the filters {filters}, of which only {sorted(_FILTERS)} are read, once each"
        )
    return ""


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is Keras's bfloat16: two opaque bytes, marked by an attribute."""
    if dataset.dtype.kind != "V" or dataset.dtype.itemsize != 2 or dataset.shape is None:
        return False
    said = dataset.attrs.get("dtype")
    return isinstance(said, str) and said == "bfloat16"


def _chunks(dataset: h5py.Dataset) -> int:
    """The number of chunks of a dataset; 0 if it is not chunked."""
    if dataset.chunks is None:
        return 0
    return math.prod(-(-n // m) for n, m in zip(dataset.shape, dataset.chunks, strict=True))


def _check_chunks(dataset: h5py.Dataset) -> None:
    """Raise `ValueError` for a chunk that unpacks to more than its size: HDF5 checks only after unpacking."""
    wanted = math.prod(dataset.chunks) * dataset.dtype.itemsize + _CHECKSUM
    infos: list[Any] = []
    dataset.id.chunk_iter(infos.append)  # access by index would take n^2 steps
    for info in infos:
        if info.size > wanted + wanted // 64 + 64:
            raise ValueError(f"a chunk of {info.size} bytes for {wanted}")
        if dataset.compression is not None and not info.filter_mask:
            _, packed = dataset.id.read_direct_chunk(info.chunk_offset)
            if len(zlib.decompressobj().decompress(packed, wanted + 1)) > wanted:
                raise ValueError(f"a chunk that unpacks to more than its {wanted} bytes")


# --------------------------------------------------------------------------------------------------
# The process


def _bound(nbytes: int) -> None:
    """Limit memory, for a file of `nbytes`, and processor time, in case the parent is killed."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory, seconds = 2 * nbytes + 2**31, 60 + nbytes // 2**20
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: seconds}
    for limit, value in limits.items():
        value = min(value, 2**62)
        with suppress(ValueError):  # a lower limit is set already; macOS accepts no memory limit
            resource.setrlimit(limit, (value, value))


def _give_up_files() -> None:
    """Keep the open files, but prevent opening other files, sockets or pipes, and writing files."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _say(answers: BinaryIO, what: object, data: Any = b"") -> None:
    answers.write(json.dumps(what).encode() + b"\n")
    answers.write(data)
    answers.flush()


def _refuse(answers: BinaryIO, error: WeightsConvertError) -> None:
    _say(answers, {"error": error.message, "limit": isinstance(error, LimitError)})


def _serve(reader: Reader, requests: BinaryIO, answers: BinaryIO) -> None:
    tensors = [[name, info.shape, info.dtype.name] for name, info in reader.tensors.items()]
    about = {"left_out": reader.left_out, "metadata": reader.metadata, "networks": reader.networks}
    _say(answers, {"tensors": tensors, **about})
    for line in requests:
        try:
            array = reader.read(json.loads(line))
        except WeightsConvertError as error:
            _refuse(answers, error)
        else:
            _say(answers, {}, array.reshape(-1).view(np.uint8).data)


def _main(request: dict[str, Any]) -> None:
    limits, path = Limits(**request["limits"]), Path(request["path"])
    _bound(limits.bytes_of(path.stat().st_size))
    answers = open(1, "wb", closefd=False)  # noqa: SIM115  (sys.stdout may be unbuffered: partial writes)
    try:
        reader = KerasReader(path, limits, LibraryFile)
    except WeightsConvertError as error:
        _refuse(answers, error)
    else:
        _serve(reader, sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
