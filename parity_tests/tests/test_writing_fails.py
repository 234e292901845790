"""Failed writing: exit 3, the destination is unchanged, and no temporary files are left."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parity_tests.judge.synthetic import SMALL, position_coded, weights, with_shards
from weights_convert import WriteError, atomic, convert, load, save
from weights_convert.formats import FORMATS, format_for_writing

pytestmark = pytest.mark.usefixtures("folder")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")


def files_of(path: Path) -> list[Path]:
    return format_for_writing(path).files(path)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_folder_that_cannot_be_written(run, suffix: str):
    ran = run("convert", "good.pth", f"/sys/x{suffix}")  # not even by root
    refused = r"could not be written \((Permission denied|Operation not permitted)\)"
    assert ran.code == 3
    assert re.fullmatch(rf"/sys/x{re.escape(suffix)}: {refused}\n", ran.err)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_full_disk(unchanged, suffix: str):
    limited = (
        "import resource, sys; from weights_convert.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); sys.exit(main(sys.argv[2:]))"
    )
    for size in (100, 5000):
        command = ["-c", limited, str(size), "convert", "good.pth", f"good{suffix}", "--overwrite"]
        with unchanged():
            done = subprocess.run(
                [sys.executable, "-W", "error", *command], capture_output=True, text=True, check=False
            )
        assert (done.returncode, done.stderr) == (3, f"good{suffix}: could not be written (File too large)\n")


AS_NOBODY = """
import os, sys
import encodings.cp437, encodings.utf_32_le  # now: uid 65534 may not read Python's folders
import weights_convert.formats.hdf5.writer
from weights_convert.__main__ import main
os.chmod(".", 0o555)
if os.getuid() == 0:  # root ignores modes
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_read_only_folder(folder, unchanged, suffix: str):
    for options in ([f"new{suffix}"], [f"good{suffix}", "--overwrite"]):
        with unchanged():
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, "convert", "good.npz", *options],
                capture_output=True,
                text=True,
                check=False,
            )
        folder.chmod(0o755)
        message = f"{options[0]}: could not be written (Permission denied)\n"
        assert (done.returncode, done.stderr) == (3, message)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if not mount or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system here")
    yield place
    subprocess.run([unmount, str(place)], check=True)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_disk_that_is_really_full(run, unchanged, small_disk, suffix: str):
    target = small_disk / f"x{suffix}"
    (small_disk / "ballast").write_bytes(bytes(60_000))
    with unchanged():
        ran = run("convert", "good.npz", target)
    assert (ran.code, ran.err) == (3, f"{target}: could not be written (No space left on device)\n")
    (small_disk / "ballast").unlink()
    assert run("convert", "good.npz", target).code == 0
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize))  # not one page is left
    with unchanged():
        ran = run("convert", "good.npz", target, "--overwrite")
    assert (ran.code, ran.err) == (3, f"{target}: could not be written (No space left on device)\n")
    assert run("diff", "good.npz", target).code == 0


CALLS = {"mkdir": (Path, "mkdir"), "fsync": (os, "fsync"), "rename": (Path, "replace")}


@contextmanager
def failing(call: str, first: int, last: int) -> Iterator[list[int]]:
    """Simulate a full disk from one call to another; yields a list that counts the calls."""
    owner, name = CALLS[call]
    real, calls = getattr(owner, name), [0]

    def counted(*arguments, **keywords):
        calls[0] += 1
        if first <= calls[0] <= last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield calls


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("old", ["good", "new"])
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_may_fail(folder, run, tmp_path_factory, suffix: str, old: str, call: str):
    """For every n the n-th call fails, or all from the n-th on: exit 3 and unchanged, or 0 and complete."""
    save(weights(SMALL), "src.safetensors")
    saved, target = tmp_path_factory.mktemp("saved"), f"{old}{suffix}"
    shutil.copytree(folder, saved, dirs_exist_ok=True)
    before = contents(saved)
    for lasting in (False, True):
        for number in itertools.count(1):
            with failing(call, number, 99 if lasting else number) as calls:
                ran = run("convert", "src.safetensors", target, "--overwrite")
            if ran.code == 3:
                assert ran.err.endswith("(No space left on device)\n")
                assert contents(folder) == before
            else:  # the failed call is optional: flushing a folder, giving the usual names
                assert ran.code == 0
                assert run("diff", "src.safetensors", target).code == 0
            assert not list(folder.glob(".*"))
            assert run("convert", "src.safetensors", target, "--overwrite").code == 0
            assert set(contents(folder)) == set(before) | {file.name for file in files_of(Path(target))}
            for file in files_of(folder / target):
                file.unlink()
            shutil.copytree(saved, folder, dirs_exist_ok=True)
            if calls[0] < number:
                break


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_failed_flush_leaves_the_destination(run, unchanged, suffix: str):
    for number in range(1, len(files_of(Path(f"good{suffix}"))) + 1):
        with unchanged(), failing("fsync", number, number):
            ran = run("convert", "good.npz", f"good{suffix}", "--overwrite", "--dtype", "float64")
        assert (ran.code, ran.err) == (3, f"good{suffix}: could not be written (No space left on device)\n")


