"""HDF5 in the form that h5py and Keras write by default, read in Python with every claim checked.

HDF5's own library is not made for hostile files: of 6,000 damaged files 64 crashed it and 2 never ended.
Reading needs only a small part of HDF5: groups, and the shape, dtype and position of each dataset.

Format: https://docs.hdfgroup.org/hdf5/v1_14/_f_m_t3.html, of which this reads superblock 0, object headers 1,
groups with a symbol table, datasets in one piece. Chunks, compression and newer layouts are refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from weights_convert.formats.base import MAX_NDIM, fill
from weights_convert.limits import LimitReached, Limits

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_STEPS_PER_TENSOR = 8  # groups on its path
_TEXT_PER_TENSOR = 8  # times the limit of other formats, for headers, groups, names; 3 in honest files
_READ = 64  # bytes counted for a short read
_NOWHERE = 2**64 - 1
OF_LAYER = re.compile(r"(.*/)?layers/[^/]+/vars")  # the group of a layer's variables, with its name

# Header messages; others do not affect the data.
_SPACE, _TYPE, _EXTERNAL, _LAYOUT = 0x01, 0x03, 0x07, 0x08
_ATTRIBUTE, _CONTINUATION, _SYMBOLS = 0x0C, 0x10, 0x11
_UNUSUAL = {0x02: "a group with links", 0x06: "a link", 0x0A: "a group with links", 0x0B: "compressed data",
            0x15: "an index of attributes"}  # fmt: skip
_LAYOUTS = {2: "a dataset in chunks", 3: "a virtual dataset"}
_CLASSES = ("fixed", "float", "time", "text", "bits", "opaque", "compound", "reference", "enum", "variable",
            "array")  # fmt: skip
_FLOATS: dict[
    tuple[int, ...], str
] = {  # bit offset, precision, exponent's place and size, mantissa's place and size, bias
    (0, 16, 10, 5, 0, 10, 15): "f2",
    (0, 32, 23, 8, 0, 23, 127): "f4",
    (0, 64, 52, 11, 0, 52, 1023): "f8",
}
_BOOL = b"FALSE\0\0\0TRUE\0\0\0\0\0\1"  # names and values of h5py's enum


class Unusual(Exception):
    """A kind of HDF5 that this module does not read; the file may be valid."""


class Damaged(ValueError):
    """An invalid structure."""


class Dataset(NamedTuple):
    """One dataset or other object; `why` is the reason if it is not read."""

    path: str
    why: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype = BFLOAT16  # of the array to return
    stored: np.dtype = BFLOAT16
    address: int | bytes = 0  # or the data themselves


class PlainFile:
    """`length` bytes of `file` from `start` as an HDF5 file.

    Attributes:
        layers: path of a model's layer -> its name in Keras, complete after `datasets`.
    """

    def __init__(self, file: BinaryIO, start: int, length: int, limits: Limits):
        self.layers: dict[str, str] = {}
        self._file, self._start, self._length, self._limits = file, start, length, limits
        self._steps = self._described = 0
        head = self._at(0, 96)
        version, offsets, lengths = head[8], head[13], head[14]
        if version != 0 or (offsets, lengths) != (8, 8) or head[24:32] != bytes(8):
            raise Unusual(f"superblock {version}, a newer layout" if version else "unusual addresses")
        self._root = self._messages(int.from_bytes(head[64:72], "little"))

    def attribute(self, name: str) -> str | None:
        """The text of an attribute of the root."""
        return self._attribute(self._root, name)

    def has_attribute(self, name: str) -> bool:
        return any(_attribute_name(data) == name for kind, data in self._root if kind == _ATTRIBUTE)

    def datasets(self) -> Iterator[Dataset]:
        """Every dataset with its path, sorted by name."""
        return self._walk(self._root, "", 1)

    def read(self, dataset: Dataset) -> np.ndarray:
        raw = np.empty(math.prod(dataset.shape) * dataset.stored.itemsize, np.uint8)
        if isinstance(dataset.address, bytes):
            raw[:] = np.frombuffer(dataset.address, np.uint8)
        elif raw.size:
            self._file.seek(self._start + dataset.address)
            fill(self._file, raw.data)
        if dataset.dtype == bool:
            raw = (raw != 0).view(np.uint8)
        array = raw.view(dataset.stored).reshape(dataset.shape)
        return np.asarray(array, dtype=dataset.dtype, order="C")

    def _at(self, address: int, size: int) -> bytes:
        """Read a part of the description, within a limit: a file may refer to the same bytes many times."""
        if address + size > self._length:
            raise Damaged(f"{size} bytes at {address} of {self._length}")
        self._describe(max(size, _READ))
        self._file.seek(self._start + address)
        data = self._file.read(size)
        if len(data) != size:
            raise Damaged("the file is shorter than it was")
        return data

    def _messages(self, address: int) -> list[tuple[int, bytes]]:
        """The messages of an object header: kind and content."""
        head = self._at(address, 12)
        version, count, size = struct.unpack("<BxH4xI", head)
        if head.startswith(b"OHDR"):
            raise Unusual("object headers 2, a newer layout")
        if version != 1:
            raise Damaged("no object header where one should be")
        found: list[tuple[int, bytes]] = []
        blocks, seen = [(address + 16, size)], 0
        while blocks and seen < count:
            place, size = blocks.pop(0)
            block, at = self._at(place, size), 0
            while at + 8 <= len(block) and seen < count:
                kind, length, flags = struct.unpack_from("<HHB", block, at)
                data = block[at + 8 : at + 8 + length]
                if len(data) < length:
                    raise Damaged("a message that is longer than its header")
                if flags & 2:
                    raise Unusual("a shared message")
                if kind in _UNUSUAL:
                    raise Unusual(_UNUSUAL[kind])
                if kind == _CONTINUATION:
                    blocks.append(_numbers("<QQ", data))  # type: ignore[arg-type]
                found.append((kind, data))
                at, seen = at + 8 + length, seen + 1
        return found

    def _walk(self, group: list[tuple[int, bytes]], prefix: str, depth: int) -> Iterator[Dataset]:
        if depth > self._limits.max_depth:
            raise LimitReached("levels or more of groups", depth, "max_depth", self._limits.max_depth)
        for name, address in self._members(group):
            self._step()
            path = prefix + name
            self._describe(len(path))
            if address is None:
                yield Dataset(path, "link to elsewhere, never followed")
                continue
            messages = self._messages(address)
            kinds = {kind for kind, _ in messages}
            if _SYMBOLS in kinds:
                if OF_LAYER.fullmatch(path) and (layer := self._attribute(messages, "name")):
                    self.layers[path.removesuffix("/vars")] = layer
                yield from self._walk(messages, f"{path}/", depth + 1)
            elif {_SPACE, _TYPE, _LAYOUT} <= kinds:
                yield self._dataset(path, messages)

    def _step(self) -> None:
        """Count a step: groups may contain each other in any number of ways, as may the branches of trees."""
        self._steps += 1
        most = self._limits.max_tensors * _STEPS_PER_TENSOR
        if self._steps > most:
            raise LimitReached("or more groups and datasets", self._steps, "max_tensors", most)

    def _describe(self, size: int) -> None:
        self._described += size
        most = self._limits.text * _TEXT_PER_TENSOR
        if self._described > most:
            raise LimitReached("bytes or more of groups and headers", self._described, "max_tensors", most)

    def _members(self, group: list[tuple[int, bytes]]) -> Iterator[tuple[str, int | None]]:
        """The names in a group with the addresses of their headers; None for a soft link."""
        tree, heap = _numbers("<QQ", _only(group, _SYMBOLS))
        signature, version, size, _free, place = struct.unpack("<4sB3xQQQ", self._at(heap, 32))
        if (signature, version) != (b"HEAP", 0) or size > self._limits.text:
            raise Damaged("no heap of names where one should be")
        names = self._at(place, size)
        for node in self._leaves(tree):
            signature, version, count = struct.unpack("<4sBxH", self._at(node, 8))
            if (signature, version) != (b"SNOD", 1):
                raise Damaged("no symbols where they should be")
            table = self._at(node + 8, 40 * count)
            for offset, address, cached in struct.iter_unpack("<QQI20x", table):
                end = names.find(b"\0", offset)
                if end < 0:
                    raise Damaged("a name outside its heap")
                name = names[offset:end].decode("utf-8", "backslashreplace")
                yield name, None if cached == 2 else address

    def _leaves(self, root: int) -> Iterator[int]:
        """The addresses of a B-tree's symbols; each node must be one level below its parent."""
        waiting: list[tuple[int, int | None]] = [(root, None)]
        while waiting:
            address, above = waiting.pop()
            self._step()
            signature, kind, level, count = struct.unpack("<4sBBH", self._at(address, 8))
            if signature != b"TREE" or kind != 0 or (above is not None and level != above - 1):
                raise Damaged("no node of a tree where one should be")
            body = self._at(address + 24, 16 * count)
            children = [child for _, child in struct.iter_unpack("<QQ", body)]
            if level == 0:
                yield from children
            else:
                waiting += [(child, level) for child in reversed(children)]

    def _dataset(self, path: str, messages: list[tuple[int, bytes]]) -> Dataset:
        if any(kind == _EXTERNAL for kind, _ in messages):
            return Dataset(path, "data kept in another file, never read")
        said = self._attribute(messages, "dtype") if _only(messages, _TYPE)[0] & 15 == 5 else None
        found, stored = _dtype(_only(messages, _TYPE), said)
        shape = _shape(_only(messages, _SPACE))
        if found is None or shape is None:
            kind = _only(messages, _TYPE)[0] & 15
            what = _CLASSES[kind] if kind < len(_CLASSES) else f"class {kind}"
            return Dataset(path, f"dataset of HDF5's type {what}")
        nbytes = math.prod(shape) * stored.itemsize
        address = self._place(_only(messages, _LAYOUT), nbytes)
        return Dataset(path, "", shape, found, stored, address)

    def _place(self, layout: bytes, nbytes: int) -> int | bytes:
        version, kind = _numbers("<BB", layout)
        if version != 3 or kind not in (0, 1):
            raise Unusual(_LAYOUTS.get(kind, f"data layout {version}"))
        if kind == 0:
            (size,) = _numbers("<H", layout[2:])
            if size != nbytes or len(layout) < 4 + size:
                raise Damaged(f"{size} bytes of data for {nbytes}")
            return layout[4 : 4 + size]
        address, size = _numbers("<QQ", layout[2:])
        if address == _NOWHERE and nbytes:
            raise Unusual("a dataset without data")
        if size != nbytes:
            raise Damaged(f"{size} bytes of data for {nbytes}")
        if nbytes and address + size > self._length:
            raise Damaged(f"data that end at byte {address + size} of {self._length}")
        return address

    def _attribute(self, messages: list[tuple[int, bytes]], name: str) -> str | None:
        """The text of an attribute, None if it does not exist; `Damaged` if it is not a text."""
        for message, data in messages:
            if message != _ATTRIBUTE or _attribute_name(data) != name:
                continue
            _, type_, space, value = _attribute_parts(data)
            kind = type_[0] & 15 if _shape(space) == () else None
            if kind == 9 and type_[1] & 15 == 1:
                return self._variable(value)
            if kind == 3:
                return value.rstrip(b"\0").decode()
            raise Damaged(f"its attribute {name!r} is not one text")
        return None

    def _variable(self, reference: bytes) -> str:
        """A text of any length: its length, the address of a heap, its number there."""
        length, address, wanted = _numbers("<IQI", reference)
        signature, version, size = struct.unpack("<4sB3xQ", self._at(address, 16))
        if (signature, version) != (b"GCOL", 1) or size > self._limits.text + 2**16:
            raise Damaged("no heap of texts where one should be")
        heap, at = self._at(address, size), 16
        while at + 16 <= len(heap):
            index, size = struct.unpack_from("<H6xQ", heap, at)
            if index == wanted and index:
                if length > size or at + 16 + size > len(heap):
                    raise Damaged("a text that is longer than its heap")
                return heap[at + 16 : at + 16 + length].decode()
            if index == 0:
                break
            at += 16 + -(-size // 8) * 8
        raise Damaged("a text that is not in its heap")


def _numbers(form: str, data: bytes) -> tuple[int, ...]:
    size = struct.calcsize(form)
    if len(data) < size:
        raise Damaged("a message that is too short")
    return struct.unpack(form, data[:size])


def _only(messages: list[tuple[int, bytes]], kind: int) -> bytes:
    found = [data for other, data in messages if other == kind]
    if len(found) != 1 or not found[0]:
        raise Damaged(f"{len(found)} messages of kind {kind}")
    return found[0]


def _shape(space: bytes) -> tuple[int, ...] | None:
    """The shape in a dataspace; None for a null dataspace."""
    version, rank, _flags, kind = _numbers("<BBBB", space)
    if version not in (1, 2):
        raise Damaged(f"dataspace {version}")
    if version == 2 and kind == 2:
        return None
    if rank > MAX_NDIM:
        raise Damaged(f"{rank} dimensions")
    return _numbers(f"<{rank}Q", space[8 if version == 1 else 4 :])


def _dtype(message: bytes, said: str | None) -> tuple[np.dtype | None, np.dtype]:
    """The dtype to return for a datatype, None if it is not read, and the dtype as stored."""
    kind, bits, size = _numbers("<BB2xI", message)
    order = ">" if bits & 1 else "<"
    props, kind = message[8:], kind & 15
    nothing = np.dtype(np.uint8)
    if kind == 0 and size in (1, 2, 4, 8) and _numbers("<HH", props) == (0, 8 * size):
        stored = np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    elif kind == 1 and not bits & 64 and (name := _FLOATS.get(_numbers("<HHBBBBI", props))):
        stored = np.dtype(order + name)
        if stored.itemsize != size:
            return None, nothing
    elif kind == 5 and size == 2 and said == "bfloat16":
        stored = BFLOAT16.newbyteorder("<")
    elif kind == 8 and bits == 2 and size == 1 and _is_bool(props):
        return np.dtype(bool), np.dtype(bool)
    else:
        return None, nothing
    return stored.newbyteorder("="), stored


def _is_bool(props: bytes) -> bool:
    base, _ = _dtype(props[:12], None)
    return base == np.int8 and props[12 : 12 + len(_BOOL)] == _BOOL


def _attribute_name(data: bytes) -> str:
    return _attribute_parts(data)[0]


def _attribute_parts(data: bytes) -> tuple[str, bytes, bytes, bytes]:
    """An attribute's name, datatype, dataspace and value."""
    version, flags, *sizes = _numbers("<BBHHH", data)
    if version not in (1, 2, 3):
        raise Damaged(f"attribute {version}")
    if version > 1 and flags:
        raise Unusual("a shared message")
    at, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(data[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    name, type_, space = parts
    if at > len(data) or not type_ or not space:
        raise Damaged("an attribute that is too short")
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace"), type_, space, data[at:]
