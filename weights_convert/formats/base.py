"""Common parts of all containers: a lazy reader, a streaming writer, and metadata as JSON.

A reader lists names, shapes and dtypes without reading any tensor, and reads one tensor at a time. A writer
gets the same list and a function that returns one tensor at a time, and writes it with `memory.pieces`. A
conversion therefore holds one tensor in memory, not the whole checkpoint.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from weights_convert.atomic import Orphans, Place, no_orphans, place_file
from weights_convert.errors import MismatchError, SourceError, printable
from weights_convert.limits import DEFAULT, Limits, too_many

METADATA_NAME = "samenet"  # name of our JSON text in every container
MAX_NDIM = 32  # of a tensor; supported by every NumPy


class TensorInfo(NamedTuple):
    """Shape and dtype of one tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def is_number(dtype: np.dtype) -> bool:
    """Whether this is a NumPy dtype that every container supports: not complex, not long double."""
    return dtype.kind in "fiub" and dtype.itemsize <= 8


class Reader(ABC):
    """One open file. `read` returns a fresh, C-contiguous array in native byte order.

    Attributes:
        path: the file (for a TF1 checkpoint the prefix).
        tensors: name -> `TensorInfo`, in the file's order.
        metadata: this project's metadata, {} if the file has none.
        networks: scope -> metadata, for files with metadata of several networks.
        configs: name -> content of the JSON files of a folder.
        left_out: name -> description of other contents (epoch, optimiser slots ...).
        stated: keyword of a network -> values that the file states, which no tensor shows.
        beside: the other entries of a PyTorch training checkpoint, unread.
        notes: remarks for the user on how the file was read.
        otherwise: the description of a file whose tensors are no known network, and what to do.
    """

    format: ClassVar[str]
    closed = False

    def __init__(self, path: Path, limits: Limits = DEFAULT):
        self.path = path
        self.limits = limits
        self._size = self._claimed = 0
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, Any] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        self.stated: dict[str, list[float]] = {}
        self.beside: dict[Any, Any] = {}
        self.notes: list[str] = []
        self.otherwise = ""

    def add(self, name: str, info: TensorInfo, cost: int = 0) -> None:
        """List a tensor; `cost` is the number of bytes to read if larger than its size."""
        full = math.prod(max(n, 1) for n in info.shape) * info.dtype.itemsize
        if len(info.shape) > MAX_NDIM or full >= 2**63:  # NumPy refuses more, even without elements
            raise SourceError(f"{self.path}: tensor {one_line(name)!r} has an impossible shape")
        self.claim(max(info.nbytes, cost))
        self.tensors[name] = info
        self._count()

    def leave_out(self, name: str, what: str) -> None:
        """List contents that are not read."""
        self.left_out[name] = what
        self._count()

    def has(self, size: int) -> None:
        """Count existing bytes of the file, or of one of its files."""
        self._size += size

    def claim(self, nbytes: int) -> None:
        """Count the bytes for reading the whole file; `LimitError` if there are too many."""
        self._claimed += nbytes
        allowed = self.limits.bytes_of(self._size)
        if self._claimed > allowed:
            raise too_many(
                self.path, f"bytes or more from a file of {self._size:,}", self._claimed, "max_bytes", allowed
            )

    def _count(self) -> None:
        count, most = len(self.tensors) + len(self.left_out), self.limits.max_tensors
        if count > most:
            raise too_many(self.path, "or more tensors and other entries", count, "max_tensors", most)

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """The tensor `name`; `SourceError` if its bytes are missing or damaged."""

    def said(self, key: str, kind: type) -> Any:
        """The value of `key` in this project's metadata, or None."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, kind):
            raise SourceError(
                f"{self.path}: {key!r} in its metadata is a {type(value).__name__}, expected {kind.__name__}"
            )
        return value

    def close(self) -> None:
        """Close the file; reading after that is an error."""
        self.closed = True

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


Write = Callable[[Path, Mapping[str, TensorInfo], Callable[[str], np.ndarray], Mapping[str, Any]], None]


@dataclass(frozen=True)
class Format:
    """One container: its name, suffixes, reader and writer."""

    name: str
    suffixes: tuple[str, ...]  # for writing; reading depends on the content
    description: str
    own_family: str  # its default layout
    recognises: Callable[[Any], bool]  # whether a `Given` is one
    open: Callable[..., Reader]  # of a path or a `Given`
    write: Write | None = None  # None: read only
    files: Callable[[Path], list[Path]] = lambda path: [path]  # the files of `write(path)`
    place: Place = place_file  # (from, to, overwrite): moves the files to their destination
    any_layout: bool = False  # whether it may hold layouts of other containers
    keyed: bool = False  # whether one file may hold several checkpoints, opened with `key`
    whole_folder: bool = False  # whether the destination is a new folder
    orphans: Orphans = no_orphans  # leftovers of an interrupted move beside `path`


def as_announced(
    path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """`read` for a writer: native byte order, and `MismatchError` for an unexpected shape or dtype."""

    def checked(name: str) -> np.ndarray:
        array, info = np.asarray(read(name)), tensors[name]
        native = array.dtype.newbyteorder("=")
        if (array.shape, native) != info:
            found = f"{array.dtype} {array.shape}"
            raise MismatchError(f"{path}: tensor {name!r} is {found}, expected {info.dtype} {info.shape}")
        return array.astype(native, copy=False)

    return checked


def fill(file: Any, buffer: memoryview) -> None:
    """Fill `buffer`; `EOFError` if the file has too few bytes."""
    while len(buffer):
        count = file.readinto(buffer)
        if not count:
            raise EOFError(f"{len(buffer)} bytes are missing")
        buffer = buffer[count:]


def one_line(text: object, limit: int = 160) -> str:
    """An error's or a file's text as one printable line of at most `limit` characters."""
    line = printable(" ".join(str(text)[: 4 * limit].split()))
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as one line of ASCII JSON with sorted keys, so that equal metadata give equal bytes."""
    return json.dumps(metadata, sort_keys=True)


def parse_metadata(
    text: Any, path: Path, limits: Limits = DEFAULT, what: str = f"{METADATA_NAME!r} metadata"
) -> dict[str, Any]:
    """The inverse of `dump_metadata`; `SourceError` for anything that is not a JSON object."""
    if not isinstance(text, str | bytes):
        raise SourceError(f"{path}: its {what} is {type(text).__name__}, expected text")
    if len(text) > limits.text:
        raise too_many(path, f"bytes of {what}", len(text), "max_tensors", limits.text)
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: its {what} is not JSON ({one_line(error)})") from error
    check_depth(value, path, limits)
    if not isinstance(value, dict):
        raise SourceError(f"{path}: its {what} is {type(value).__name__}, expected an object")
    return value


def check_depth(value: Any, path: Path, limits: Limits) -> None:
    """Raise `LimitError` for lists and objects that are nested too deeply."""
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > limits.max_depth:
            raise too_many(path, "levels or more of metadata", depth, "max_depth", limits.max_depth)
