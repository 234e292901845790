"""Writes the zip form of `torch.save`: the pickle of a state dict, and raw bytes for each tensor."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weights_convert.errors import MismatchError
from weights_convert.formats.base import TensorInfo, as_announced, dump_metadata
from weights_convert.formats.torch.file import METADATA_ENTRY
from weights_convert.formats.torch.objects import STORAGE_CLASS
from weights_convert.memory import write

_STEM = "archive"
_ALIGNMENT = 64


def write_torch(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
    root: Callable[[Mapping[str, bytes]], bytes] | None = None,
) -> None:
    """Write the zip form, for `torch.load(path, weights_only=True, mmap=True)`.

    Args:
        root: makes the pickle of the file's object, of the pickles of its tensors by name; a state dict for
            None.
    """
    for name, info in tensors.items():
        if info.dtype not in STORAGE_CLASS:
            known = ", ".join(map(str, STORAGE_CLASS))
            raise MismatchError(f"{path}: tensor {name!r} is {info.dtype}, expected one of {known}")
    read = as_announced(path, tensors, read)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        add = partial(_add_entry, archive, file)
        # torch takes the stem from the first entry
        add("data.pkl", _bytes(_pickled(tensors, root or state_dict)))
        add("byteorder", _bytes(b"little"))
        for index, name in enumerate(tensors):
            add(f"data/{index}", read(name))
        add("version", _bytes(b"3\n"))
        add(METADATA_ENTRY, _bytes(dump_metadata(metadata).encode()))


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _add_entry(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: np.ndarray) -> None:
    """Store `data` aligned, with padding in an extra field of the local header, as in torch."""
    info = zipfile.ZipInfo(f"{_STEM}/{name}")  # dated 1980-01-01
    info.create_system = 3  # the same on every system
    zip64 = data.nbytes > zipfile.ZIP64_LIMIT
    begin = file.tell() + 30 + len(info.filename) + (20 if zip64 else 0)
    padding = -begin % _ALIGNMENT
    if padding:
        padding += _ALIGNMENT if padding < 4 else 0  # an extra field has a header of four bytes
        info.extra = b"FB" + struct.pack("<H", padding - 4) + b"Z" * (padding - 4)
    with archive.open(info, "w", force_zip64=zip64) as entry:
        write(entry, data)
    info.extra = b""  # not needed in the directory


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """The pickle of a text."""
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """The pickle of a whole number from 0."""
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


_EMPTY_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _tensor(key: str, info: TensorInfo) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)` for a contiguous tensor."""
    storage = _tuple(
        text("storage"),
        _global("torch", STORAGE_CLASS[info.dtype]),
        text(key),
        text("cpu"),
        integer(math.prod(info.shape)),
    )
    strides = [math.prod(max(n, 1) for n in info.shape[axis + 1 :]) for axis in range(len(info.shape))]
    arguments = _tuple(
        storage + pickle.BINPERSID,
        integer(0),
        _tuple(*map(integer, info.shape)),
        _tuple(*map(integer, strides)),
        pickle.NEWFALSE,
        _EMPTY_ORDERED_DICT,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _pickled(tensors: Mapping[str, TensorInfo], root: Callable[[Mapping[str, bytes]], bytes]) -> bytes:
    """The whole pickle; the i-th tensor's storage has the key `str(i)`."""
    pickled = {name: _tensor(str(i), info) for i, (name, info) in enumerate(tensors.items())}
    return pickle.PROTO + b"\x02" + root(pickled) + pickle.STOP


def state_dict(pickled: Mapping[str, bytes]) -> bytes:
    """The pickle of an `OrderedDict` of contiguous tensors."""
    return _EMPTY_ORDERED_DICT + items({text(name): tensor for name, tensor in pickled.items()})


def items(entries: Mapping[bytes, bytes]) -> bytes:
    """The operations that add keys and values to the dictionary before them."""
    return pickle.MARK + b"".join(key + value for key, value in entries.items()) + pickle.SETITEMS
