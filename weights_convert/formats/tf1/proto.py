"""The protobuf messages in the index of a TF1 checkpoint: its header and one entry per tensor.

Messages: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
(with tensor_shape.proto, types.proto and versions.proto of core/framework). Encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from weights_convert.formats.base import TensorInfo
from weights_convert.formats.tf1.table import WireError, read_bytes, read_varint, varint

# Wire types, and tags: 8 * the field's number in the .proto + its wire type.
VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
FIXED_LENGTHS = {_FIXED32: 4, _FIXED64: 8}
_NUM_SHARDS, _ENDIANNESS, _VERSION = 8 + VARINT, 16 + VARINT, 24 + BYTES  # BundleHeaderProto
_PRODUCER, _MIN_CONSUMER = 8 + VARINT, 16 + VARINT  # VersionDef
_DTYPE, _SHAPE, _SHARD_ID, _OFFSET = 8 + VARINT, 16 + BYTES, 24 + VARINT, 32 + VARINT  # BundleEntryProto
_SIZE, _CRC32C, _SLICES = 40 + VARINT, 48 + _FIXED32, 56 + BYTES
_DIM, _UNKNOWN_RANK = 16 + BYTES, 24 + VARINT  # TensorShapeProto
_DIM_SIZE = 8 + VARINT  # TensorShapeProto.Dim

_SUPPORTED_VERSION = 1
_BYTE_ORDERS = {0: "little", 1: "big"}
_MAX_RANK = 64  # NumPy's
_DTYPES = {  # DataType
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    18: np.dtype(np.complex128),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
    24: np.dtype(ml_dtypes.float8_e5m2),
    25: np.dtype(ml_dtypes.float8_e4m3fn),
}
_TEXT = 7
_NO_ARRAYS = {_TEXT: "string tensor", 20: "resource tensor", 21: "variant tensor"}
DTYPE_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}


class Header(NamedTuple):
    """Facts about the whole checkpoint."""

    shards: int
    byte_order: str  # as `sys.byteorder`


class Entry(NamedTuple):
    """The position of one tensor; `crc` is the masked CRC-32C of its bytes in the file."""

    info: TensorInfo
    shard: int
    offset: int
    size: int
    crc: int


def parse_header(message: bytes) -> Header:
    fields = parse(message)
    needed = last(parse(last(fields, _VERSION, b"")), _MIN_CONSUMER)
    if needed > _SUPPORTED_VERSION:
        raise WireError(f"it needs a reader of version {needed}, but this is version {_SUPPORTED_VERSION}")
    endianness = last(fields, _ENDIANNESS)
    if endianness not in _BYTE_ORDERS:
        raise WireError(f"byte order {endianness}, expected 0 (little) or 1 (big)")
    return Header(last(fields, _NUM_SHARDS), _BYTE_ORDERS[endianness])


def dump_header(shards: int = 1) -> bytes:
    """The header of our files: little-endian, one data file except during a move (`place`)."""
    return _field(_NUM_SHARDS, shards) + _field(_VERSION, _field(_PRODUCER, _SUPPORTED_VERSION))


def parse_entry(message: bytes) -> Entry | str:
    """The entry of one tensor, or a description of an unsupported entry."""
    fields = parse(message)
    number = last(fields, _DTYPE)
    if number not in _DTYPES:
        return _NO_ARRAYS.get(number, f"tensor of TensorFlow's dtype number {number}")
    if _SLICES in fields:
        return "slices of a partitioned variable"
    info = TensorInfo(_parse_shape(last(fields, _SHAPE, b"")), _DTYPES[number])
    size = last(fields, _SIZE)
    if math.prod(info.shape) * info.dtype.itemsize != size:
        raise WireError(f"{info.dtype} {info.shape} in {size} bytes")
    crc = int.from_bytes(last(fields, _CRC32C, b""), "little")
    return Entry(info, last(fields, _SHARD_ID), last(fields, _OFFSET), size, crc)


def parse_text_entry(message: bytes) -> Entry:
    """The entry of a tensor of one text, as bytes."""
    fields = parse(message)
    size, crc = last(fields, _SIZE), int.from_bytes(last(fields, _CRC32C, b""), "little")
    if last(fields, _DTYPE) != _TEXT or _parse_shape(last(fields, _SHAPE, b"")) != ():
        raise WireError("expected one text")
    info = TensorInfo((size,), np.dtype(np.uint8))
    return Entry(info, last(fields, _SHARD_ID), last(fields, _OFFSET), size, crc)


def dump_entry(entry: Entry) -> bytes:
    """The inverse of `parse_entry`."""
    fields: dict[int, int | bytes] = {
        _DTYPE: DTYPE_NUMBERS[entry.info.dtype],
        _SHAPE: b"".join(_field(_DIM, _field(_DIM_SIZE, size)) for size in entry.info.shape),
        _SHARD_ID: entry.shard,
        _OFFSET: entry.offset,
        _SIZE: entry.size,
        _CRC32C: entry.crc.to_bytes(4, "little"),
    }
    return b"".join(_field(tag, value) for tag, value in fields.items())


def _parse_shape(message: bytes) -> tuple[int, ...]:
    fields = parse(message)
    shape = tuple(last(parse(dim), _DIM_SIZE) for dim in fields.get(_DIM, []))
    countable = math.prod(max(size, 1) for size in shape) < 1 << 58  # NumPy's limit, even without elements
    if last(fields, _UNKNOWN_RANK) or len(shape) > _MAX_RANK or not countable:
        raise WireError("an impossible shape")
    return shape


def parse(message: bytes) -> dict[int, list[Any]]:
    """The fields of a message: tag -> values, an int for a varint, bytes for all others.

    A field with the wrong wire type has an unknown tag, so no value has an unexpected type.
    """
    fields: dict[int, list[Any]] = {}
    for tag, value in tags_and_values(message):
        fields.setdefault(tag, []).append(value)
    return fields


def tags_and_values(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in their order."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        wire_type = tag % 8
        value: int | bytes
        if wire_type == VARINT:
            value, at = read_varint(message, at)
        elif wire_type == BYTES:
            length, at = read_varint(message, at)
            value, at = read_bytes(message, at, length)
        elif wire_type in FIXED_LENGTHS:
            value, at = read_bytes(message, at, FIXED_LENGTHS[wire_type])
        else:
            raise WireError(f"a protobuf field of type {wire_type}")
        yield tag, value


def last(fields: dict[int, list[Any]], tag: int, default: Any = 0) -> Any:
    """The value of a field that is not repeated: the last one counts, as in protobuf."""
    return fields.get(tag, [default])[-1]


def _field(tag: int, value: int | bytes) -> bytes:
    """One encoded field; an integer of 0, the default, is omitted, as in protobuf."""
    if isinstance(value, int):
        return varint(tag) + varint(value) if value else b""
    return varint(tag) + (varint(len(value)) if tag % 8 == BYTES else b"") + value
