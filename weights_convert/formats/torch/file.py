"""PyTorch checkpoints (.pth, .pt) without torch: reads both forms of `torch.save` and writes the newer one.

Zip (torch 1.6 and later): `<stem>/data.pkl`, and an entry `<stem>/data/<key>` of raw bytes for each storage.
Stream (older): pickles of a magic number, a version, the system, the object, the list of storage keys; then
for each key the number of elements (int64) and the raw bytes, always little-endian.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weights_convert.errors import SourceError
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    fill,
    parse_metadata,
)
from weights_convert.formats.given import Given
from weights_convert.formats.torch.entries import beside, choose, describe, label, left_out, short
from weights_convert.formats.torch.objects import MAX_INT, ArrayRef, Storage, TensorRef
from weights_convert.formats.torch.pickle import load
from weights_convert.formats.zip import stored
from weights_convert.limits import DEFAULT, LimitReached, Limits, too_many

DAMAGED = "the file is truncated or damaged"

_TORCHSCRIPT = (
    "a TorchScript archive, which holds code; load it with torch.jit.load and save model.state_dict()"
)
_EXPORT = "a torch.export archive (.pt2); load it with torch.export.load and save program.state_dict"
_PACKAGE = "a torch.package archive, which holds code; load it with torch.package and save model.state_dict()"
_TAR = "the tar form of PyTorch 0.1; load it with torch.load and save model.state_dict() again"
REFUSED = {  # entries or folders of a zip, at the top or below the stem
    "constants.pkl": _TORCHSCRIPT,
    "code": _TORCHSCRIPT,
    "archive_format": _EXPORT,
    "models/model.json": _EXPORT,
    "serialized_exported_program.json": _EXPORT,
    ".data/extern_modules": _PACKAGE,
}

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_PICKLES = (  # of protocol 1, and of later ones
    b"L%dL\n" % _MAGIC,
    b"\x8a\x0a" + _MAGIC.to_bytes(10, "little"),
)
_STREAM_VERSION = 1001

# Limit of an entry's claimed size, as a multiple of its packed bytes.
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}

METADATA_ENTRY = f"{METADATA_NAME}.json"


def looks_like_torch_stream(head: bytes) -> bool:
    """Whether `head`, a file's first 64 bytes, begins the older form."""
    return any(magic in head[:64] for magic in _MAGIC_PICKLES)


def torch_zip_stem(names: Iterable[str]) -> str | None:
    """The `<stem>` of `<stem>/data.pkl` among the names of a zip's entries."""
    stems = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    return min(stems, key=len, default=None)


class _Zip:
    """The newer form: an object, and bytes by storage key."""

    def __init__(self, given: Given):
        assert given.archive is not None  # see `_open_container`
        path, limits = given.path, given.limits
        self._path, self._file, self._limits = path, given.file, limits
        self._length, self._zip, names = given.size, given.archive, given.entries
        _refuse_archives_of_code(path, names)
        _refuse_a_choice(path, names)
        stem = torch_zip_stem(names)
        if stem is None:
            raise SourceError(f"{path}: a zip without <name>/data.pkl, expected a file written by torch.save")
        folder = f"{stem}/"
        inside = [info for info in self._zip.infolist() if info.filename.startswith(folder)]
        self._infos = {info.filename.removeprefix(folder): info for info in inside}
        self.root, _ = load(io.BytesIO(self._whole("data.pkl")), limits)
        text = self._whole(METADATA_ENTRY) if METADATA_ENTRY in self._infos else b"{}"
        self.metadata = parse_metadata(text, path, limits)
        order = self._whole("byteorder") if "byteorder" in self._infos else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"byte order {order[:10]!r}")
        self.byteswapped = order.decode() != sys.byteorder

    def size(self, key: str) -> int:
        name = f"data/{key}"
        return self._size(self._infos[name]) if name in self._infos else 0

    def unpacks(self, key: str) -> bool:
        """Whether reading a tensor requires reading everything before it."""
        return self._infos[f"data/{key}"].compress_type != zipfile.ZIP_STORED

    def read_into(self, key: str, start: int, buffer: memoryview) -> None:
        self._read_into(self._infos[f"data/{key}"], start, buffer)

    def _size(self, info: zipfile.ZipInfo) -> int:
        """The entry's size according to the zip, limited to a plausible size."""
        packed = min(info.compress_size, self._length - info.header_offset - 30)
        return max(0, min(info.file_size, packed * _MAX_RATIO.get(info.compress_type, 0)))

    def _whole(self, name: str) -> bytes:
        info, most = self._infos[name], self._limits.text
        size = self._size(info)
        if info.compress_type != zipfile.ZIP_STORED and size > most:
            raise too_many(self._path, f"unpacked bytes of {name}", size, "max_tensors", most)
        data = bytearray(size)
        self._read_into(info, 0, memoryview(data))
        return bytes(data)

    def _read_into(self, info: zipfile.ZipInfo, start: int, buffer: memoryview) -> None:
        if info.flag_bits & 1:
            raise zipfile.BadZipFile("the entry is encrypted")
        if info.compress_type == zipfile.ZIP_STORED:
            self._file.seek(stored(self._file, info, check=False) + start)
            fill(self._file, buffer)
        else:
            with self._zip.open(info) as entry:
                entry.seek(start)
                fill(entry, buffer)
        # torch never checks this sum, and can be told not to compute it: then it is 0
        if info.CRC and len(buffer) == info.file_size and zlib.crc32(buffer) != info.CRC:
            raise zipfile.BadZipFile("the checksum (CRC-32) differs")


