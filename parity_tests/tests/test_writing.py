"""Destinations: links, modes, concurrent writers, and SRC as DST."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge.synthetic import SMALL, position_coded, weights
from weights_convert import SourceError, WriteError, atomic, convert, load, save
from weights_convert import convert as convert_function
from weights_convert.formats import FORMATS
from weights_convert.formats.tf1.place import tf1_files

pytestmark = pytest.mark.usefixtures("folder")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")
SINGLE = CONTAINERS[:-1]
internals = convert_function.__globals__  # `weights_convert.convert` is the function, not the module


def files_of(path: Path) -> list[Path]:
    return tf1_files(path) if path.suffix == ".ckpt" else [path]


def while_reading(monkeypatch, act: Callable[[], None]) -> None:
    """Call `act` after the first tensor has been read from the source."""
    real, seen = internals["sha256"], []

    def sha256(array: np.ndarray) -> str:
        if not seen:
            seen.append(1)
            act()
        return real(array)

    monkeypatch.setitem(internals, "sha256", sha256)


# --------------------------------------------------------------------------------------------------
# Links and modes


@pytest.mark.parametrize("suffix", SINGLE)
def test_a_symbolic_link_stays_and_its_file_is_replaced(folder, run, suffix: str):
    link, file = folder / f"link{suffix}", folder / "folder" / f"real{suffix}"
    for target in (Path("folder") / file.name, file):  # relative, absolute
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert run("convert", "good.npz", link).code == 0  # its target did not exist
        assert run("convert", "good.npz", link).code == 2
        assert run("convert", "good.npz", link, "--overwrite", "--dtype", "float64").code == 0
        assert link.readlink() == target
        assert {entry.name for entry in file.parent.iterdir()} == {file.name}
        with load(file) as checkpoint:
            assert checkpoint["fc.weight"].dtype == np.float64
        file.unlink()
    link.unlink()
    link.symlink_to("nowhere/real.x")
    assert "the folder" in run("convert", "good.npz", link).err


def test_links_among_the_files_of_a_prefix_are_replaced(folder, run):
    """Each could lead elsewhere; their targets are not changed."""
    save(weights(SMALL), "folder/kept.ckpt")
    kept = [file.read_bytes() for file in tf1_files(folder / "folder/kept.ckpt")]
    for link, file in zip(tf1_files(folder / "x.ckpt"), tf1_files(folder / "folder/kept.ckpt"), strict=True):
        link.symlink_to(file)
    assert run("convert", "good.npz", "x.ckpt", "--overwrite").code == 0
    assert not any(file.is_symlink() for file in tf1_files(folder / "x.ckpt"))
    assert [file.read_bytes() for file in tf1_files(folder / "folder/kept.ckpt")] == kept
    assert run("diff", "good.npz", "x.ckpt").code == 0


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_modes(folder, run, suffix: str):
    before = os.umask(0o027)
    try:
        assert run("convert", "good.npz", "new" + suffix).code == 0
        new = files_of(folder / f"new{suffix}")
        assert {stat.S_IMODE(file.stat().st_mode) for file in new} == {0o640}
        for mode in (0o600, 0o664):
            for file in new:
                file.chmod(mode)
            assert run("convert", "good.npz", f"new{suffix}", "--overwrite").code == 0
            assert {stat.S_IMODE(file.stat().st_mode) for file in new} == {mode}
    finally:
        os.umask(before)


def test_devices_and_pipes_are_not_replaced(folder, run):
    os.mkfifo(folder / "pipe.npz")
    (folder / "null.npz").symlink_to("/dev/null")
    for name in ("pipe.npz", "null.npz"):
        ran = run("convert", "good.pth", name, "--overwrite")
        assert (ran.code, ran.err) == (2, f"{name}: is a device or a pipe, expected a file name\n")
    assert (folder / "pipe.npz").is_fifo()
    assert not Path("/dev/null").is_file()


# --------------------------------------------------------------------------------------------------
# The source is the destination


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("kind", ["spelling", "symlink", "hard link", "destination is a symlink"])
def test_the_source_by_another_name(folder, run, suffix: str, kind: str):
    if suffix == ".ckpt" and kind == "destination is a symlink":
        pytest.skip("links among a prefix's files are replaced, see above")
    source, target = folder / f"good{suffix}", folder / f"good{suffix}"
    if kind == "spelling":
        source = folder / "folder" / ".." / (f"good{suffix}" + (".index" if suffix == ".ckpt" else ""))
    elif kind == "destination is a symlink":
        target = folder / f"other{suffix}"
        target.symlink_to(source)
    else:
        source = folder / f"other{suffix}"
        for new, old in zip(files_of(source), files_of(target), strict=True):
            new.symlink_to(old) if kind == "symlink" else new.hardlink_to(old)
    assert run("convert", source, target).code == 2  # it exists
    assert run("convert", source, target, "--overwrite", "--dtype", "float64").code == 0
    with load(folder / f"good{suffix}") as checkpoint:
        wanted = position_coded(SMALL)
        assert all(np.array_equal(checkpoint[name], wanted[name]) for name in wanted)
        assert checkpoint["fc.weight"].dtype == np.float64
    if kind == "hard link":  # the file has two names, and only the given one is replaced
        with load(source) as checkpoint:
            assert checkpoint["fc.weight"].dtype == np.float32
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("suffix", [".npz", ".ckpt"])
def test_the_manifest_of_a_file_that_replaces_itself_is_of_what_was_read(run, suffix: str):
    run("convert", f"good{suffix}", "x.pth", "--json", "a.json")
    run("convert", f"good{suffix}", f"good{suffix}", "--overwrite", "--dtype", "float64", "--json", "b.json")
    a, b = (json.loads(Path(name).read_text())["source"]["sha256"] for name in ("a.json", "b.json"))
    assert a == b
    assert len(a) == len(files_of(Path(f"good{suffix}")))


# --------------------------------------------------------------------------------------------------
# A source that changes


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"\0")


def in_place(file: Path) -> None:
    """Other bytes of the same size, as with `cp other.pth src.pth`."""
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.write(content)


def renamed_over(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    other.replace(file)


CHANGES = {
    "appended": append,
    "written in place": in_place,
    "replaced": renamed_over,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_source_that_changes_while_it_is_read(folder, run, monkeypatch, suffix: str, change: str):
    for file in files_of(folder / f"good{suffix}"):
        os.utime(file, ns=(0, 0))  # the change shows even with a coarse clock
    for target in ("new.npz", "folder/old.pth"):
        if target != "new.npz":
            save(weights(SMALL), target)
        before = {entry: entry.read_bytes() for entry in folder.rglob("*") if entry.is_file()}
        while_reading(monkeypatch, lambda: CHANGES[change](files_of(folder / f"good{suffix}")[0]))
        ran = run("convert", f"good{suffix}", target, "--overwrite")
        assert ran.code == 2, ran.err
        assert ran.err.startswith(f"good{suffix}")
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        after = {entry: entry.read_bytes() for entry in folder.rglob("*") if entry.is_file()}
        source = set(files_of(folder / f"good{suffix}"))
        assert set(after) - source == set(before) - source
        assert all(after[entry] == before[entry] for entry in set(after) - source)
        for file, content in before.items():
            if file in source:
                file.write_bytes(content)
                os.utime(file, ns=(0, 0))


def test_reading_a_source_is_no_change(folder, monkeypatch):
    def act() -> None:
        (folder / "good.npz").read_bytes()
        os.link(folder / "good.npz", folder / "second name")
        (folder / "good.npz").chmod(0o600)

    while_reading(monkeypatch, act)
    convert("good.npz", "x.pth")


def test_a_checkpoint_that_was_loaded_before(folder, monkeypatch):
    with load("good.npz") as checkpoint:
        save(checkpoint, "x.pth")
        while_reading(monkeypatch, lambda: append(folder / "good.npz"))
        with pytest.raises(SourceError, match=r"^good\.npz: changed while it was read; convert it again"):
            save(checkpoint, "y.pth")
    assert not (folder / "y.pth").exists()


def test_a_source_that_changes_between_load_and_save(folder):
    """In place, as by a copy over it: later reads give other values."""
    with load("good.safetensors") as checkpoint:
        data = bytearray(Path("good.safetensors").read_bytes())
        data[-1] ^= 1
        with Path("good.safetensors").open("r+b") as file:
            file.write(data)
        with pytest.raises(SourceError, match=r"^good\.safetensors: changed while it was read"):
            save(checkpoint, "y.pth")
    assert not (folder / "y.pth").exists()


# --------------------------------------------------------------------------------------------------
# Temporary files


def test_names_that_begin_alike_are_told_apart(folder):
    """Leftovers are the only record of a dead run's files: only a run with the same name removes them."""
    first, second = (folder / f"{'a' * 40}{letter}.ckpt" for letter in "AB")
    left, lock = atomic._make_folder(first)
    atomic._release(lock)
    atomic.sweep(second, atomic.no_orphans)
    assert left.exists()
    atomic.sweep(first, atomic.no_orphans)
    assert not left.exists()


