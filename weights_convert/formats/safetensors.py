"""safetensors files, read and written tensor by tensor.

Format: https://github.com/huggingface/safetensors#format (8-byte header length, JSON header, raw data).
The library maps the file, so that its pages count as memory of this process (173 MB for a file of 110 MB, 50
MB here). Its writer needs the whole dictionary, and version 0.8.0 silently writes wrong data for arrays that
are not C-contiguous (safetensors#825). The tests compare this module with the library.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import (
    MAX_NDIM,
    METADATA_NAME,
    Reader,
    TensorInfo,
    as_announced,
    dump_metadata,
    fill,
    one_line,
    parse_metadata,
)
from weights_convert.formats.given import Given
from weights_convert.limits import DEFAULT, Limits, too_many
from weights_convert.memory import write

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_OTHER_BITS = {  # dtype that is not read -> bits of an element
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
_BITS = {name: 8 * np.dtype(dtype).itemsize for name, dtype in _DTYPES.items()} | _OTHER_BITS
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes; also the library's limit
_MAX_BITS = 2**63  # of a tensor; the limit of NumPy's counts


class _Entry:
    """One tensor of a header; `ValueError` for an invalid entry."""

    def __init__(self, name: str, fields: Any):
        self.name = name
        try:
            dtype, shape, (start, end) = (fields[key] for key in ("dtype", "shape", "data_offsets"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the entry of {name!r} lacks a dtype, a shape or two offsets") from error
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
        if not isinstance(shape, list) or len(shape) > MAX_NDIM:
            raise ValueError(f"{name!r} has an impossible shape")
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError(f"{name!r} has a shape or offsets that are not counts")
        if math.prod(max(n, 1) for n in shape) * _BITS[dtype] > _MAX_BITS:  # also for an empty tensor
            raise ValueError(f"{name!r} has an impossible shape")
        if math.prod(shape) * _BITS[dtype] != 8 * (end - start):
            raise ValueError(f"{name!r} is {dtype} {shape}, but has {end - start} bytes")
        self.dtype, self.shape, self.start, self.end = dtype, tuple(shape), start, end


def recognises_safetensors(given: Given) -> bool:
    return given.head[8:9] == b"{"


class SafetensorsReader(Reader):
    """A safetensors file. The header is valid only if its offsets cover the rest of the file exactly."""

    format = "safetensors"

    def __init__(self, source: Path | Given, limits: Limits = DEFAULT):
        given = Given.of(source, limits)
        path = given.path
        super().__init__(path, given.limits)
        self._file = given.file
        try:
            self._read_header()
        except (OSError, ValueError, EOFError, RecursionError) as error:
            self.close()
            raise SourceError(
                f"{path}: not a readable safetensors file, it is truncated or damaged ({one_line(error)})"
            ) from None
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        header, self._data = _header(self._file, self.path, self.limits)
        texts = header.pop(_METADATA, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{_METADATA} is not a mapping of texts")
        entries = [_Entry(name, fields) for name, fields in header.items()]
        entries.sort(key=lambda entry: (entry.start, entry.end))
        position = 0
        for entry in entries:
            if entry.start != position:
                raise ValueError(
                    f"{entry.name!r} begins at byte {entry.start} of the data, not at {position}"
                )
            position = entry.end
        size = self._file.seek(0, 2)
        self.has(size)
        has = size - self._data
        if position != has:
            raise ValueError(f"{has} bytes of data, but the header describes {position}")
        self._starts = {entry.name: entry.start for entry in entries}
        for entry in entries:
            if entry.dtype in _DTYPES:
                self.add(entry.name, TensorInfo(entry.shape, np.dtype(_DTYPES[entry.dtype])))
            else:
                self.leave_out(entry.name, f"tensor of dtype {entry.dtype}, which NumPy does not have")
        for name, text in texts.items():
            if name == METADATA_NAME:
                self.metadata = parse_metadata(text, self.path, self.limits)
            elif name != "format":
                self.leave_out(f"{_METADATA}.{name}", f"text of {len(text)} characters")

    def read(self, name: str) -> np.ndarray:
        array = np.empty(*self.tensors[name])
        try:
            self._file.seek(self._data + self._starts[name])
            fill(self._file, array.reshape(-1).view(np.uint8).data if array.size else memoryview(b""))
        except (OSError, EOFError) as error:  # the file has changed since it was opened
            raise SourceError(f"{self.path}: {one_line(name)} cannot be read ({one_line(error)})") from error
        return array if sys.byteorder == "little" else array.byteswap(inplace=True)

    def close(self) -> None:
        super().close()
        self._file.close()


def _header(file: BinaryIO, path: Path, limits: Limits) -> tuple[dict[str, Any], int]:
    """The header and the position of the data; `ValueError` for an invalid header."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    if length > limits.text:
        raise too_many(path, "bytes of header", length, "max_tensors", limits.text)
    text = bytearray(length)
    fill(file, memoryview(text))
    if not text.startswith(b"{"):
        raise ValueError("the header does not begin with {")
    header = json.loads(text.decode(), object_pairs_hook=_unique)
    for name in header:
        name.encode()  # ValueError for a lone surrogate
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the header names something twice")
    return found


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write a safetensors file with one tensor in memory at a time."""
    for name, info in tensors.items():
        if info.dtype not in _NAMES:
            raise DestinationError(f"{path}: {name} is {info.dtype}, which safetensors cannot hold")
    read = as_announced(path, tensors, read)
    # widest dtype first, as in the library: this aligns every tensor to its item size
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: {"format": "pt", METADATA_NAME: dump_metadata(metadata)}}
    offset = 0
    for name in order:
        shape, dtype = tensors[name]
        end = offset + tensors[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            write(file, read(name))
