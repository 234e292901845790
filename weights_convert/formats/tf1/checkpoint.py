"""TF1 checkpoints: `tf.train.Saver`'s tensor bundles, read and written without TensorFlow.

Format: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/tensor_bundle/tensor_bundle.h
`PREFIX.index` is a table: name -> position of the tensor, and a header under the empty name.
`PREFIX.data-0000i-of-0000n` holds only the tensors' bytes, one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    as_announced,
    dump_metadata,
    parse_metadata,
)
from weights_convert.formats.given import Given
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.find import STATE, is_file
from weights_convert.formats.tf1.meta import meta_path, networks_in_meta
from weights_convert.formats.tf1.objects import GRAPH, OTHERWISE, names_of, text_in
from weights_convert.formats.tf1.place import data_path, index_path, tf1_files
from weights_convert.formats.tf1.proto import (
    DTYPE_NUMBERS,
    Entry,
    dump_entry,
    dump_header,
    parse_entry,
    parse_header,
    parse_text_entry,
)
from weights_convert.formats.tf1.table import WireError, write_table
from weights_convert.limits import DEFAULT, Limits, too_many
from weights_convert.memory import pieces

_ADVICE = "copy the checkpoint again, or save it again with tf.train.Saver"


def recognises_tf1(given: Given) -> bool:
    return given.prefix is not None


def open_tf1(source: Path | Given, limits: Limits = DEFAULT) -> TF1Reader:
    """Open a checkpoint by its prefix, one of its files, or a directory with a file named `checkpoint`."""
    given = Given.of(source, limits)
    if given.prefix is None:
        raise SourceError(
            f"{given.path}: not a TF1 checkpoint; expected its prefix (model.ckpt-12345), its .index or "
            f".data file or a directory in which a file named {STATE!r} names the prefix"
        )
    return TF1Reader(given)


class TF1Reader(Reader):
    """A tensor bundle. The variables of TF2's `tf.train.Checkpoint` and SavedModel have their own names."""

    format = "tf1"

    def __init__(self, given: Given):
        assert given.prefix is not None  # see `open_tf1`
        super().__init__(given.prefix, given.limits)
        self._entries: dict[str, Entry] = {}
        self._data_files: dict[int, BufferedReader] = {}
        self._open_files = ExitStack()
        with self._open_files as files:  # closes them after an error
            self._read_index(given)
            self._take_metadata()
            self._open_files = files.pop_all()

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        array = np.empty(entry.info.shape, entry.info.dtype)
        raw = array.reshape(-1).view(np.uint8)  # the same memory
        try:
            self._data_files[entry.shard].seek(entry.offset)
            count = self._data_files[entry.shard].readinto(raw.data)
        except OSError as error:
            raise self._data_error(entry, f"tensor {name!r} cannot be read ({error.strerror})") from error
        if count != entry.size:
            raise self._data_error(entry, f"only {count} of {entry.size} bytes of tensor {name!r}; {_ADVICE}")
        if masked(crc32c(raw)) != entry.crc:
            raise self._data_error(entry, f"tensor {name!r} is damaged (wrong CRC-32C); {_ADVICE}")
        if self._header.byte_order != sys.byteorder:
            _swap_bytes(array)
        return array

    def close(self) -> None:
        super().close()
        self._open_files.close()

    def _read_index(self, given: Given) -> None:
        path, table = index_path(self.path), dict(given.index)
        part = "the header"
        if b"" not in table:
            raise SourceError(f"{path}: a table, but without the header of a TF1 checkpoint; {_ADVICE}")
        try:
            self._header = parse_header(table.pop(b""))
            graph = table.pop(GRAPH.encode(), None)
            entries = {}
            for key, value in table.items():
                if key.startswith(b"\0"):  # a slice of a variable that has its own entry
                    continue
                part = f"the entry of {key.decode(errors='replace')!r}"
                entries[key.decode()] = parse_entry(value)
            if graph is not None:
                part = f"the entry of {GRAPH!r}"
                entries = self._named(entries, parse_text_entry(graph))
            for name, entry in entries.items():
                part = f"the entry of {name!r}"
                self._add(name, entry)
        except (WireError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}: cannot use {part} ({error}); {_ADVICE}") from error

    def _named(self, entries: dict[str, Entry | str], graph: Entry) -> dict[str, Entry | str]:
        """The entries of TF2's checkpoints by the names of the variables; leaves out those of optimizers."""
        self._check(GRAPH, graph)
        if graph.size > self.limits.text:
            raise too_many(self.path, "bytes of objects", graph.size, "max_tensors", self.limits.text)
        file = self._data_file(graph)
        file.seek(graph.offset)
        text = text_in(file.read(graph.size), graph.crc)
        self.otherwise = OTHERWISE
        self.leave_out(GRAPH, "graph of Python objects")
        found = names_of(entries, text, self.path, self.limits)
        for key, what in found.left_out.items():
            self.leave_out(key, what)
        return {name: entries[key] for key, name in found.names.items()}

    def _add(self, name: str, entry: Entry | str) -> None:
        if isinstance(entry, str):
            self.leave_out(name, entry)
            return
        self._check(name, entry)
        self._entries[name] = entry
        self.add(name, entry.info)

    def _check(self, name: str, entry: Entry) -> None:
        """Raise an error unless the data file has the bytes of a tensor."""
        if entry.shard >= self._header.shards:
            raise WireError(f"data file number {entry.shard} of {self._header.shards}")
        available, end = self._data_file(entry).seek(0, 2), entry.offset + entry.size
        if end > available:  # checked now, to avoid allocating arrays for missing bytes
            problem = f"{available} bytes, but tensor {name!r} ends at byte {end}: truncated; {_ADVICE}"
            raise self._data_error(entry, problem)

    def _data_file(self, entry: Entry) -> BufferedReader:
        if entry.shard not in self._data_files:
            path = data_path(self.path, entry.shard, self._header.shards)
            if not is_file(path):
                raise self._data_error(entry, "no such file, but the index needs it; copy it there too")
            try:
                file = self._data_files[entry.shard] = self._open_files.enter_context(path.open("rb"))
                self.has(file.seek(0, 2))
            except OSError as error:
                raise self._data_error(entry, f"cannot be opened ({error.strerror})") from error
        return self._data_files[entry.shard]

    def _data_error(self, entry: Entry, problem: str) -> SourceError:
        return SourceError(f"{data_path(self.path, entry.shard, self._header.shards)}: {problem}")

    def _take_metadata(self) -> None:
        info = self.tensors.get(METADATA_NAME)
        if info and info.dtype == np.uint8 and len(info.shape) == 1:
            self.metadata = parse_metadata(self.read(METADATA_NAME).tobytes(), self.path, self.limits)
            del self.tensors[METADATA_NAME]
        else:
            self.networks = networks_in_meta(meta_path(self.path), self.limits)


