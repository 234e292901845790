"""Caffe's .caffemodel, read blob by blob: a NetParameter of caffe.proto, with layers of both versions.

Messages: https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto. Encoding:
https://protobuf.dev/programming-guides/encoding/. A layer's blobs get PyTorch's leaf names. Caffe divides a
batch norm into BatchNorm (mean, variance, and a factor that both are divided by) and Scale (gamma, beta): a
Scale that follows a BatchNorm on the same values gives its tensors to it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np

from weights_convert.errors import SourceError
from weights_convert.formats.base import MAX_NDIM, Reader, TensorInfo, fill, one_line
from weights_convert.formats.given import Given
from weights_convert.formats.tf1.proto import BYTES, FIXED_LENGTHS, VARINT
from weights_convert.formats.tf1.table import WireError, read_varint
from weights_convert.limits import DEFAULT, Limits, too_many

_FIXED32, _FIXED64 = 5, 1  # wire types
_SINGLE: np.dtype = np.dtype("<f4")
_DOUBLE: np.dtype = np.dtype("<f8")


class _Fields(NamedTuple):
    """The numbers of a layer's fields."""

    name: int
    type: int
    bottom: int
    top: int
    blobs: int


_LAYERS = {100: _Fields(1, 2, 3, 4, 7), 2: _Fields(4, 5, 2, 3, 6)}  # field of the network: LayerParameter, V1
_V1_TYPES = {4: "Convolution", 14: "InnerProduct"}  # those with blobs that networks here have
_V0_LAYER = 1  # in V1: a layer of the version before
_BATCH_NORM, _EPSILON = 139, 3  # batch_norm_param of a layer, and eps in it
_DEFAULT_EPSILON = 1e-5
_LEGACY_SHAPE = (1, 2, 3, 4)  # BlobProto: num, channels, height, width
_SHAPE, _DIM = 7, 1
_DATA: dict[int, np.dtype] = {5: _SINGLE, 8: _DOUBLE}
_LEAVES = {
    "Convolution": ("weight", "bias"),
    "InnerProduct": ("weight", "bias"),
    "Scale": ("weight", "bias"),
    "BatchNorm": ("running_mean", "running_var", "factor"),
}
_RANKS = {"InnerProduct": 2, "Scale": 1, "BatchNorm": 1}  # of the first blob; the second one has 1

_SUFFIX = ".caffemodel"
_Span = tuple[int, int]  # where bytes begin and end


class _Blob(NamedTuple):
    """The place of an array: stretches of packed values, or of values with a tag before each."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stretches: list[tuple[_Span, bool]]  # and whether it is packed


class _Layer(NamedTuple):
    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    blobs: list[_Span]
    epsilon: float


def recognises_caffe(given: Given) -> bool:
    """A network's name, then a layer or an input; or the tag of a layer at once."""
    head = given.head
    if head[:1] == b"\n" and given.path.name.endswith(_SUFFIX):
        return True
    if head[:1] == b"\n" and len(head) > 2 and head[1] < 0x80:
        name, rest = head[2 : 2 + head[1]], head[2 + head[1] :]
        follows = re.match(rb"\xa2\x06|\x12|\x1a.[\x20-\x7e]|\x42|\x20", rest, re.DOTALL)
        return re.fullmatch(rb"[\x20-\x7e]*", name) is not None and follows is not None
    return head[:2] == b"\xa2\x06"


