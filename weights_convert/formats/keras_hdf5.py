"""Keras weights: `.weights.h5` read and written; `.keras` (a zip around one) and the older `.h5` read.

Layout, from Keras's `saving_lib.py`: a group per layer, in it `vars/<i>`, the layer's variables in order,
trainable ones first. bfloat16 is stored as two opaque bytes with the attribute `dtype`.
The older `.h5` (`legacy_h5_format.py`): `<layer>/<variable's path>`, below `model_weights` where a whole
model was saved; seen here as `<layer>/<variable>`. Only numbers are taken, neither a config nor any code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from io import BufferedRandom
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    as_announced,
    dump_metadata,
    one_line,
    parse_metadata,
)
from weights_convert.memory import slabs

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_INNER = "model.weights.h5"
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, zipfile.BadZipFile)


class KerasReader(Reader):
    """A `.weights.h5` file or the one inside a `.keras` file; names are HDF5 paths (`conv1/vars/0`)."""

    format = "keras"

    def __init__(self, path: Path):
        super().__init__(path)
        self._zip: zipfile.ZipFile | None = None
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        try:
            if zipfile.is_zipfile(path):
                self._zip = zipfile.ZipFile(path)
                self._file = h5py.File(self._zip.open(_INNER), "r")
            else:
                self._file = h5py.File(path, "r")
            datasets = dict(_datasets(self._file, ""))
            paths = _short_names(datasets) if _is_older(self._file) else {n: n for n in datasets}
            for name, path_inside in paths.items():
                self._list(name, datasets[path_inside])
            text = self._file.attrs.get(METADATA_NAME)
        except _DAMAGE as error:
            self.close()
            raise SourceError(
                f"{path}: not a readable Keras file, it is truncated or damaged ({one_line(error)})"
            ) from None
        if text is not None:
            self.metadata = parse_metadata(text, path)

    def _list(self, name: str, dataset: h5py.Dataset | None) -> None:
        if dataset is None:
            self.left_out[name] = "link to elsewhere, never followed"
            return
        self._datasets[name] = dataset
        made = dataset.id.get_create_plist()
        if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
            self.left_out[name] = "data kept in another file, never read"
            return
        shape, dtype = dataset.shape, dataset.dtype
        if dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
            self.tensors[name] = TensorInfo(shape, _BFLOAT16)
        elif shape is None or dtype.kind not in "fiub":
            self.left_out[name] = f"dataset of dtype {dtype}"
        else:
            self.tensors[name] = TensorInfo(shape, dtype.newbyteorder("="))

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self.tensors[name]
        try:
            array = np.asarray(self._datasets[name][()])
        except _DAMAGE as error:
            raise SourceError(f"{self.path}: {one_line(name)} is damaged ({one_line(error)})") from None
        if dtype == _BFLOAT16:
            array = array.view(_BFLOAT16)
        return np.asarray(array, dtype=dtype, order="C").reshape(shape)

    def close(self) -> None:
        for file in (self._file, self._zip):
            if file is not None:
                file.close()


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


def _datasets(group: h5py.Group, prefix: str) -> Iterator[tuple[str, h5py.Dataset | None]]:
    """Every dataset below a group by its path; None for a link that leads out of the file or sideways."""
    for name in group:
        # the low-level call: `group.get(name, getlink=True)` took a third of the time to open a file
        if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
            yield prefix + name, None
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{prefix}{name}/")
        elif isinstance(item, h5py.Dataset):
            yield prefix + name, item


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
