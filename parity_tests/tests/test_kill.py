"""A killed conversion: DST is the old file or the complete new one, and the next run removes leftovers."""

from __future__ import annotations

import collections
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge.synthetic import SMALL, position_coded, weights, with_shards
from weights_convert import DestinationError, ResNetSpec, convert, load, save
from weights_convert.formats.tf1.place import index_path, tf1_files

CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")
MOST = (".pth", ".ckpt")  # one file, several files: the other containers are written like .pth
exhaustive = pytest.mark.exhaustive
OLD, NEW = position_coded(SMALL), weights(SMALL)


def start(folder: Path, suffix: str, old: bool) -> Path:
    """A folder with the new weights to convert, and with the old ones at the destination."""
    folder.mkdir()
    save(NEW, folder / "src.safetensors")
    if old:
        save(OLD, folder / f"dst{suffix}")
    return folder


def states(folder: Path, into: Path, *arguments: str) -> list[Path]:
    """Every state of `folder` that SIGKILL can leave; the last one follows a complete run."""
    command = [sys.executable, "-m", "parity_tests.tests.crashes", folder, into, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last, code = map(int, done.stdout.split())
    assert code == 0
    return [into / str(number) for number in range(last + 1)]


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


def state_of(path: Path) -> str:
    """Whether all bits are those of the "old" or the "new" weights; "none" without a checkpoint."""
    if not (path.exists() or index_path(path).exists()):
        return "none"
    with load(path) as checkpoint:
        found = dict(checkpoint)
    assert same(found, OLD) or same(found, NEW)
    return "old" if same(found, OLD) else "new"


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def next_run(folder: Path, suffix: str, found: str, overwrite: bool) -> None:
    """The next run succeeds and leaves the same files as an uninterrupted run."""
    source, target = folder / "src.safetensors", folder / f"dst{suffix}"
    if found == "none" or overwrite:
        convert(source, target, overwrite=overwrite)
    else:
        with pytest.raises(DestinationError, match="exists already"):
            convert(source, target)
    assert state_of(target) == "new"


def usual_names(suffix: str) -> set[str]:
    files = tf1_files(Path("dst.ckpt")) if suffix == ".ckpt" else [Path(f"dst{suffix}")]
    return {"src.safetensors", *(file.name for file in files)}


@pytest.mark.parametrize(
    ("suffix", "old"),
    [pytest.param(s, True, id=f"{s}-old") for s in CONTAINERS]
    + [pytest.param(s, False, id=f"{s}-none", marks=[] if s in MOST else exhaustive) for s in CONTAINERS],
)
def test_killed_at_every_step(tmp_path, suffix: str, old: bool):
    options = ["--overwrite"] if old else []
    folder = start(tmp_path / "start", suffix, old)
    found = []
    for state in states(folder, tmp_path / "states", "convert", "src.safetensors", f"dst{suffix}", *options):
        found.append(state_of(state / f"dst{suffix}"))
        next_run(state, suffix, found[-1], old)
        assert names(state) == usual_names(suffix), state.name
    before = "old" if old else "none"
    assert found == sorted(found, key=(before, "new").index)  # changes only once
    assert len(found) > 12
    assert set(found) == {before, "new"}


@pytest.mark.parametrize("shards", [1, pytest.param(2, marks=exhaustive), 3])
def test_tensorflow_reads_every_state(tmp_path, shards: int):
    tf = pytest.importorskip("tensorflow")
    folder = start(tmp_path / "start", ".ckpt", old=True)
    with_shards(folder / "dst.ckpt", shards)
    wanted = {}
    for name, checkpoint in (("old", OLD), ("new", NEW)):
        reader = tf.train.load_checkpoint(str(save(checkpoint, tmp_path / f"{name}.ckpt").destination))
        wanted[name] = {n: np.asarray(reader.get_tensor(n)) for n in reader.get_variable_to_shape_map()}
    arguments = ("convert", "src.safetensors", "dst.ckpt", "--overwrite")
    found = []
    for state in states(folder, tmp_path / "states", *arguments):
        found.append(state_of(state / "dst.ckpt"))
        assert tf.compat.v1.train.checkpoint_exists(str(state / "dst.ckpt"))
        reader = tf.train.load_checkpoint(str(state / "dst.ckpt"))
        assert same({n: np.asarray(reader.get_tensor(n)) for n in wanted["old"]}, wanted[found[-1]])
        next_run(state, ".ckpt", found[-1], overwrite=True)
        assert names(state) == usual_names(".ckpt"), state.name
    assert set(found) == {"old", "new"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("old", [True, False], ids=["old", "none"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_killed_at_every_step_after_a_kill_at_every_step(tmp_path, suffix: str, old: bool):
    arguments = ("convert", "src.safetensors", f"dst{suffix}", "--overwrite")
    folder, count = start(tmp_path / "start", suffix, old), 0
    for first in states(folder, tmp_path / "first", *arguments):
        for state in states(first, tmp_path / f"after {first.name}", *arguments):
            found = state_of(state / f"dst{suffix}")
            next_run(state, suffix, found, overwrite=True)
            assert names(state) == usual_names(suffix), (first.name, state.name)
            count += 1
        shutil.rmtree(tmp_path / f"after {first.name}")
    print(suffix, old, count)  # noqa: T201


# --------------------------------------------------------------------------------------------------
# At any moment of a separate process

LARGER = ResNetSpec(depths=(2, 2), width=128, stem_width=64, num_classes=100)  # 13 MB


def command(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "weights_convert", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_at(folder: Path, suffix: str, moments: int, seed: int) -> collections.Counter[str]:
    """Count the old and the new weights after SIGKILL at random moments."""
    source, target = save(weights(LARGER), folder / "src.npz").destination, folder / f"dst{suffix}"
    with load(source) as checkpoint:
        new = dict(checkpoint)
    old = dict(position_coded(LARGER))
    save(position_coded(LARGER), folder / f"old{suffix}")
    begin = time.monotonic()
    assert command("convert", source, target).communicate() == (None, "")
    whole = time.monotonic() - begin
    found: collections.Counter[str] = collections.Counter()
    wanted = names(folder)
    chance = random.Random(f"{suffix} {seed}")
    for _ in range(moments):
        for file in folder.glob(f"old{suffix}*"):
            shutil.copyfile(file, folder / f"dst{file.name.removeprefix('old')}")
        process = command("convert", source, target, "--overwrite")
        time.sleep(chance.uniform(0, 1.1) * whole)
        process.kill()
        process.communicate()
        found["stray"] += names(folder) != wanted
        with load(target) as checkpoint:
            state = dict(checkpoint)
        assert same(state, old) or same(state, new)
        found["old" if same(state, old) else "new"] += 1
        convert(source, target, overwrite=True)
        assert names(folder) == wanted
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_killed_at_random_moments(tmp_path, suffix: str):
    assert killed_at(tmp_path, suffix, 3, seed=0).total() >= 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_killed_at_200_random_moments(tmp_path, suffix: str):
    found = killed_at(tmp_path, suffix, 40, seed=1)
    print(suffix, dict(found))  # noqa: T201
    assert found["old"] > 0
    assert found["new"] > 0


STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# The parent of these tests may ignore signals (nohup, a background job), and child processes inherit this.
STOP_WHILE_WRITING = """
import os, signal, sys
handlers = {"ends": signal.SIG_DFL, "goes on": signal.SIG_IGN}
signal.signal(signal.SIGHUP, handlers[sys.argv.pop(1)])
signal.signal(signal.SIGINT, signal.default_int_handler)
from weights_convert import convert
from weights_convert.__main__ import main
real, seen = convert.__globals__["sha256"], []
def stop(array):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), int(sys.argv[1]))
    return real(array)
convert.__globals__["sha256"] = stop
sys.exit(main(sys.argv[3:]))
"""


def stopped(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", STOP_WHILE_WRITING, *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


# every signal for one container; every container and moment for one signal
SIGNALLED = [
    pytest.param(*case, marks=[] if case[:2] == (".pth", 3) or case[2] == signal.SIGTERM else exhaustive)
    for case in itertools.product([".pth", ".weights.h5", ".ckpt"], [3, 30], STOPPED)
]


@pytest.mark.parametrize(("suffix", "tensor", "number"), SIGNALLED)  # tensor 30: while it reads back
@pytest.mark.usefixtures("folder")
def test_stopped_by_a_signal(unchanged, suffix: str, number: int, tensor: int):
    convert_it = ["convert", "good.npz", f"good{suffix}", "--overwrite"]
    arguments = ["ends", str(int(number)), str(tensor), *convert_it]
    with unchanged():
        done = stopped(arguments)
    message = "interrupted; the output is unchanged or complete\n"
    assert (done.returncode, done.stderr) == (STOPPED[number], message)


@pytest.mark.usefixtures("folder")
def test_a_conversion_under_nohup_goes_on():
    done = stopped(["goes on", str(int(signal.SIGHUP)), "3", "convert", "good.npz", "x.pth"])
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("x.pth").exists()


@pytest.mark.usefixtures("folder")
def test_signals_that_someone_else_handles_stay_so(run):
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        assert run("convert", "good.npz", "x.pth").code == 0
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert run("convert", "good.npz", "y.pth").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


# --------------------------------------------------------------------------------------------------
# Removal of directories

DEAD = ".good.pth.0123456789abcdef.samenet.tmp"


def test_only_what_dead_runs_left_is_removed(run, folder):
    other = {
        f"{DEAD}x": ["new"],
        ".good.pth.0123456789abcdeg.samenet.tmp": ["new"],
        ".good.npz.0123456789abcdef.samenet.tmp": ["new"],
        ".good.pth.1123456789abcdef.samenet.tmp": ["new", "photograph.jpg"],
    }
    for name, files in {DEAD: ["new", "new.index", "lock"], **other}.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).write_text("content")
    elsewhere = folder / "folder" / "new"
    elsewhere.write_text("another program's")
    (folder / ".good.pth.2123456789abcdef.samenet.tmp").symlink_to(folder / "folder")
    before = names(folder)
    assert run("convert", "good.npz", "good.pth", "--overwrite").code == 0
    assert names(folder) == before - {DEAD}
    assert elsewhere.exists()
    assert all(len(list((folder / name).iterdir())) == len(files) for name, files in other.items())


def test_what_a_living_run_writes_is_left(run, folder):
    fcntl = pytest.importorskip("fcntl")
    (folder / DEAD).mkdir()
    with (folder / DEAD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("convert", "good.npz", "good.pth", "--overwrite").code == 0
        assert (folder / DEAD).exists()
    assert run("convert", "good.npz", "good.pth").code == 2  # also after a refused run
    assert not (folder / DEAD).exists()


def test_files_of_others_are_no_orphans(run, folder):
    """A run was stopped before naming its data; files with such names belong to another program."""
    (folder / ".good.ckpt.0123456789abcdef.samenet.tmp").mkdir()
    (folder / ".good.ckpt.0123456789abcdef.samenet.tmp" / "new.data-00000-of-00001").write_text("content")
    other = [folder / "good.ckpt.data-00000-of-00007", folder / "good.ckpt.data-00006-of-00007"]
    for file in other:
        file.write_text("content")
    assert run("convert", "good.npz", "good.ckpt", "--overwrite").code == 0
    assert all(file.read_text() == "content" for file in other)
    assert not list(folder.glob(".*"))