class CaffeReader(Reader):
    """A .caffemodel file.

    Every length is checked against the message around it, and every shape against the number of values,
    before anything is allocated.
    """

    format: ClassVar[str] = "caffe"

    def __init__(self, source: Path | Given, limits: Limits = DEFAULT):
        given = Given.of(source, limits)
        super().__init__(given.path, given.limits)
        self._file: BinaryIO = given.file
        self._fields = 0
        self._blobs: dict[str, _Blob] = {}
        self._factors: dict[str, _Blob] = {}  # tensor -> what it is divided by
        try:
            size = self._file.seek(0, 2)
            self.has(size)
            self._read_network((0, size))
        except (OSError, ValueError, EOFError) as error:
            self.close()
            raise SourceError(
                f"{self.path}: not a readable .caffemodel, it is truncated or damaged ({one_line(error)})"
            ) from None
        except BaseException:
            self.close()
            raise

    def _read_network(self, span: _Span) -> None:
        scaled: dict[str, str] = {}  # values -> the batch norm that made them
        names: set[str] = set()
        epsilons: set[float] = set()
        for number, value in self._spans(span):
            if number not in _LAYERS:
                continue
            layer = self._layer(value, _LAYERS[number])
            if layer.blobs and layer.name in names:  # without blobs: an input for training and one for tests
                raise WireError(f"two layers are called {layer.name!r}")
            names |= {layer.name} if layer.blobs else set()
            owner = layer.name
            if layer.type == "Scale" and len(layer.bottoms) == 1:
                owner = scaled.pop(layer.bottoms[0], layer.name)
            for top in layer.tops:
                scaled.pop(top, None)
            if layer.type == "BatchNorm" and layer.tops:
                scaled[layer.tops[0]] = layer.name
                epsilons.add(layer.epsilon)
            self._add_blobs(layer, owner)
        self.stated = {"bn_epsilon": sorted(epsilons)}

    def _layer(self, span: _Span, fields: _Fields) -> _Layer:
        found: dict[int, list[_Span]] = {}
        kind, epsilon = "", _DEFAULT_EPSILON
        for number, wire, value in self._messages(span):
            if wire == BYTES and isinstance(value, tuple):
                found.setdefault(number, []).append(value)
            elif number == fields.type and isinstance(value, int):
                kind = _V1_TYPES.get(value, f"V1 type {value}")
            if fields is _LAYERS[2] and number == _V0_LAYER:
                raise SourceError(
                    f"{self.path}: has layers of Caffe's first version; upgrade the file with Caffe's tools"
                )
            if fields is _LAYERS[100] and number == _BATCH_NORM and isinstance(value, tuple):
                epsilon = self._epsilon(value)
        texts = {n: [self._text(text) for text in found.get(n, ())] for n in fields[:4]}
        kind = kind or (texts[fields.type] or [""])[-1]
        name = (texts[fields.name] or [""])[-1]
        return _Layer(
            name, kind, texts[fields.bottom], texts[fields.top], found.get(fields.blobs, []), epsilon
        )

    def _epsilon(self, span: _Span) -> float:
        for number, wire, value in self._messages(span):
            if number == _EPSILON and wire == _FIXED32 and isinstance(value, tuple):
                return float(np.frombuffer(self._bytes(value), _SINGLE)[0])
        return _DEFAULT_EPSILON

    def _add_blobs(self, layer: _Layer, owner: str) -> None:
        leaves = _LEAVES.get(layer.type, ())
        for place, span in enumerate(layer.blobs):
            leaf = leaves[place] if place < len(leaves) else f"blob{place}"
            rank = (_RANKS.get(layer.type) if not place else 1) if leaves else None
            blob = self._blob(span, rank)
            if leaf == "factor":
                if math.prod(blob.shape) != 1:
                    raise WireError(f"{layer.name}: its factor has shape {blob.shape}, expected one value")
                for other in ("running_mean", "running_var"):
                    self._factors[f"{owner}.{other}"] = blob
                continue
            name = f"{owner}.{leaf}"
            if name in self._blobs:
                raise WireError(f"two blobs are called {name!r}")
            self._blobs[name] = blob
            self.add(name, TensorInfo(blob.shape, blob.dtype.newbyteorder("=")))

    def _blob(self, span: _Span, rank: int | None) -> _Blob:
        """The place of a blob; its shape with leading ones left out until it has `rank` axes."""
        legacy: dict[int, int] = {}
        dims: list[int] = []
        values: dict[np.dtype, list[tuple[_Span, bool]]] = {_SINGLE: [], _DOUBLE: []}
        for number, wire, value in self._messages(span, runs=True):
            if number in _LEGACY_SHAPE and isinstance(value, int):
                legacy[number] = value
            elif number == _SHAPE and isinstance(value, tuple):
                dims += self._dims(value)
            elif number in _DATA and isinstance(value, tuple):
                if wire not in (BYTES, _FIXED32 if _DATA[number] == _SINGLE else _FIXED64):
                    raise WireError("values of another type than float and double")
                values[_DATA[number]].append((value, wire == BYTES))
        shape = tuple(legacy.get(number, 0) for number in _LEGACY_SHAPE) if legacy else tuple(dims)
        if len(shape) > MAX_NDIM or not all(0 <= size < 2**31 for size in shape):
            raise WireError("an impossible shape")
        dtype = _DOUBLE if values[_DOUBLE] else _SINGLE
        count = sum(_count(stretch, packed, dtype) for stretch, packed in values[dtype])
        if math.prod(shape) != count:
            raise WireError(f"a blob of shape {shape} with {count} values")
        while rank is not None and len(shape) > rank and shape[0] == 1:
            shape = shape[1:]
        return _Blob(shape, dtype, values[dtype])

    def _dims(self, span: _Span) -> Iterator[int]:
        for number, wire, value in self._messages(span):
            if number == _DIM and isinstance(value, int):
                yield value
            elif number == _DIM and wire == BYTES and isinstance(value, tuple):
                packed, at = self._bytes(value), 0
                while at < len(packed):
                    self._counted()
                    size, at = read_varint(packed, at)
                    yield size

    def _messages(self, span: _Span, runs: bool = False) -> Iterator[tuple[int, int, int | _Span]]:
        """The fields of a message: number, wire type, and the integer or the place of the bytes.

        With `runs` fields of the same tag and a fixed length that follow each other are one, tags included.
        """
        at, end = span
        while at < end:
            self._counted()
            begin = at
            tag, at = self._varint(at, end)
            number, wire = tag // 8, tag % 8
            if wire == VARINT:
                value, at = self._varint(at, end)
                yield number, wire, value
                continue
            if wire not in (BYTES, *FIXED_LENGTHS):
                raise WireError(f"a protobuf field of type {wire}")
            length, at = self._varint(at, end) if wire == BYTES else (FIXED_LENGTHS[wire], at)
            if at + length > end:
                raise WireError(f"{length} bytes announced, but only {end - at} left")
            if runs and wire != BYTES and at == begin + 1:
                place = self._run(begin, end, 1 + length)
                yield number, wire, place
                at = place[1]
            else:
                yield number, wire, (at, at + length)
                at += length

    def _run(self, begin: int, end: int, step: int) -> _Span:
        """The stretch of values that have the tag of the first one before them."""
        tag, at, count = self._bytes((begin, begin + 1))[0], begin, 16
        while count := min(count, (end - at) // step):  # twice as many each time: in proportion to the run
            tags = np.frombuffer(self._bytes((at, at + count * step)), np.uint8)[::step]
            others = np.flatnonzero(tags != tag)
            if len(others):
                return begin, at + step * int(others[0])
            at, count = at + count * step, 2 * count
        return begin, at

    def _spans(self, span: _Span) -> Iterator[tuple[int, _Span]]:
        for number, wire, value in self._messages(span):
            if wire == BYTES and isinstance(value, tuple):
                yield number, value

    def _counted(self) -> None:
        self._fields += 1
        if self._fields > self.limits.operations:
            most = self.limits.operations
            raise too_many(self.path, "or more fields", self._fields, "max_tensors", most)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value, length = read_varint(self._bytes((at, min(at + 10, end))), 0)
        return value, at + length

    def _bytes(self, span: _Span) -> bytes:
        self._file.seek(span[0])
        return self._file.read(span[1] - span[0])

    def _text(self, span: _Span) -> str:
        if span[1] - span[0] > self.limits.text:
            raise WireError("a name that is too long")
        return self._bytes(span).decode("utf-8", "replace")

    def read(self, name: str) -> np.ndarray:
        array = self._values(name, self._blobs[name])
        if (factor := self._factors.get(name)) is not None:
            by = self._values(name, factor).reshape(())
            with np.errstate(all="ignore"):  # a damaged factor
                array = array / by if by else np.zeros_like(array)  # Caffe's rule
        return array

    def _values(self, name: str, blob: _Blob) -> np.ndarray:
        flat, at = np.empty(math.prod(blob.shape), blob.dtype), 0
        try:
            for (begin, end), packed in blob.stretches:
                count = _count((begin, end), packed, blob.dtype)
                self._file.seek(begin)
                if packed:
                    fill(self._file, flat[at : at + count].view(np.uint8).data)
                else:
                    tagged = np.frombuffer(
                        self._file.read(end - begin), [("tag", "u1"), ("value", blob.dtype)]
                    )
                    flat[at : at + count] = tagged["value"]
                at += count
        except (OSError, EOFError, ValueError) as error:  # the file has changed since it was opened
            raise SourceError(f"{self.path}: {one_line(name)} cannot be read ({one_line(error)})") from error
        native = flat if sys.byteorder == "little" else flat.byteswap().view(blob.dtype.newbyteorder("="))
        return native.reshape(blob.shape)

    def close(self) -> None:
        super().close()
        self._file.close()


def _count(span: _Span, packed: bool, dtype: np.dtype) -> int:
    """The number of values in a stretch."""
    step = dtype.itemsize + (0 if packed else 1)
    if (span[1] - span[0]) % step:
        raise WireError(f"{span[1] - span[0]} bytes of values of {dtype.itemsize}")
    return (span[1] - span[0]) // step
