"""The user's source: opened once, for recognising the format and for reading the checkpoint."""

from __future__ import annotations

import os
import re
import zipfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Self

from weights_convert.errors import SourceError, nearest
from weights_convert.formats.tf1.find import find_tf1_prefix
from weights_convert.formats.tf1.place import described_files, index_path
from weights_convert.formats.tf1.table import WireError, read_table
from weights_convert.formats.zip import open_zip
from weights_convert.limits import DEFAULT, Limits

_HEAD = 64  # bytes by which a file is recognised
_OF_TF1 = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$")
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # weights in a folder of the Hugging Face hub
Facts = dict[Path, tuple[int, ...]]  # file -> what changes with its content; no read or copy of it does


class Given:
    """One source: a file, a folder of the Hugging Face hub, or a TF1 checkpoint.

    A TF1 checkpoint is given by its prefix, one of its files or its directory.

    Every attribute is found or parsed on first use, and kept.

    Args:
        path: the user's path.
        limits: for untrusted files.
    """

    def __init__(self, path: str | Path, limits: Limits | None = None):
        self.path, self.limits = _in_folder(Path(path)), limits or DEFAULT
        self.size = 0

    @classmethod
    def of(cls, source: str | Path | Given, limits: Limits | None = None) -> Given:
        """The source itself, or the one at a path."""
        return source if isinstance(source, Given) else cls(source, limits)

    @cached_property
    def prefix(self) -> Path | None:
        """The prefix of a TF1 checkpoint; None for any other source."""
        return find_tf1_prefix(self.path)

    @cached_property
    def index(self) -> dict[bytes, bytes]:
        """The table of a TF1 checkpoint."""
        assert self.prefix is not None  # used for TF1 checkpoints only
        return read_table(index_path(self.prefix), self.limits)

    @cached_property
    def file(self) -> BinaryIO:
        """The open file, at its beginning.

        Raises:
            SourceError: the file is missing, not a file, or cannot be read.
        """
        path = self.path
        try:
            if path.is_dir():
                raise SourceError(
                    f"{path}: a directory with neither a TF1 checkpoint nor {_IN_FOLDERS[0]} in it, "
                    "expected a checkpoint file"
                )
            if path.exists() and not path.is_file():
                raise SourceError(f"{path}: is a device or a pipe, expected a file")
            file = path.open("rb")
            self.size = file.seek(0, os.SEEK_END)
            file.seek(0)
        except FileNotFoundError:
            raise SourceError(f"{path}: there is no such file{_neighbour(path)}") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise SourceError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
        return file

    @cached_property
    def head(self) -> bytes:
        """The first bytes of the file; b"" for a TF1 checkpoint."""
        if self.prefix is not None:
            return b""
        try:
            head = self.file.read(_HEAD)
            self.file.seek(0)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read ({error.strerror})") from None
        return head

    @cached_property
    def archive(self) -> zipfile.ZipFile | None:
        """The file as a zip archive, or None."""
        return open_zip(self.path, self.file, self.limits) if self.head.startswith(b"PK") else None

    @property
    def entries(self) -> list[str]:
        """The names of the archive's entries."""
        return [] if self.archive is None else self.archive.namelist()

    def files(self) -> list[Path]:
        """The file, or all files of the TF1 checkpoint; [] if it cannot be read."""
        with suppress(OSError, ValueError, SourceError, WireError):  # opening it reports the error
            return [self.path] if self.prefix is None else described_files(self.prefix, self.index)
        return []

    def facts(self) -> Facts:
        """The current state of the files."""
        return facts_of(self.files())

    def close(self) -> None:
        """Close the file, if it was opened."""
        if "file" in self.__dict__:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def facts_of(files: list[Path]) -> Facts:
    facts: Facts = {}
    for file in files:
        with suppress(OSError):
            of = file.stat()
            facts[file] = (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns)
    return facts


def _in_folder(path: Path) -> Path:
    """The weights in a folder of the Hugging Face hub; any other path unchanged."""
    with suppress(OSError):  # a name that is too long: opening it reports the error
        return next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path)
    return path


def _neighbour(path: Path) -> str:
    """A hint at a file with a similar name in the same folder, for a TF1 checkpoint at its prefix."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    prefixes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    others = [name for name in names if not _OF_TF1.search(name)]
    return nearest(path.name, sorted(prefixes + others), likeness=0.8)
