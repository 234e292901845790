"""Reads a folder: its file of weights or its shards, as one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from weights_convert.errors import SourceError
from weights_convert.formats.base import Reader, one_line
from weights_convert.formats.given import Given
from weights_convert.limits import Limits

Opener = Callable[[Path, Limits], Reader]
_MOST_LISTED = 20


def recognises_folder(given: Given) -> bool:
    return given.folder is not None


class FolderReader(Reader):
    """The weights of a folder; `configs` are its JSON files.

    Args:
        given: the folder, or its index of shards.
        open_file: opens one file.
    """

    format = "folder"

    def __init__(self, given: Given, open_file: Opener):
        super().__init__(given.path, given.limits)
        folder = given.folder
        assert folder is not None  # see `recognises_folder`
        self.configs = folder.configs
        self._readers: dict[str, Reader] = {}
        self._reader_of: dict[str, Reader] = {}
        try:
            for path in folder.weights:
                self._add(path, open_file(path, given.limits))
            if folder.shard_of is not None:
                self._check(folder.shard_of)
        except BaseException:
            self.close()
            raise
        if len(self._readers) == 1:
            (reader,) = self._readers.values()
            self.metadata, self.networks = reader.metadata, reader.networks
        if folder.others:
            used = folder.weights[0].name
            others = one_line(", ".join(folder.others))
            self.notes.append(f"took {used}; the folder has other files of weights: {others}")

    def _add(self, path: Path, reader: Reader) -> None:
        self._readers[path.name] = reader
        self.has(path.stat().st_size)
        for name, info in reader.tensors.items():
            if name in self._reader_of:
                raise SourceError(f"{self.path}: {one_line(name)!r} is in two shards, expected one")
            self.add(name, info)
            self._reader_of[name] = reader
        for name, what in reader.left_out.items():
            self.leave_out(name, what)
        self.notes += reader.notes

    def _check(self, shard_of: dict[str, str]) -> None:
        """Raise `SourceError` unless every shard has the tensors that the index lists for it."""
        listed = set(shard_of.items())
        there = {(name, file) for file, reader in self._readers.items() for name in reader.tensors}
        if different := sorted(listed ^ there):
            lines = [
                f"{one_line(name)}: {'missing in' if (name, file) in listed else 'not listed for'} {file}"
                for name, file in different[:_MOST_LISTED]
            ]
            raise SourceError(f"{self.path}: {len(different)} tensors are not where its index says", lines)

    def read(self, name: str) -> np.ndarray:
        return self._reader_of[name].read(name)

    def close(self) -> None:
        super().close()
        for reader in self._readers.values():
            reader.close()