def write_tf1(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write a checkpoint with the prefix `path`, with one tensor in memory at a time and the index last.

    The bytes equal those of `tf.train.Saver`, except for the entry with the metadata.
    """
    _check_writable(path, tensors)
    text = np.frombuffer(dump_metadata(metadata).encode(), np.uint8)
    infos = {**tensors, METADATA_NAME: TensorInfo(text.shape, text.dtype)} if metadata else tensors
    data_file, index_file = tf1_files(path)
    read = as_announced(path, tensors, read)
    table = {b"": dump_header()}
    with data_file.open("wb") as file:
        for name in sorted(infos, key=str.encode):
            array = text if name == METADATA_NAME else read(name)
            table[name.encode()] = dump_entry(_write_tensor(file, array))
            del array  # before reading the next one
    write_table(index_file, table.items())


def _check_writable(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    if METADATA_NAME in tensors:
        raise DestinationError(
            f"{path}: tensor name {METADATA_NAME!r} is reserved for metadata; rename the tensor"
        )
    refused = [f"{name}: {info.dtype}" for name, info in tensors.items() if info.dtype not in DTYPE_NUMBERS]
    if refused:
        raise DestinationError(
            f"{path}: dtypes that a TF1 checkpoint cannot hold; convert them first", refused
        )


def _write_tensor(file: BinaryIO, array: np.ndarray) -> Entry:
    offset, crc = file.tell(), 0
    for piece in pieces(array):
        file.write(piece)
        crc = crc32c(piece, crc)
    return Entry(TensorInfo(array.shape, array.dtype), 0, offset, array.nbytes, masked(crc))


def _swap_bytes(array: np.ndarray) -> None:
    """Reverse the bytes of each number in place; a complex number counts as two."""
    width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    array.reshape(-1).view(f"u{width}").byteswap(inplace=True)
