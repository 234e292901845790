"""Limits for untrusted files. Each limit is an option of every command that reads files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weights_convert.errors import SourceError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# Without --max-bytes: weights do not compress, so honest tensors take hardly more than their file. Half a
# gigabyte on top allows fresh weights (all zero), which do compress, and fits any computer.
_TIMES_THE_FILE = 2
_MORE_THAN_THE_FILE = 512 * 2**20
_AT_MOST = 64 * 2**30  # a file can be sparse

_TEXT_PER_TENSOR = 512  # bytes; 150 to 250 in honest headers, directories and indices
_OPERATIONS_PER_TENSOR = 64  # of a pickle; torch's protocol 2 takes 38


@dataclass(frozen=True)
class Limits:
    """Limits for an untrusted file.

    Attributes:
        max_bytes: total size of all tensors and other unpacked data. None: twice the file and half a
            gigabyte, at most 64 gigabytes.
        max_tensors: tensors and other entries. The largest networks here have 1,300, a training checkpoint
            of one three times as many.
        max_depth: nested containers in a pickle, groups, metadata.
    """

    max_bytes: int | None = None
    max_tensors: int = 20_000
    max_depth: int = 100

    def bytes_of(self, size: int) -> int:
        """The limit for the tensors of a file of `size` bytes."""
        if self.max_bytes is not None:
            return self.max_bytes
        return min(_TIMES_THE_FILE * size + _MORE_THAN_THE_FILE, _AT_MOST)

    @property
    def text(self) -> int:
        """The limit in bytes of a list that describes the tensors: a header, a directory, an index."""
        return _TEXT_PER_TENSOR * self.max_tensors

    @property
    def operations(self) -> int:
        """The limit for the operations of a pickle."""
        return _OPERATIONS_PER_TENSOR * self.max_tensors


DEFAULT = Limits()


class LimitError(SourceError):
    """A file exceeds a limit; the message names the option that raises it."""


class LimitReached(Exception):
    """The same without the file's name: what exceeds the limit, its amount, the limit's name."""

    def __init__(self, what: str, found: int, limit: str, value: int):
        super().__init__(what, found, limit, value)

    def at(self, where: object) -> LimitError:
        return too_many(where, *self.args)


def too_many(where: object, what: str, found: int, limit: str, value: int) -> LimitError:
    """The error for a limit, by its name in `Limits`.

    >>> too_many("a.npz", "bytes of tensors", 9_000, "max_bytes", 8_000).message
    'a.npz: 9,000 bytes of tensors, limit 8,000; if you trust the file, raise max_bytes (--max-bytes)'
    """
    option = f"--{limit.replace('_', '-')}"
    return LimitError(
        f"{where}: {found:,} {what}, limit {value:,}; if you trust the file, raise {limit} ({option})"
    )


def parse_size(text: str) -> int:
    """`20G`, `512M`, `1000`: bytes, in powers of 1024; `ValueError` for anything else.

    >>> parse_size("20G"), parse_size("1.5k"), parse_size("7")
    (21474836480, 1536, 7)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r}: expected a number of bytes, such as 20G or 512M")
    return int(float(match[1]) * _UNITS[match[2].upper()])
