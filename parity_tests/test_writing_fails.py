"""Writing that fails: exit 3, the destination is as it was before, and nothing stays behind."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_tests.synthetic import SMALL, position_coded
from weights_convert import WriteError, convert
from weights_convert.formats import FORMATS

pytestmark = pytest.mark.usefixtures("folder")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")


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


def failing_writer(suffix: str, damage: str) -> Callable[..., None]:
    """A container's writer that fails after it has written, or that has written one wrong byte."""
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
