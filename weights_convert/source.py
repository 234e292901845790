"""The files of a checkpoint, and a check that they do not change while they are read."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from weights_convert.errors import SourceError
from weights_convert.formats.tf1_checkpoint import find_tf1_prefix
from weights_convert.formats.tf1_place import described_files

_CHUNK = 1 << 20


def files_of(path: Path) -> list[Path]:
    """The file, or all files of the TF1 checkpoint that `path` names; [] if it cannot be read."""
    with suppress(OSError, ValueError, SourceError):  # `load` reports the error
        prefix = find_tf1_prefix(path)
        return [path] if prefix is None else described_files(prefix)
    return []


class Source:
    """The current state of a source. Call `check` after reading all of it."""

    def __init__(self, path: str | Path | None):
        self._path = None if path is None else Path(path)
        self._before = self._facts()

    def check(self) -> None:
        """Raise `SourceError` if a file was replaced or modified."""
        now = self._facts()
        for file in self._before | now:
            if self._before.get(file) != now.get(file):
                raise SourceError(
                    f"{file}: changed while it was read; convert it again when no other program writes to it"
                )

    def sha256(self) -> dict[str, str]:
        """File name -> sha256."""
        return {file.name: _sha256(file) for file in self._before}

    def _facts(self) -> dict[Path, tuple[int, ...]]:
        """File -> properties that change with its content, but not by reading or copying."""
        facts: dict[Path, tuple[int, ...]] = {}
        for file in files_of(self._path) if self._path else []:
            with suppress(OSError):
                of = file.stat()
                facts[file] = (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns)
        return facts


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
