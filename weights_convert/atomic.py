"""A destination is the old file or the complete new one: at every moment, and after a kill at any.

What is to be written grows in a directory of its own beside the destination, `.NAME.TOKEN.samenet.tmp`, and
gets its place in one step that the file system makes whole or not at all. Its owner holds a lock in it, which
ends with the process however that ends; so the next run tells what a dead one has left, and removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing of others removed
    fcntl = None  # type: ignore[assignment]

_OURS = re.compile(r"lock|new(\..+)?")  # what a directory of ours may hold
_TOKEN = re.compile(r"[0-9a-f]{16}")
_SUFFIX = ".samenet.tmp"

Place = Callable[[Path, Path, bool], list[str]]  # from, to, whether to replace; warnings
Orphans = Callable[[Path, Path], list[Path]]  # from, to; files beside `to`


@contextmanager
def workplace(destination: Path) -> Iterator[Path]:
    """A name in a new directory beside `destination`; the directory is removed afterwards."""
    folder, lock = _make_folder(destination)
    try:
        yield folder / "new"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(lock)


def sweep(destination: Path, orphans: Orphans) -> None:
    """Remove what dead processes have left of an earlier writing of `destination`; nothing else, ever.

    That is: directories of this user, named as ours are, holding only what ours hold, whose lock nobody has;
    and what `orphans` says of each.
    """
    if fcntl is None:
        return
    with suppress(OSError):  # it may not be allowed, and then it is not this run's business
        for folder in _folders(destination):
            lock = _lock(folder / "lock", wait=False)
            if lock is not None and lock.certain:
                with _alone(destination):
                    _remove(orphans(folder / "new", destination))
                shutil.rmtree(folder, ignore_errors=True)
            _release(lock)


def put(temporary: Path, destination: Path, place: Place, orphans: Orphans, overwrite: bool) -> list[str]:
    """Give what is complete under `temporary` its place; what a person should be told about it.

    Raises:
        FileExistsError: `destination` came into being meanwhile, and is not to be replaced.
        OSError: it could not be done; the destination is as it was.
    """
    with _alone(destination):
        try:
            return place(temporary, destination, overwrite)
        finally:  # also of one that is interrupted
            _remove(orphans(temporary, destination))
            flush_folder(destination.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then, complete and flushed, takes the place of the file `path`, if there is one."""
    place = real(path)
    sweep(place, no_orphans)
    with workplace(place) as temporary:
        yield temporary
        flush(temporary)
        put(temporary, place, place_file, no_orphans, overwrite=True)


def place_file(source: Path, target: Path, overwrite: bool) -> list[str]:
    """The one step of a container that is one file."""
    if overwrite:
        take_mode(source, target)
        source.replace(target)
        return []
    try:
        os.link(source, target)  # unlike a rename, never replaces what another program made meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        source.replace(target)
    return []


def second_name(source: Path, target: Path) -> None:
    """A hard link, or a flushed copy where there are none. `FileExistsError` where `target` exists."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
        flush(target)


def no_orphans(_temporary: Path, _destination: Path) -> list[Path]:
    """One step leaves nothing beside the destination."""
    return []


def take_mode(new: Path, old: Path) -> None:
    """What replaces a file may be read and written by those who could read and write that one."""
    with suppress(OSError):
        new.chmod(stat.S_IMODE(old.stat().st_mode) & 0o777)


def real(path: Path) -> Path:
    """The file that a symbolic link names: that one is replaced, and the link stays."""
    with suppress(OSError):  # a name too long, say
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    return path


def flush(file: Path) -> None:
    """Have the operating system put a file on disk."""
    with flushing([file]):
        pass


@contextmanager
def flushing(files: Iterable[Path]) -> Iterator[None]:
    """Flush files while something else is done: 40 of 700 ms for 110 MB. An `OSError` comes at the end."""
    failed: list[OSError] = []

    def run() -> None:
        try:
            for descriptor in descriptors:
                os.fsync(descriptor)
        except OSError as error:
            failed.append(error)

    with ExitStack() as opened:
        # for writing: Windows flushes no other
        descriptors = [opened.enter_context(file.open("r+b")).fileno() for file in files]
        thread = threading.Thread(target=run)
        thread.start()
        opened.callback(thread.join)  # before they are closed
        yield
    if failed:
        raise failed[0]


def flush_folder(path: Path) -> None:
    """Have a folder's entries on disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --------------------------------------------------------------------------------------------------
# Directories and locks


class _Lock(NamedTuple):
    descriptor: int
    certain: bool  # False where the file system has no locks


def _stem(destination: Path) -> str:
    """A name may be as long as the file system allows, and ours are longer."""
    name = destination.name
    return f".{name}" if len(name) <= 32 else f".{name[:32]}.{zlib.crc32(os.fsencode(name)):08x}"


def _make_folder(destination: Path) -> tuple[Path, _Lock | None]:
    while True:
        folder = destination.with_name(f"{_stem(destination)}.{secrets.token_hex(8)}{_SUFFIX}")
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return folder, None
        try:
            lock = _lock(folder / "lock", wait=False)
            if lock is not None:
                return folder, lock
        except FileNotFoundError:  # swept by another run before it had its lock
            continue
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _folders(destination: Path) -> Iterator[Path]:
    """The directories beside `destination` that are as ours are."""
    stem = f"{_stem(destination)}."
    with os.scandir(destination.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(stem)]
    for name in names:
        folder = destination.with_name(name)
        token = name.removeprefix(stem).removesuffix(_SUFFIX)
        if not name.endswith(_SUFFIX) or not _TOKEN.fullmatch(token):
            continue
        with suppress(OSError):
            facts = folder.lstat()
            ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            if ours and all(map(_OURS.fullmatch, os.listdir(folder))):  # noqa: PTH208  (names, not paths)
                yield folder


def _lock(path: Path, *, wait: bool) -> _Lock | None:
    """Take a lock file, made if need be; None where somebody else has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        certain = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            certain = False
        except BaseException:  # interrupted while it waited
            os.close(descriptor)
            raise
        if _is(descriptor, path):
            return _Lock(descriptor, certain)
        os.close(descriptor)  # the lock of an owner who removed it at the end


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _release(lock: _Lock | None) -> None:
    if lock is not None:
        os.close(lock.descriptor)


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks, works on the place of `destination`.

    By a file that is there as long as that takes. Not by a lock on the folder: `flock . weights-convert ...`
    would wait for itself.
    """
    path, lock = destination.with_name(f"{_stem(destination)}.samenet.lock"), None
    if fcntl is not None:
        with suppress(OSError):
            lock = _lock(path, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                path.unlink()
        _release(lock)


def _remove(files: list[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()
