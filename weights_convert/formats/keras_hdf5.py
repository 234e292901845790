"""Keras weights: `.weights.h5` read and written; `.keras` (a zip around one) and the older `.h5` read.

Layout, from Keras's `saving_lib.py`: a group per layer, in it `vars/<i>`, the layer's variables in order,
trainable ones first. bfloat16 is stored as two opaque bytes with the attribute `dtype`.
The older `.h5` (`legacy_h5_format.py`): `<layer>/<variable's path>`, below `model_weights` where a whole
model was saved; seen here as `<layer>/<variable>`. Only numbers are taken, neither a config nor any code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cache
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import h5py
import numpy as np

from weights_convert.errors import DestinationError, SourceError, WeightsConvertError
from weights_convert.formats.archive import Window, open_zip, stored, unpacked
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    as_announced,
    dump_metadata,
    one_line,
    parse_metadata,
)
from weights_convert.formats.hdf5_plain import BFLOAT16, Dataset, PlainFile, Unusual
from weights_convert.limits import DEFAULT, LimitReached, Limits
from weights_convert.memory import slabs

if TYPE_CHECKING:
    from weights_convert.formats.hdf5_library import LibraryFile

_INNER = "model.weights.h5"


class KerasReader(Reader):
    """A `.weights.h5` file or the one inside a `.keras` file; names are HDF5 paths (`conv1/vars/0`)."""

    format = "keras"

    def __init__(self, path: Path, limits: Limits = DEFAULT, probed: bool = False):
        super().__init__(path, limits)
        self._opened = ExitStack()
        self._datasets: dict[str, Dataset] = {}
        try:
            file, start, length = self._inner()
            try:
                self._contents: PlainFile | LibraryFile = PlainFile(file, start, length, limits)
                self._list()
            except Unusual as unusual:
                from weights_convert.formats.hdf5_library import LibraryFile, probe

                if not probed:
                    probe(path, limits, str(unusual))
                self._contents = self._opened.enter_context(LibraryFile(Window(file, start, length), limits))
                self._list()
        except Exception as error:  # what h5py raises for damaged input is nearly every kind
            self.close()
            if isinstance(error, WeightsConvertError):
                raise
            if isinstance(error, LimitReached):
                raise error.at(path) from None
            raise SourceError(
                f"{path}: not a readable Keras file, it is truncated or damaged ({one_line(error)})"
            ) from None

    def _inner(self) -> tuple[BinaryIO, int, int]:
        """The HDF5 file: in which file, from which byte on, how long. Of a `.keras` only that one is read."""
        file = self._opened.enter_context(self.path.open("rb"))
        size = file.seek(0, 2)
        self.has(size)
        file.seek(0)
        if file.read(2) != b"PK":
            return file, 0, size
        archive = open_zip(self.path, file, self.limits)
        info = archive.getinfo(_INNER)
        if info.compress_type == zipfile.ZIP_STORED:
            return file, stored(file, info), info.file_size
        self.claim(info.file_size)  # unpacked once, as HDF5 is read to and fro
        return unpacked(archive, info), 0, info.file_size

    def _list(self) -> None:
        contents = self._contents
        text = contents.attribute(METADATA_NAME)
        older = any(map(contents.has_attribute, ("layer_names", "layer_names0")))
        datasets = {dataset.path: dataset for dataset in contents.datasets()}
        if older or any(path.startswith("model_weights/") for path in datasets):  # Keras 2, or 3's `.h5`
            datasets = {name: datasets[path] for name, path in _short_names(datasets).items()}
        for name, dataset in datasets.items():
            if dataset.why:
                self.leave_out(name, dataset.why)
            else:
                self._datasets[name] = dataset
                self.add(name, TensorInfo(dataset.shape, dataset.dtype))
        if text is not None:
            self.metadata = parse_metadata(text, self.path, self.limits)

    def read(self, name: str) -> np.ndarray:
        try:
            return self._contents.read(self._datasets[name])
        except Exception as error:  # as above
            raise SourceError(f"{self.path}: {one_line(name)} is damaged ({one_line(error)})") from None

    def close(self) -> None:
        self._opened.close()


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
    read = as_announced(path, tensors, read)
    with path.open("w+b") as opened, _Sink(opened) as sink, h5py.File(sink, "w") as file:
        group = cache(
            lambda folder: file.require_group(folder) if folder else file
        )  # asked for the same one each time, h5py looks at every step of it
        file.attrs[METADATA_NAME] = dump_metadata(metadata)
        for name, (_, dtype) in tensors.items():
            if sink.error:
                break
            folder, _, leaf = name.rpartition("/")
            if dtype == BFLOAT16:
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
