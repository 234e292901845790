"""Writes `.weights.h5` with h5py, like Keras; `keras` describes the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from io import BufferedRandom
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from weights_convert.errors import DestinationError
from weights_convert.formats.base import METADATA_NAME, TensorInfo, as_announced, dump_metadata, is_number
from weights_convert.formats.hdf5.plain import BFLOAT16
from weights_convert.memory import slabs


class _Sink:
    """An output file for h5py that reports its first error only at the end: HDF5 cannot handle one.

    Measured (h5py 3.14, HDF5 1.14.6): on a full disk the process ends with a segmentation fault.
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

    read = readinto  # h5py checks that it exists

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
    """Write a `.weights.h5` for `model.load_weights`, with one tensor in memory at a time."""
    read = as_announced(path, tensors, read)
    with path.open("w+b") as opened, _Sink(opened) as sink, h5py.File(sink, "w") as file:
        group = cache(
            lambda folder: file.require_group(folder) if folder else file
        )  # created once: h5py inspects every part of a new one
        file.attrs[METADATA_NAME] = dump_metadata(metadata)
        for name, (_, dtype) in tensors.items():
            if sink.error:
                break
            folder, _, leaf = name.rpartition("/")
            if dtype == BFLOAT16:
                # as in Keras: opaque bytes and an attribute
                dataset = _put(group(folder), leaf, read(name).view("V2"))
                dataset.attrs["dtype"] = "bfloat16"
            elif is_number(dtype):
                _put(group(folder), leaf, read(name))
            else:
                raise DestinationError(f"{path}: {name} is {dtype}, which HDF5 cannot hold")


def _put(group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    """Write one dataset; a large transposed one slab by slab, to avoid a full copy."""
    if array.flags.c_contiguous:
        return group.create_dataset(name, data=array, track_times=False)
    dataset = group.create_dataset(name, array.shape, array.dtype, track_times=False)
    for index in slabs(array):
        dataset[index] = array[index]
    return dataset
