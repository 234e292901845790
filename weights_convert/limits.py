"""What a file may claim before it is believed. Each limit is an option of every command that reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weights_convert.errors import SourceError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# Without --max-bytes: weights do not compress, so honest tensors hardly take more than their file does. Half
# a gigabyte on top lets fresh weights (all zero) be packed as small as they like, and fits any computer.
_TIMES_THE_FILE = 2
_MORE_THAN_THE_FILE = 512 * 2**20
_AT_MOST = 64 * 2**30  # a file can be sparse

_TEXT_PER_TENSOR = 512  # bytes; 150 to 250 in honest headers, directories and indices
_OPERATIONS_PER_TENSOR = 64  # of a pickle; torch's protocol 2 takes 38


@dataclass(frozen=True)
class Limits:
    """What a file is believed at most.

    Attributes:
        max_bytes: what all tensors take together, and whatever else is unpacked. None: twice what the file
            has and half a gigabyte, at most 64 gigabytes.
        max_tensors: tensors and other entries. The largest networks here have 1,300, a training checkpoint
            of one three times as many.
        max_depth: containers within containers: of a pickle, of groups, of metadata.
    """

    max_bytes: int | None = None
    max_tensors: int = 20_000
    max_depth: int = 100

    def bytes_of(self, size: int) -> int:
        """What the tensors of a file of `size` bytes may take."""
        if self.max_bytes is not None:
            return self.max_bytes
        return min(_TIMES_THE_FILE * size + _MORE_THAN_THE_FILE, _AT_MOST)

    @property
    def text(self) -> int:
        """Bytes of a list that describes the tensors: a header, a directory, an index."""
        return _TEXT_PER_TENSOR * self.max_tensors

    @property
    def operations(self) -> int:
        """Operations of a pickle."""
        return _OPERATIONS_PER_TENSOR * self.max_tensors


DEFAULT = Limits()


class LimitError(SourceError):
    """A file claims more than it is believed; the message says how to believe it."""


class LimitReached(Exception):
    """The same where the file's name is not known: what there is too much of, how much, a limit's name."""

    def __init__(self, what: str, found: int, limit: str, value: int):
        super().__init__(what, found, limit, value)

    def at(self, where: object) -> LimitError:
        return too_many(where, *self.args)


def too_many(where: object, what: str, found: int, limit: str, value: int) -> LimitError:
    """The error for a limit, by its name in `Limits`.

    >>> too_many("a.npz", "bytes of tensors", 9_000, "max_bytes", 8_000).message
    'a.npz: 9,000 bytes of tensors, and 8,000 are believed; if you trust it, raise max_bytes (--max-bytes)'
    """
    option = f"--{limit.replace('_', '-')}"
    return LimitError(
        f"{where}: {found:,} {what}, and {value:,} are believed; if you trust it, raise {limit} ({option})"
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