class _Stream:
    """The older form, with the same interface."""

    byteswapped = sys.byteorder != "little"

    def __init__(self, given: Given):
        path, file, limits, length = given.path, given.file, given.limits, given.size
        self._file = file
        self.metadata: dict[str, Any] = {}
        file.seek(0)
        _magic, version, _system = (load(file, limits)[0] for _ in range(3))
        if version != _STREAM_VERSION:
            raise SourceError(
                f"{path}: not version {_STREAM_VERSION} of the older form of torch.save; {DAMAGED}"
            )
        self.root, storages = load(file, limits)
        keys, _ = load(file, limits)
        self._places: dict[str, tuple[int, int]] = {}  # key -> first byte, number of bytes
        for key in keys:
            start, nbytes = self._places[key] = _next_place(file, storages[key])
            if start + nbytes > length:
                raise EOFError(f"{start + nbytes - length} bytes are missing")
            file.seek(start + nbytes)

    def size(self, key: str) -> int:
        return self._places.get(key, (0, 0))[1]

    def unpacks(self, key: str) -> bool:  # noqa: ARG002
        return False

    def read_into(self, key: str, start: int, buffer: memoryview) -> None:
        self._file.seek(self._places[key][0] + start)
        fill(self._file, buffer)


def _next_place(file: BinaryIO, storage: Storage) -> tuple[int, int]:
    (numel,) = struct.unpack("<q", file.read(8))
    if numel != storage.numel:
        raise ValueError(f"a storage of {numel} elements, announced as {storage.numel}")
    return file.tell(), numel * storage.itemsize


def _refuse_archives_of_code(path: Path, names: list[str]) -> None:
    inner_names = {inner for name in names for inner in (name, name.partition("/")[2])}
    for marker, what in REFUSED.items():
        if any(inner == marker or inner.startswith(f"{marker}/") for inner in inner_names):
            raise SourceError(f"{path}: {what}")


def _refuse_a_choice(path: Path, names: list[str]) -> None:
    """Raise `SourceError` if torch or another program might select another entry."""
    if len({name.lower() for name in names}) < len(names):  # torch's zip reader ignores case
        raise SourceError(f"{path}: a zip with names that differ in upper and lower case only")
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) > 1:
        shown = " and ".join(short(name) for name in pickles[:2])
        raise SourceError(f"{path}: a zip with {shown}, expected one file of torch.save")


def _open_container(given: Given) -> _Zip | _Stream:
    path = given.path
    container = (
        _Zip if given.archive is not None else _Stream if looks_like_torch_stream(given.head) else None
    )
    if container is None:
        raise SourceError(f"{path}: {_other_kind(given.file.read(512))}")
    try:
        return container(given)
    except SourceError:
        raise
    except LimitReached as limit:
        raise limit.at(path) from None
    except Exception as error:  # zipfile, pickle and json raise nearly any exception for damaged input
        raise SourceError(
            f"{path}: not readable as a file of torch.save ({_reason(error)}); {DAMAGED}"
        ) from error