def test_unusual_names_are_reported(run):
    with failing("rename", 2, 2):  # after the index was replaced
        ran = run("convert", "good.npz", "good.ckpt", "--overwrite", "--dtype", "float64")
    assert (ran.code, ran.err) == (
        0,
        "warning: good.ckpt: complete and in its place, but not all of its files have their usual names "
        "(No space left on device); write it again to repair this\n",
    )
    assert Path("good.ckpt.data-00000-of-00002").exists()
    with load("good.ckpt") as checkpoint:
        assert checkpoint["fc.weight"].dtype.name == "float64"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("shards", [2, 3])
def test_the_data_files_of_an_old_checkpoint_go(folder, run, monkeypatch, shards: int, links: bool):
    usual = set(contents(folder))
    with_shards(folder / "good.ckpt", shards)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    assert run("convert", "good.npz", "good.ckpt", "--overwrite").code == 0
    assert set(contents(folder)) == usual
    assert run("diff", "good.npz", "good.ckpt").code == 0


def no_link(*_arguments: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("old", ["good", "new"])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_file_system_without_hard_links(folder, run, monkeypatch, suffix: str, old: str):
    save(weights(SMALL), "src.safetensors")
    before, target = set(contents(folder)), f"{old}{suffix}"
    monkeypatch.setattr(os, "link", no_link)
    assert run("convert", "src.safetensors", target, *["--overwrite"][: old == "good"]).code == 0
    assert run("convert", "src.safetensors", target).code == 2
    assert run("diff", "src.safetensors", target).code == 0
    assert set(contents(folder)) == before | {file.name for file in files_of(Path(target))}


@pytest.mark.parametrize("target", ["good.ckpt", "new.ckpt"])
def test_renaming_that_fails_without_hard_links(run, unchanged, monkeypatch, target: str):
    monkeypatch.setattr(os, "link", no_link)  # the copy then has another inode
    with unchanged(), failing("rename", 1, 1):
        ran = run("convert", "good.npz", target, "--overwrite")
    assert (ran.code, ran.err) == (
        3,
        f"{target}: could not be renamed into place (No space left on device)\n",
    )


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_without_locks(folder, run, monkeypatch, suffix: str):
    """A system without `fcntl`, and a file system without locks: leftovers of others are not removed."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    dead = folder / f".good{suffix}.0123456789abcdef.samenet.tmp"
    dead.mkdir()
    before = {file.name for file in folder.iterdir()}
    for name, value in (("fcntl.flock", flock), ("fcntl", None)):
        place = (fcntl, "flock") if name == "fcntl.flock" else (atomic, "fcntl")
        with monkeypatch.context() as patch:
            patch.setattr(*place, value)
            assert run("convert", "good.npz", f"good{suffix}", "--overwrite").code == 0
        assert {file.name for file in folder.iterdir() if file.name != "lock"} == before
    assert run("convert", "good.npz", f"good{suffix}", "--overwrite").code == 0
    assert not dead.exists()


def failing_writer(suffix: str, damage: str) -> Callable[..., None]:
    """A writer that fails after writing, or that writes one wrong byte."""
    container = next(c for c in FORMATS.values() if suffix in c.suffixes)

    def write(path: Path, *arguments: object) -> None:
        if damage == "at once":
            raise PermissionError(13, "Permission denied")
        container.write(path, *arguments)
        if damage == "at the end":
            raise OSError(28, "No space left on device")
        wanted = position_coded(SMALL)["layer1.0.bn2.running_mean"].tobytes()
        for file in container.files(path):
            content = file.read_bytes()
            if damage == "byte" and wanted in content:
                file.write_bytes(content.replace(wanted, wanted[:-1] + bytes([wanted[-1] ^ 1])))
            if damage == "truncated":
                file.write_bytes(content[:-20])
            if damage == "removed":
                file.unlink()

    return write


FAILURES = {
    "at once": r"could not be written \(Permission denied\)$",
    "at the end": r"could not be written \(No space left on device\)$",
    "removed": r"could not be written \(No such file or directory\)$",
    "byte": r"(does not read back as written|cannot be read back \(.*\))$",
    "truncated": r"cannot be read back \(.*\)$",
}


@pytest.mark.quick
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("damage", FAILURES)
def test_a_writer_that_fails(run, unchanged, monkeypatch, suffix: str, damage: str):
    name, container = next((n, c) for n, c in FORMATS.items() if suffix in c.suffixes)
    failing = dataclasses.replace(container, write=failing_writer(suffix, damage))
    monkeypatch.setitem(FORMATS, name, failing)
    for target in (f"good{suffix}", f"new{suffix}"):
        with unchanged(), pytest.raises(WriteError, match=FAILURES[damage]):
            convert("good.npz", target, overwrite=True)
        with unchanged():
            ran = run("convert", "good.npz", target, "--overwrite")
        assert ran.code == 3
        assert ran.err.startswith(f"{target}: ")


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("target", ["good", "new"])
def test_renaming_that_fails(run, unchanged, monkeypatch, suffix: str, target: str):
    rename = Path.replace
    last = f"{target}{suffix}" + (".index" if suffix == ".ckpt" else "")

    def fail_once(self: Path, other: Path) -> Path:
        if Path(other).name == last and self.suffix != ".old":
            raise OSError(5, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", fail_once)
    with unchanged():
        ran = run("convert", "good.npz", f"{target}{suffix}", "--overwrite")
    assert ran.code == 3
    assert "could not be renamed into place (Input/output error)" in ran.err
