"""Moves a TF1 checkpoint's files to their place; an index never lies beside data that it does not describe.

Two files cannot be renamed in one step. But an index holds the number of data files, which is part of their
names. The new data therefore lie beside the old data under a number that the old index does not use, until
one rename replaces the index. The usual names follow in the same way.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from weights_convert.atomic import flush, flush_folder, place_file, second_name, take_mode
from weights_convert.errors import SourceError
from weights_convert.formats.tf1.proto import dump_header, parse_header
from weights_convert.formats.tf1.table import WireError, read_table, write_table

_OLD = ".old-"


def index_path(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def data_path(prefix: Path, shard: int, shards: int) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


def tf1_files(prefix: Path) -> list[Path]:
    """The files of `write_tf1(prefix)`."""
    return [data_path(prefix, 0, 1), index_path(prefix)]


def described_files(prefix: Path, index: Mapping[bytes, bytes] | None = None) -> list[Path]:
    """The index and the data files that it describes; `SourceError` if the index cannot be read.

    Args:
        index: its table, if already read.
    """
    try:
        table = read_table(index_path(prefix)) if index is None else index
        shards = parse_header(table.get(b"", b"")).shards
    except WireError as error:
        raise SourceError(f"{index_path(prefix)}: cannot use the header ({error})") from error
    return [index_path(prefix), *(path for path, _, count in _data_files(prefix) if count == shards)]


def place_tf1(temporary: Path, prefix: Path, overwrite: bool) -> list[str]:
    """Move both files to their place.

    `temporary` keeps links to the new and the old data until the end, so that `orphans_of_tf1` finds both.
    """
    (data, index), (new_data, new_index) = tf1_files(temporary), tf1_files(prefix)
    if os.path.lexists(new_index):
        if not overwrite:
            raise FileExistsError(new_index)
        return _replace(temporary, prefix)
    if overwrite and os.path.lexists(new_data):  # unused without an index
        _replace_data(data, new_data)
    else:
        second_name(data, new_data)
    flush_folder(prefix.parent)
    try:
        return place_file(index, new_index, overwrite)
    except OSError:
        new_data.unlink()
        raise


def _replace(temporary: Path, prefix: Path) -> list[str]:
    (data, index), (new_data, new_index) = tf1_files(temporary), tf1_files(prefix)
    old: list[Path] = []
    with suppress(SourceError):  # an invalid index describes no data
        old = described_files(prefix)[1:]
    used = {count for _, _, count in _data_files(prefix)}
    shards = next(count for count in range(2, len(used) + 3) if count not in used)
    aside = data_path(prefix, 0, shards)
    other_index = _with_shards(index, shards)
    for file in (index, other_index):
        take_mode(file, new_index)
    take_mode(data, new_data)
    for number, file in enumerate(old):
        with suppress(OSError):
            os.link(file, f"{temporary}{_OLD}{number}")
    try:
        second_name(data, aside)
        flush_folder(prefix.parent)
        other_index.replace(new_index)  # now the checkpoint is the new one
    except FileExistsError:  # created by another program
        raise
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    try:
        flush_folder(prefix.parent)
        _replace_data(data, new_data)
        flush_folder(prefix.parent)
        index.replace(new_index)
        flush_folder(prefix.parent)
        for file in (*old, aside):
            if file != new_data:
                file.unlink(missing_ok=True)
    except OSError as error:
        what = (
            f"complete and in its place, but not all of its files have their usual names ({error.strerror})"
        )
        return [f"{prefix}: {what}; write it again to repair this"]
    return []


def orphans_of_tf1(temporary: Path, prefix: Path) -> list[Path]:
    """Data files beside `prefix` that its index does not use: the new or the old ones of an interrupted run.

    They are the same files (inodes) as those in the directory of `temporary`, so other programs' files are
    never among them.
    """
    try:
        known = [tf1_files(temporary)[0]]
        used: list[Path] = []
        if os.path.lexists(index_path(prefix)):
            known += temporary.parent.glob(f"{temporary.name}{_OLD}*")
            used = described_files(prefix)
        facts = [file.lstat() for file in known]
        beside = [path for path, _, _ in _data_files(prefix) if path not in used]
        return [path for path in beside if any(os.path.samestat(path.lstat(), fact) for fact in facts)]
    except (OSError, SourceError):  # no data yet; or an unreadable index, which may use any file
        return []


def _data_files(prefix: Path) -> Iterator[tuple[Path, int, int]]:
    """Every data file beside a prefix, with its number and the number of data files in its name."""
    pattern = re.compile(re.escape(prefix.name) + r"\.data-([0-9]{5})-of-([0-9]{5})")
    for name in os.listdir(prefix.parent):  # noqa: PTH208  (names, not paths)
        if found := pattern.fullmatch(name):
            yield prefix.with_name(name), int(found[1]), int(found[2])


def _with_shards(index: Path, shards: int) -> Path:
    """A copy of an index for another number of data files, flushed and read back."""
    table = read_table(index) | {b"": dump_header(shards)}
    path = index.with_name("new.other")
    write_table(path, table.items())
    flush(path)
    with suppress(SourceError):
        if read_table(path) == table:
            return path
    raise OSError(errno.EIO, "the index does not read back as written")


def _replace_data(data: Path, target: Path) -> None:
    """Replace `target` by a hard link to the data."""
    again = data.with_name("new.again")
    second_name(data, again)
    again.replace(target)
