"""Keras weights: `.weights.h5` read and written; `.keras` (a zip around one) and the older `.h5` read.

Layout, from Keras's `saving_lib.py`: a group per layer, in it `vars/<i>`, the layer's variables in order,
trainable ones first. bfloat16 is stored as two opaque bytes with the attribute `dtype`.
The older `.h5` (`legacy_h5_format.py`): `<layer>/<variable's path>`, below `model_weights` where a whole
model was saved; seen here as `<layer>/<variable>`. Only numbers are taken, neither a config nor any code.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from io import BufferedRandom
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from weights_convert.errors import DestinationError, SourceError, WeightsConvertError
from weights_convert.formats.archive import open_zip, unpacked
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    dump_metadata,
    one_line,
    parse_metadata,
)
from weights_convert.limits import DEFAULT, Limits, too_many
from weights_convert.memory import slabs

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_INNER = "model.weights.h5"
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_CHECKSUM = 4  # bytes that Fletcher's may add to a chunk before it is packed
_MOST_CHUNKS = 300_000  # HDF5 visits each of them, even those that are not there: 3.6 us each
_STEPS_PER_TENSOR = 8  # groups on the way to it


class KerasReader(Reader):
    """A `.weights.h5` file or the one inside a `.keras` file; names are HDF5 paths (`conv1/vars/0`)."""

    format = "keras"

    def __init__(self, path: Path, limits: Limits = DEFAULT):
        super().__init__(path, limits)
        self._opened = ExitStack()
        self._steps = self._chunks = 0
        self._datasets: dict[str, h5py.Dataset] = {}
        try:
            self._file = self._open()
            datasets = dict(self._walk(self._file, "", 0))
            paths = _short_names(datasets) if _is_older(self._file) else {n: n for n in datasets}
            for name, path_inside in paths.items():
                self._list(name, datasets[path_inside])
            text = self._file.attrs.get(METADATA_NAME)
        except Exception as error:  # what h5py raises for damaged input is nearly every kind
            self.close()
            if isinstance(error, WeightsConvertError):
                raise
            raise SourceError(
                f"{path}: not a readable Keras file, it is truncated or damaged ({one_line(error)})"
            ) from None
        if text is not None:
            self.metadata = parse_metadata(text, path, limits)

    def _open(self) -> h5py.File:
        """The HDF5 file, or the one inside: only that entry of a `.keras` is opened."""
        file = self._opened.enter_context(self.path.open("rb"))
        self.has(file.seek(0, 2))
        file.seek(0)
        if file.read(2) != b"PK":
            return self._opened.enter_context(h5py.File(self.path, "r"))
        archive = open_zip(self.path, file, self.limits)
        info = archive.getinfo(_INNER)
        inner: Any
        if info.compress_type == zipfile.ZIP_STORED:
            inner = self._opened.enter_context(archive.open(info))
        else:  # HDF5 reads to and fro, and every step back would unpack it from its beginning
            self.claim(info.file_size)
            inner = unpacked(archive, info)
        return self._opened.enter_context(h5py.File(inner, "r"))

    def _walk(self, group: h5py.Group, prefix: str, depth: int) -> Iterator[tuple[str, h5py.Dataset | None]]:
        """Every dataset below a group by its path; None for a link that leads out of the file or sideways.

        Groups may hold one another in any number of ways, so groups are counted as other entries are.
        """
        if depth > self.limits.max_depth:
            raise too_many(self.path, "levels or more of groups", depth, "max_depth", self.limits.max_depth)
        for name in group:
            self._steps += 1
            most = self.limits.max_tensors * _STEPS_PER_TENSOR
            if self._steps > most:
                raise too_many(self.path, "or more groups and datasets", self._steps, "max_tensors", most)
            # h5py gives bytes for a name that is not UTF-8
            raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
            path = prefix + raw.decode("utf-8", "backslashreplace")
            # the low-level call: `group.get(name, getlink=True)` took a third of the time to open a file
            if group.id.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
                yield path, None
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from self._walk(item, f"{path}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                yield path, item

    def _list(self, name: str, dataset: h5py.Dataset | None) -> None:
        if dataset is None:
            self.leave_out(name, "link to elsewhere, never followed")
        elif why := _why_not(dataset):
            self.leave_out(name, why)
        elif (chunks := self._chunks + _chunks(dataset)) > _MOST_CHUNKS:
            self.leave_out(name, f"dataset in chunks, of which at most {_MOST_CHUNKS} in all are read")
        else:
            self._chunks = chunks
            bfloat16 = dataset.dtype.kind == "V"
            dtype = _BFLOAT16 if bfloat16 else dataset.dtype.newbyteorder("=")
            self._datasets[name] = dataset
            self.add(name, TensorInfo(dataset.shape, dtype))

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self.tensors[name]
        try:
            dataset = self._datasets[name]
            if dataset.chunks is not None:
                _check_chunks(dataset)
            array = np.asarray(dataset[()])
        except Exception as error:  # as above
            raise SourceError(f"{self.path}: {one_line(name)} is damaged ({one_line(error)})") from None
        if dtype == _BFLOAT16:
            array = array.view(_BFLOAT16)
        return np.asarray(array, dtype=dtype, order="C").reshape(shape)

    def close(self) -> None:
        self._datasets.clear()
        self._opened.close()


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


def _is_older(file: h5py.File) -> bool:
    """Whether this is the layout of Keras 2, which Keras 3 still writes as `.h5`."""
    return "model_weights" in file or any(name in file.attrs for name in ("layer_names", "layer_names0"))


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """`conv1/kernel` -> `model_weights/conv1/conv1_1/kernel:0`; layers inside layers keep their own names."""
    found: dict[str, list[str]] = {}
    for path in paths:
        layer, *inner = path.removeprefix("model_weights/").split("/")
        leaf = inner[-1].removesuffix(":0") if inner else ""
        found.setdefault(path if path.startswith("optimizer_weights/") else f"{layer}/{leaf}", []).append(
            path
        )
    names = {}
    for name, same in found.items():
        for path in same:
            inner_name = "/".join(path.removesuffix(":0").split("/")[-2:])
            alone = len(same) == 1
            names[name if alone else inner_name if inner_name not in names else path] = path
    return names


class _Sink:
    """A file for h5py to write that keeps its first error for the end, because HDF5 cannot go on after one.

    Measured (h5py 3.14, HDF5 1.14.6): with a full disk the process ends with a segmentation fault.
    """

    def __init__(self, file: BufferedRandom):
        self._file, self._position, self._end = file, 0, 0
        self.error: OSError | None = None

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.flush()
        if self.error:
            raise self.error

    def seek(self, offset: int, whence: int = 0) -> None:
        self._position = offset + (self._end if whence else 0)
        self._attempt(self._file.seek, self._position)

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> None:
        self._attempt(self._file.write, data)
        self._position += len(data)
        self._end = max(self._end, self._position)

    def readinto(self, buffer: memoryview) -> int:
        return self._attempt(self._file.readinto, buffer) or 0

    read = readinto  # h5py looks whether it is there

    def truncate(self, size: int) -> None:
        self._attempt(self._file.truncate, size)
        self._end = size

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return None if self.error else action(*arguments)
        except OSError as error:
            self.error = error
            return None


def write_keras(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write a `.weights.h5` that `model.load_weights` reads, one tensor in memory at a time."""
    with path.open("w+b") as opened, _Sink(opened) as sink, h5py.File(sink, "w") as file:
        group = cache(
            lambda folder: file.require_group(folder) if folder else file
        )  # asked for the same one each time, h5py looks at every step of it
        file.attrs[METADATA_NAME] = dump_metadata(metadata)
        for name, (_, dtype) in tensors.items():
            if sink.error:
                break
            folder, _, leaf = name.rpartition("/")
            if dtype == _BFLOAT16:
                # Keras's own way: opaque bytes and an attribute
                dataset = _put(group(folder), leaf, read(name).view("V2"))
                dataset.attrs["dtype"] = "bfloat16"
            elif dtype.kind in "fiub":
                _put(group(folder), leaf, read(name))
            else:
                raise DestinationError(f"{path}: {name} is {dtype}, which HDF5 cannot hold")


def _put(group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    """Write one dataset; a large transposed one slab by slab, so that it is not copied whole."""
    if array.flags.c_contiguous:
        return group.create_dataset(name, data=array, track_times=False)
    dataset = group.create_dataset(name, array.shape, array.dtype, track_times=False)
    for index in slabs(array):
        dataset[index] = array[index]
    return dataset
