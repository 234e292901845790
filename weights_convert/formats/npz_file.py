"""NumPy .npz archives: a zip of .npy files, read and written entry by entry, never pickled.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

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
from weights_convert.memory import write

_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError, RuntimeError)
_SUFFIX = ".npy"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzReader(Reader):
    """An .npz archive. Object arrays (pickles) are never loaded; they are listed in `left_out`."""

    format = "npz"

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise SourceError(
                f"{path}: not a readable .npz, it is truncated or damaged ({one_line(error)})"
            ) from None
        for entry in self._zip.namelist():
            name = entry.removesuffix(_SUFFIX)
            if not entry.endswith(_SUFFIX):
                self.left_out[entry] = "not an array"
                continue
            info, dtype = self._header(entry)
            if name == METADATA_NAME and dtype.kind == "U" and info.shape == ():
                self.metadata = parse_metadata(str(self._array(entry)), path)
            elif dtype.hasobject:
                self.left_out[name] = "array of Python objects (a pickle, never loaded)"
            elif dtype.kind not in "fiub":
                self.left_out[name] = f"array of dtype {dtype}"
            else:
                self.tensors[name] = info

    def _header(self, entry: str) -> tuple[TensorInfo, np.dtype]:
        """Shape and native dtype, and the dtype as stored; checks that the entry holds that many bytes."""
        try:
            with self._zip.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise ValueError(f".npy version {version}")
                shape, _, dtype = _HEADERS[version](file)
                info = TensorInfo(tuple(shape), dtype.newbyteorder("="))
                wanted = file.tell() + info.nbytes
        except Exception as error:  # what NumPy raises for a damaged header is nearly every kind
            raise SourceError(
                f"{self.path}: entry '{one_line(entry)}' is not a readable array ({one_line(error)})"
            ) from None
        held = self._zip.getinfo(entry).file_size
        if not dtype.hasobject and held != wanted:
            raise SourceError(
                f"{self.path}: entry '{one_line(entry)}' has {held} bytes, "
                f"expected {wanted} for {shape} {dtype}"
            )
        return info, dtype

    def _array(self, entry: str) -> np.ndarray:
        try:
            with self._zip.open(entry) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise SourceError(
                f"{self.path}: entry '{one_line(entry)}' is damaged ({one_line(error)})"
            ) from None

    def read(self, name: str) -> np.ndarray:
        array = self._array(name + _SUFFIX)
        return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")

    def close(self) -> None:
        self._zip.close()


def write_npz(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write an .npz that `np.load` reads, uncompressed, one tensor in memory at a time."""
    for name, info in tensors.items():
        if info.dtype.kind not in "fiub":
            raise DestinationError(
                f"{path}: {name} is {info.dtype}, which .npz cannot hold; "
                "use another container, or --dtype float32"
            )
    read = as_announced(path, tensors, read)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, array: np.ndarray) -> None:
            entry = zipfile.ZipInfo(name + _SUFFIX)  # dated 1980, so that equal contents are equal files
            file: IO[bytes]
            with archive.open(entry, "w", force_zip64=array.nbytes > 1 << 30) as file:
                description = np.lib.format.dtype_to_descr(array.dtype.newbyteorder("<"))
                header = {"descr": description, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                write(file, array)

        add(METADATA_NAME, np.array(dump_metadata(metadata)))
        for name in tensors:
            add(name, read(name))