def test_a_folder_that_cannot_be_locked_is_not_left(folder, monkeypatch, unchanged):
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "_lock", no_space)
    with unchanged(), pytest.raises(WriteError, match="No space left"):
        convert("good.npz", "x.pth")
    assert not list(folder.glob(".*"))


# --------------------------------------------------------------------------------------------------
# Two at once


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_destination_that_comes_into_being_meanwhile(folder, run, monkeypatch, suffix: str):
    """The first writer wins, even if it is another program."""
    for file in files_of(folder / f"x{suffix}"):
        file.unlink(missing_ok=True)
        while_reading(monkeypatch, lambda file=file: file.write_text("another program's"))
        ran = run("convert", "good.npz", f"x{suffix}")
        assert (ran.code, ran.err) == (
            2,
            f"x{suffix}: exists already; --overwrite (in Python overwrite=True) replaces it\n",
        )
        assert [f.name for f in folder.glob("x*")] == [file.name]
        assert file.read_text() == "another program's"
        assert not list(folder.glob(".*"))
        file.unlink()
        monkeypatch.undo()
        monkeypatch.chdir(folder)


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["new", "overwrite"])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_two_processes(folder, suffix: str, options: list[str]):
    """Each in turn waits before moving its file to its place, so that both are active."""
    wanted = {"good.npz": position_coded(SMALL), "other.npz": weights(SMALL)}
    save(wanted["other.npz"], "other.npz")
    if options:
        save(weights(SMALL, seed=1), f"x{suffix}")
    wait = (
        "import sys; from weights_convert import atomic; from weights_convert.__main__ import main\n"
        "put = atomic.put\n"
        "def late(*a):\n"
        "    print('ready', flush=True); sys.stdin.readline(); return put(*a)\n"
        "atomic.put = late; sys.exit(main(sys.argv[1:]))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", wait, "convert", source, f"x{suffix}", *options],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for source in wanted
    ]  # fmt: skip
    for process in runs:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in runs:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in runs]
    codes = [process.returncode for process in runs]
    assert sorted(codes) == ([0, 0] if options else [0, 2]), errors
    winners = [source for source, code in zip(wanted, codes, strict=True) if code == 0]
    with load(f"x{suffix}") as checkpoint:
        assert any(all(np.array_equal(checkpoint[n], wanted[w][n]) for n in checkpoint) for w in winners)
    assert {file.name for file in folder.glob("x*")} == {file.name for file in files_of(Path(f"x{suffix}"))}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_many_threads(folder, suffix: str):
    with ThreadPoolExecutor(8) as pool:
        seeds = range(24)
        list(pool.map(lambda seed: save(weights(SMALL, seed), f"x{suffix}", overwrite=True), seeds))
    with load(f"x{suffix}") as checkpoint:
        assert any(np.array_equal(checkpoint["fc.weight"], weights(SMALL, s)["fc.weight"]) for s in seeds)
    assert {file.name for file in folder.glob("x*")} == {file.name for file in files_of(Path(f"x{suffix}"))}
    assert not list(folder.glob(".*"))


