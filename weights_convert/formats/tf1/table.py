"""LevelDB's immutable table as written by TensorFlow: sorted keys and values in blocks with a CRC-32C.

Format: https://github.com/google/leveldb/blob/main/doc/table_format.md. A file has data blocks, an empty
"metaindex" block, an index block (last key of a data block -> position of the block), and a footer of 48
bytes (positions of metaindex and index, magic number). Block size, restart interval and index keys, which the
format leaves open, follow TensorFlow's table_builder.cc, so that equal contents give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from weights_convert.errors import SourceError
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.limits import DEFAULT, Limits, too_many

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_SIZE = 48
_TRAILER_SIZE = 5  # compression type (one byte), masked CRC-32C of the block and that byte
_UNCOMPRESSED = 0
_BLOCK_SIZE = 256 * 1024  # minimum length of a closed data block
_RESTART_INTERVAL = 16  # every 16th key is written in full, the others share a prefix with their predecessor
_MAX_BLOCK = 1 << 27  # TensorFlow's blocks have 256 kB; the index of 100,000 such blocks is smaller
_MAX_EXPANSION = 64  # limit of the length of all keys / length of their block; below 16 in honest files

_Handle = tuple[int, int]  # offset and length of a block, without its trailer


class WireError(ValueError):
    """Bytes that violate the format; callers that know the path turn it into a `SourceError`."""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned integer of up to 64 bits, 7 bits per byte, lowest first; also return its end."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + shift + 1
    raise WireError("an integer that does not end")


def varint(value: int) -> bytes:
    """The inverse of `read_varint`."""
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def read_bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    """Return exactly `length` bytes, and the position after them."""
    if at + length > len(data):
        raise WireError(f"{length} bytes announced, but only {max(len(data) - at, 0)} left")
    return data[at : at + length], at + length


def read_table(path: Path, limits: Limits = DEFAULT) -> dict[bytes, bytes]:
    """All keys and values in the file's order; `SourceError` for a damaged file or another format."""
    try:
        if not path.is_file():
            raise SourceError(f"{path}: no such file; a TF1 checkpoint needs it beside its .data files")
        with path.open("rb") as file:
            return _whole(path, _table(file, size=file.seek(0, 2)), limits)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except WireError as error:
        raise SourceError(
            f"{path}: cannot be read as a checkpoint index ({error}); "
            "copy the checkpoint again, or save it again with tf.train.Saver"
        ) from error


def _whole(path: Path, pairs: Iterable[tuple[bytes, bytes]], limits: Limits) -> dict[bytes, bytes]:
    """The table in memory, within the limits for the number of tensors."""
    table, size = {}, 0
    for key, value in pairs:
        table[key] = value
        size += len(key) + len(value)
        if size > limits.text:
            raise too_many(path, "bytes or more of names and entries", size, "max_tensors", limits.text)
        if len(table) > limits.max_tensors + 1:  # 1 for the header
            raise too_many(path, "or more entries", len(table), "max_tensors", limits.max_tensors)
    return table


def _table(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    last_key, read = None, 0
    for _, handle in _entries(_read_block(file, size, _index_handle(file, size))):
        block = _read_block(file, size, _handle(handle, 0)[0])
        read += len(block) + _TRAILER_SIZE
        if read > size:  # overlapping blocks without keys could cause unlimited work
            raise WireError("the blocks of the index overlap")
        for key, value in _entries(block):
            if last_key is not None and key <= last_key:
                raise WireError("the keys of the index are not in order")
            yield key, value
            last_key = key


def _index_handle(file: BinaryIO, size: int) -> _Handle:
    if size < _FOOTER_SIZE:
        raise WireError(f"{size} bytes, but a checkpoint index has at least {_FOOTER_SIZE}")
    file.seek(size - _FOOTER_SIZE)
    footer = file.read(_FOOTER_SIZE)
    if not footer.endswith(_MAGIC):
        raise WireError("it does not end with the magic number; truncated?")
    _metaindex, at = _handle(footer, 0)
    return _handle(footer, at)[0]


def _handle(data: bytes, at: int) -> tuple[_Handle, int]:
    offset, at = read_varint(data, at)
    length, at = read_varint(data, at)
    return (offset, length), at


def _read_block(file: BinaryIO, size: int, handle: _Handle) -> bytes:
    offset, length = handle
    if offset + length + _TRAILER_SIZE > size - _FOOTER_SIZE:
        raise WireError(f"{size} bytes, but a block of the index ends at byte {offset + length}")
    if length > _MAX_BLOCK:
        raise WireError(f"a block of {length} bytes, at most {_MAX_BLOCK} are read")
    file.seek(offset)
    content, _ = read_bytes(file.read(length + _TRAILER_SIZE), 0, length + _TRAILER_SIZE)
    if masked(crc32c(content[:-4])) != int.from_bytes(content[-4:], "little"):
        raise WireError(f"wrong CRC-32C of the block at byte {offset}")
    if content[length] != _UNCOMPRESSED:
        raise WireError(
            f"compressed index blocks are not supported, but block {offset} has type {content[length]}"
        )
    return content[:length]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. The restart points at the end are only for binary search."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise WireError(f"a block of {len(block)} bytes with {restarts} restart points")
    block, at, key, expanded = block[:end], 0, b"", 0
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key):
            raise WireError(f"a key that shares {shared} bytes with one of {len(key)}")
        suffix, at = read_bytes(block, at, unshared)
        value, at = read_bytes(block, at, length)
        key = key[:shared] + suffix
        expanded += len(key)
        if expanded > _MAX_EXPANSION * end:
            raise WireError(f"the keys of a block are more than {_MAX_EXPANSION} times as long as the block")
        yield key, value


def write_table(path: Path, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Write keys and values; the keys must be unique and sorted."""
    with path.open("wb") as file:
        index, block = _Block(restart_interval=1), _Block()
        for key, value in pairs:
            if block.size >= _BLOCK_SIZE:
                index.add(_separator(block.last_key, key), _append(file, block))
                block = _Block()
            block.add(key, value)
        if block.count:
            index.add(_successor(block.last_key), _append(file, block))
        handles = _append(file, _Block()) + _append(file, index)
        file.write(handles.ljust(_FOOTER_SIZE - len(_MAGIC), b"\0") + _MAGIC)


class _Block:
    """A block under construction."""

    def __init__(self, restart_interval: int = _RESTART_INTERVAL):
        self.restart_interval = restart_interval
        self.content = bytearray()
        self.restarts: list[int] = []
        self.count = 0
        self.last_key = b""

    @property
    def size(self) -> int:
        return len(self.content) + 4 * len(self.restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count % self.restart_interval == 0:
            self.restarts.append(len(self.content))
        else:
            shared = _common_prefix(self.last_key, key)
        self.content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.count += 1
        self.last_key = key

    def finish(self) -> bytes:
        restarts = self.restarts or [0]
        return bytes(self.content) + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def _append(file: BinaryIO, block: _Block) -> bytes:
    """Write the block with its trailer and return its handle."""
    offset, content = file.tell(), block.finish()
    checked = content + bytes([_UNCOMPRESSED])
    file.write(checked + masked(crc32c(checked)).to_bytes(4, "little"))
    return varint(offset) + varint(len(content))


def _common_prefix(a: bytes, b: bytes) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key k with last <= k < following."""
    n = _common_prefix(last, following)
    if n < min(len(last), len(following)) and last[n] + 1 < following[n]:
        return last[:n] + bytes([last[n] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """A short key k with last <= k."""
    for n, byte in enumerate(last):
        if byte < 0xFF:
            return last[:n] + bytes([byte + 1])
    return last
