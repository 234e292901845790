"""Untrusted zip archives, for the containers that are zips.

A directory must be of bounded size and without duplicate names: of two entries with one name, some programs
take the first and others the last. Entries are never extracted to disk, so their names do no harm. They must
be stored or deflated: zlib can bound its output, bz2 and lzma cannot.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from weights_convert.errors import SourceError
from weights_convert.formats.base import one_line
from weights_convert.limits import Limits, too_many

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)
_CHUNK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Directory:
    """A file with bounded reads: `zipfile` reads a directory at once, whatever length the archive claims."""

    def __init__(self, path: Path, file: BinaryIO, limits: Limits):
        self._path, self._file, self._limits = path, file, limits
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > self._limits.text:
            what, most = "bytes of a zip's directory", self._limits.text
            raise too_many(self._path, what, size, "max_tensors", most)
        return self._file.read(size)


def open_zip(path: Path, file: BinaryIO, limits: Limits) -> zipfile.ZipFile:
    """The archive in `file`; the caller closes the file.

    Raises:
        SourceError: the archive is damaged, or has features that no honest checkpoint has.
    """
    try:
        archive = zipfile.ZipFile(_Directory(path, file, limits))
    except DAMAGE as error:
        raise SourceError(f"{path}: a zip archive that is truncated or damaged ({one_line(error)})") from None
    archive.fp = file
    seen = set()
    for info in archive.infolist():
        if info.filename in seen:
            raise SourceError(f"{path}: a zip with two entries {one_line(info.filename)!r}, expected one")
        if info.compress_type not in _METHODS:
            raise SourceError(
                f"{path}: a zip whose entry {one_line(info.filename)!r} is packed by method "
                f"{info.compress_type}, expected stored or deflated ones"
            )
        seen.add(info.filename)
    return archive


def stored(file: BinaryIO, info: zipfile.ZipInfo, check: bool = True) -> int:
    """The position of a stored entry's bytes, after checking their CRC."""
    file.seek(info.header_offset)
    header = file.read(30)  # the local header, whose extra field differs from the directory's
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise zipfile.BadZipFile("the directory gives a wrong start of the entry")
    if info.flag_bits & 1:
        raise zipfile.BadZipFile("the entry is encrypted")
    start = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    if not check:
        return start
    file.seek(start)
    crc, left = 0, info.file_size
    while left and (chunk := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if left:
        raise zipfile.BadZipFile(f"{left} bytes of the entry are missing")
    if crc != info.CRC:
        raise zipfile.BadZipFile("the checksum (CRC-32) differs")
    return start


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BytesIO:
    """An entry in memory with its CRC checked; the caller has checked `info.file_size`."""
    with archive.open(info) as entry:
        data = entry.read(info.file_size)
        if entry.read(1) or len(data) != info.file_size:
            raise zipfile.BadZipFile("the size of an entry differs from the directory")
    return io.BytesIO(data)
