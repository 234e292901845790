"""NumPy .npz archives: a zip of .npy files, read and written entry by entry, never pickled.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import (
    MAX_NDIM,
    METADATA_NAME,
    Reader,
    TensorInfo,
    as_announced,
    dump_metadata,
    is_number,
    one_line,
    parse_metadata,
)
from weights_convert.formats.given import Given
from weights_convert.formats.zip import DAMAGE
from weights_convert.limits import DEFAULT, Limits
from weights_convert.memory import write

_SUFFIX = ".npy"
_HEADERS = {  # version -> size of the length field, and a function that reads both
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_LONGEST_HEADER = 10_000  # bytes, as in NumPy, which checks only after reading


def recognises_npz(given: Given) -> bool:
    return bool(given.entries) and all(name.endswith(_SUFFIX) for name in given.entries)


class NpzReader(Reader):
    """An .npz archive. Object arrays (pickles) are never loaded; they are listed in `left_out`."""

    format = "npz"

    def __init__(self, source: Path | Given, limits: Limits = DEFAULT):
        given = Given.of(source, limits)
        super().__init__(given.path, given.limits)
        self._file = given.file
        self._headers: dict[bytes, tuple[Any, ...]] = {}
        try:
            self.has(given.size)
            if given.archive is None:
                raise SourceError(f"{given.path}: not a zip archive, expected an .npz file")
            self._zip = given.archive
            for entry in self._zip.infolist():
                self._list(entry)
        except BaseException:
            self.close()
            raise

    def _list(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename.removesuffix(_SUFFIX)
        if name == entry.filename:
            self.leave_out(name, "not an array")
            return
        info, dtype = self._header(entry)
        if name == METADATA_NAME and dtype.kind == "U" and info.shape == ():
            self.claim(info.nbytes)
            self.metadata = parse_metadata(self._text(entry.filename), self.path, self.limits)
        elif dtype.hasobject:
            self.leave_out(name, "array of Python objects (a pickle, never loaded)")
        elif not is_number(dtype):
            self.leave_out(name, f"array of dtype {one_line(dtype)}")
        else:
            self.add(name, info)

    def _header(self, entry: zipfile.ZipInfo) -> tuple[TensorInfo, np.dtype]:
        """Shape and native dtype, and the dtype as stored; checks the entry's size."""
        try:
            with self._zip.open(entry) as file, _silently():
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise ValueError(f".npy version {version}")
                digits, parse = _HEADERS[version]
                size = file.read(digits)
                length = int.from_bytes(size, "little")
                if length > _LONGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header = size + file.read(length)
                if header not in self._headers:  # a network has few shapes
                    self._headers[header] = parse(io.BytesIO(header))
                shape, _, dtype = self._headers[header]
                if len(shape) > MAX_NDIM or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
                    raise ValueError(f"an impossible shape, {shape}")
                info = TensorInfo(shape, dtype.newbyteorder("="))
                wanted = file.tell() + info.nbytes
        except Exception as error:  # NumPy raises nearly any exception for a damaged header
            raise SourceError(
                f"{self.path}: entry '{one_line(entry.filename)}' is not a readable array ({one_line(error)})"
            ) from None
        if not dtype.hasobject and entry.file_size != wanted:
            raise SourceError(
                f"{self.path}: entry '{one_line(entry.filename)}' has {entry.file_size} bytes, "
                f"expected {wanted} for {shape} {one_line(dtype)}"
            )
        return info, dtype

    def _array(self, entry: str) -> np.ndarray:
        try:
            with self._zip.open(entry) as file, _silently():
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):  # zipfile checks the checksum at the end
                    raise ValueError("more bytes than the array has")
                return array
        except DAMAGE as error:
            raise SourceError(
                f"{self.path}: entry '{one_line(entry)}' is damaged ({one_line(error)})"
            ) from None

    def _text(self, entry: str) -> str:
        """The text in an array of one text. NumPy accepts any 32 bits as a character; Python does not."""
        array = self._array(entry)
        try:
            text = array.astype(array.dtype.newbyteorder("<")).tobytes().decode("utf-32-le")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.path}: entry '{one_line(entry)}' is not a text ({one_line(error)})"
            ) from None
        return text.rstrip("\0")

    def read(self, name: str) -> np.ndarray:
        array = self._array(name + _SUFFIX)
        return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")

    def close(self) -> None:
        super().close()
        self._file.close()


@contextmanager
def _silently() -> Iterator[None]:
    """Suppress warnings of Python's parser, and of NumPy about files from Python 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_npz(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write an uncompressed .npz for `np.load`, with one tensor in memory at a time."""
    for name, info in tensors.items():
        if not is_number(info.dtype):
            raise DestinationError(
                f"{path}: {name} is {info.dtype}, which .npz cannot hold; "
                "use another container, or --dtype float32"
            )
    read = as_announced(path, tensors, read)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, array: np.ndarray) -> None:
            entry = zipfile.ZipInfo(name + _SUFFIX)  # dated 1980, so that equal contents give equal files
            file: IO[bytes]
            with archive.open(entry, "w", force_zip64=array.nbytes > 1 << 30) as file:
                description = np.lib.format.dtype_to_descr(array.dtype.newbyteorder("<"))
                header = {"descr": description, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                write(file, array)

        add(METADATA_NAME, np.array(dump_metadata(metadata)))
        for name in tensors:
            add(name, read(name))