# --------------------------------------------------------------------------------------------------
# Order of flushes


class Recorder:
    """Records new names and flushes in order, by inode."""

    def __init__(self, monkeypatch, folder: Path):
        self.flushed: set[int] = set()
        self.folder_is_flushed = True
        self.placed: list[str] = []
        self._folder = folder.stat().st_ino
        for owner, name in ((os, "fsync"), (os, "link"), (Path, "replace")):
            monkeypatch.setattr(owner, name, getattr(self, name)(getattr(owner, name)))

    def fsync(self, real: Callable) -> Callable:
        def fsync(descriptor: int) -> None:
            real(descriptor)
            inode = os.fstat(descriptor).st_ino
            self.flushed.add(inode)
            self.folder_is_flushed |= inode == self._folder

        return fsync

    def _place(self, source: Path, target: Path) -> None:
        if Path(target).parent.stat().st_ino != self._folder:  # within the temporary directory
            return
        assert source.stat().st_ino in self.flushed, f"{target} is named before its bytes are on disk"
        assert self.folder_is_flushed, f"{target} may come onto disk before {self.placed[-1]}"
        self.folder_is_flushed = False
        self.placed.append(Path(target).name)

    def link(self, real: Callable) -> Callable:
        def link(source: Path, target: Path) -> None:
            self._place(Path(source), target)
            real(source, target)

        return link

    def replace(self, real: Callable) -> Callable:
        def replace(source: Path, target: Path) -> Path:
            self._place(source, target)
            return real(source, target)

        return replace


DATA, OTHER, INDEX = "x.ckpt.data-00000-of-00001", "x.ckpt.data-00000-of-00002", "x.ckpt.index"


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_step_is_on_disk_before_the_next_one(folder, monkeypatch, suffix: str):
    recorder = Recorder(monkeypatch, folder)
    convert("good.npz", f"x{suffix}")
    assert recorder.placed == ([DATA, INDEX] if suffix == ".ckpt" else [f"x{suffix}"])
    assert recorder.folder_is_flushed
    recorder.placed.clear()
    convert("good.npz", f"x{suffix}", overwrite=True)
    assert recorder.placed == ([OTHER, INDEX, DATA, INDEX] if suffix == ".ckpt" else [f"x{suffix}"])
    assert recorder.folder_is_flushed


def test_formats_know_how_they_are_put_in_place():
    """A container of several files has to define more than its names."""
    for container in FORMATS.values():
        several = len(container.files(Path("x"))) > 1
        assert several == (container.place.__name__ != "place_file")
        assert several == (container.orphans.__name__ != "no_orphans")
