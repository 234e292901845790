"""Damaged and malicious files: each is refused with a one-line error or read correctly.

`fuzz.mutations` makes thousands of changed files for each container (bits, numbers, parts, operations of a
pickle, entries, blocks, with corrected checksums). A monitored target reads them: it opens only the file,
imports and calls nothing by name, no allocation fails, and memory stays below a gigabyte.
"""

from __future__ import annotations

import functools
import io
import pickle
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import corpus, target
from fuzz.mutations import change_bytes, mutate
from weights_convert.errors import SourceError
from weights_convert.formats import open_reader

SECONDS = 10  # time limit of one input
seeds = functools.cache(corpus.seeds)


def tried(reader: str, data: bytes, folder: Path) -> bool:
    start = time.process_time()
    read = target.try_input(reader, data, folder)
    assert time.process_time() - start < SECONDS
    return read


def changed(reader: str, name: str, seed: int) -> bytes:
    rng = random.Random(seed)
    return mutate(reader, seeds(reader)[name], rng, lambda part: change_bytes(part, rng))


@pytest.mark.parametrize("reader", target.READERS)
def test_seeds_are_read(reader, tmp_path):
    """The unchanged files are read, so that changes matter."""
    read = [name for name, data in seeds(reader).items() if tried(reader, data, tmp_path)]
    unusual = {"earliest", "v108", "v110", "latest"} if reader.startswith("keras") else set()
    assert {name.split("-")[0] for name in set(seeds(reader)) - set(read)} == unusual


@pytest.mark.parametrize("reader", target.READERS)
def test_changed_files(reader, tmp_path):
    @settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(name=st.sampled_from(sorted(seeds(reader))), seed=st.integers(0, 2**32 - 1))
    def check(name: str, seed: int) -> None:
        tried(reader, changed(reader, name, seed), tmp_path)

    check()


def whole(reader: str, data: bytes, folder: Path) -> dict[str, bytes] | None:
    """Every tensor's bytes, by name."""
    arrays = target.read_all(target.put(reader, data, folder))
    return None if arrays is None else {name: array.tobytes() for name, array in arrays.items()}


def cuts(reader: str, step: int) -> range:
    return range(0, len(smallest(reader)), step)


def smallest(reader: str) -> bytes:
    return min((data for data in seeds(reader).values() if len(data) > 500), key=len)


def check_cuts(reader: str, folder: Path, sizes: range) -> int:
    """A truncated file is refused, unless only unused bytes were lost; returns the number of refusals."""
    data = smallest(reader)
    expected, refused = whole(reader, data, folder), 0
    for size in sizes:
        found = whole(reader, data[:size], folder)
        # a protobuf has no end: cut between two layers it is a smaller network
        shorter = reader == "caffe" and found is not None and found.items() <= (expected or {}).items()
        assert shorter or found in (None, expected), size
        refused += found is None
    return refused


@pytest.mark.parametrize("reader", target.READERS)
def test_truncated_anywhere(reader, tmp_path):
    assert check_cuts(reader, tmp_path, cuts(reader, step=max(len(smallest(reader)) // 150, 1))) > 100


@pytest.mark.exhaustive
@pytest.mark.parametrize("reader", target.READERS)
def test_truncated_at_every_byte_and_changed_at_length(reader, tmp_path, capsys):
    sizes = cuts(reader, step=1)
    refused = check_cuts(reader, tmp_path, sizes)
    start, read, count = time.process_time(), 0, 20_000
    names = sorted(seeds(reader))
    for seed in range(count):
        read += tried(reader, changed(reader, names[seed % len(names)], seed), tmp_path)
    seconds = time.process_time() - start
    with capsys.disabled():
        line = f"{len(sizes)} cuts, {refused} refused; {count} changes, {read} read, {seconds:.0f} s"
        sys.stdout.write(f"\n{reader}: {line}\n")


# --------------------------------------------------------------------------------------------------
# Results equal those of the format's own library


def by_numpy(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "samenet"}


def by_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    loaded = torch.load(path, weights_only=True)
    return {name: tensor.numpy() for name, tensor in loaded.items()}


# reader -> the library's function, number of changes, seeds that the library reads
JUDGES: dict[str, tuple[Callable[[Path], dict], int, tuple[str, ...]]] = {
    "npz": (by_numpy, 900, ("ours", "savez", "savez_compressed")),
    "torch_zip": (by_torch, 300, ("ours", "plain-2", "deflated")),
    "torch_stream": (by_torch, 900, ("plain-1", "plain-2")),
}


@pytest.mark.parametrize("reader", JUDGES)
@pytest.mark.filterwarnings("ignore")
def test_results_equal_those_of_the_library(reader, tmp_path):
    judge, count, names = JUDGES[reader]
    compared = 0
    for seed in range(count):
        path = target.put(reader, changed(reader, names[seed % len(names)], seed), tmp_path)
        try:
            with open_reader(path) as opened:
                ours = {name: opened.read(name) for name in opened.tensors}
            theirs = judge(path)
        except Exception:  # refused, here or there
            continue
        compared += 1
        for name, array in ours.items():
            expected = np.asarray(theirs[name])
            assert array.dtype == expected.dtype.newbyteorder("="), seed
            assert array.tobytes() == expected.astype(array.dtype).tobytes(), seed
    assert compared > 10


# --------------------------------------------------------------------------------------------------
# The monitoring itself


def test_the_watch_sees(tmp_path):
    outside = tmp_path / "outside"
    (tmp_path / "in").mkdir()
    misdeeds: list[Callable[[], object]] = [
        lambda: outside.write_bytes(b""),
        lambda: (tmp_path / "in" / "x").write_bytes(b""),
        lambda: outside.read_bytes(),
        lambda: outside.unlink(),
        lambda: exec("pass"),
        lambda: pickle.loads(b"cos\nsystem\n."),
        lambda: subprocess.run([sys.executable, "--version"], capture_output=True, check=True),
    ]
    for misdeed in misdeeds:
        with pytest.raises(AssertionError), target.watched(tmp_path / "in"):
            misdeed()
    with target.watched(tmp_path / "in"):
        (tmp_path / "in" / "x").read_bytes()


def test_a_failed_allocation_is_not_a_clean_error():
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise SourceError("x: damaged") from cause
    except SourceError as hiding:
        with pytest.raises(AssertionError, match="allocated"):
            target.check_error(hiding)


def test_changes_reach_behind_the_checksums():
    """Many changed zips, blocks and pickles can still be parsed."""
    parsed = 0
    for seed in range(100):
        data = changed("npz", "ours", seed)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parsed += archive.testzip() is None
        except Exception:  # damaged by a change of plain bytes
            continue
    assert parsed > 50