def _other_kind(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return _TAR
    found = f"a file that begins with {head[:8]!r}" if head else "an empty file"
    return f"{found}, expected one written by torch.save"


def _reason(error: Exception) -> str:
    return short(f"{type(error).__name__}: {error}", limit=120)


class TorchReader(Reader):
    """The state dict in a file of `torch.save`; `key` selects one of several entries."""

    format = "torch"

    def __init__(self, given: Given, key: str | None = None):
        path, limits = given.path, given.limits
        super().__init__(path, limits)
        self._file = given.file
        self._claimed_beside: set[str] = set()
        try:
            self.has(given.size)
            self._container = _open_container(given)
            root, self.metadata = self._container.root, self._container.metadata
            chosen, self.notes = choose(path, root, key)
            self.metadata = self.metadata or _own_metadata(path, chosen.metadata, limits)
            self._refs, self.beside = chosen.tensors, beside(root, chosen)
            for name, ref in self._refs.items():
                self.add(name, self._info(name, ref), self._cost(ref))
            for name, what in left_out(root, chosen):
                self.leave_out(name, what)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        return self._read(name, self._refs[name])

    def tensor_of(self, name: str, ref: TensorRef) -> tuple[TensorInfo, Callable[[], np.ndarray]]:
        """A tensor outside the state dict, listed in `beside`: its shape and dtype, and how to read it."""
        info = self._info(name, ref)
        if name not in self._claimed_beside:
            self._claimed_beside.add(name)
            self.claim(self._cost(ref))
        return info, partial(self._read, name, ref)

    def _read(self, name: str, ref: TensorRef) -> np.ndarray:
        data = np.empty(0 if isinstance(ref, ArrayRef) else ref.span * ref.dtype.itemsize, np.uint8)
        try:
            if isinstance(ref, ArrayRef):
                return ref.read()
            if not ref.span:
                return np.empty(ref.shape, ref.dtype)
            self._container.read_into(ref.storage.key, ref.start, data.data)
        except Exception as error:  # as above
            raise SourceError(f"{self.path}: tensor {label(name)!r}: {_reason(error)}; {DAMAGED}") from error
        strides = [stride * ref.dtype.itemsize for stride in ref.strides]
        array = np.asarray(np.ndarray(ref.shape, ref.dtype, data, strides=strides), order="C")
        return array.byteswap(inplace=True) if self._container.byteswapped else array

    def close(self) -> None:
        super().close()
        self._file.close()

    def _info(self, name: str, ref: TensorRef) -> TensorInfo:
        """Shape and dtype, after checking that the file holds that many bytes (CVE-2026-24747)."""
        if isinstance(ref, ArrayRef):  # checked when it was unpickled
            return TensorInfo(ref.shape, ref.dtype.newbyteorder("="))
        storage, item = ref.storage, ref.dtype.itemsize
        has = self._container.size(storage.key)
        claims = (storage.first + storage.numel) * storage.itemsize
        needs = ref.start + ref.span * item if ref.span else 0
        full = math.prod(max(n, 1) for n in ref.shape) * item
        if max(claims, needs) > has:
            problem = f"needs {max(claims, needs)} bytes of storage data, but the file has {has}"
        elif needs > claims:
            problem = f"needs {needs} bytes of a storage of {claims}"
        elif full > MAX_INT:
            problem = f"would expand {claims} bytes to {full}"
        else:
            return TensorInfo(ref.shape, ref.dtype)
        raise SourceError(f"{self.path}: tensor {label(name)!r} of shape {ref.shape} {problem}; {DAMAGED}")

    def _cost(self, ref: TensorRef) -> int:
        """Number of bytes to read for a tensor: from its first to its last element, or all up to the last."""
        if isinstance(ref, ArrayRef):
            return len(ref.data)
        before = ref.start if ref.span and self._container.unpacks(ref.storage.key) else 0
        return before + ref.span * ref.dtype.itemsize


def _own_metadata(path: Path, texts: list[Any], limits: Limits) -> dict[str, Any]:
    """The metadata of `torch_impl.ResNet` in a state dict; {} if there are none."""
    for text in texts:
        if not isinstance(text, str) or text != texts[0]:
            what = "keywords of several networks" if isinstance(text, str) else describe(text)
            raise SourceError(f"{path}: its state dict's metadata has {what}, expected one text of keywords")
    return parse_metadata(texts[0], path, limits) if texts else {}


def recognises_torch(given: Given) -> bool:
    return looks_like_torch_stream(given.head) or any(name.endswith("/data.pkl") for name in given.entries)


def open_torch(source: Path | Given, key: str | None = None, limits: Limits = DEFAULT) -> TorchReader:
    """Open either form. `SourceError` for any other file, and for a file without a state dict."""
    return TorchReader(Given.of(source, limits), key)
