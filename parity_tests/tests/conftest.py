"""Shared set-up of the tests: quiet TensorFlow, independence of the machine, fixtures for the commands."""

import gc
import importlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Each process of pytest-xdist takes its share of the cores: threads that wait for a core burn its time.
# A worker inherits its parent's setting, all cores, and must set it again.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = str(max(1, (os.cpu_count() or 1) // _WORKERS))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    if _WORKERS > 1 or _name not in os.environ:
        os.environ[_name] = _SHARE
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# for subprocesses in any folder, so that the project need not be installed
_ROOT = str(Path(__file__).parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

importlib.import_module("weights_convert.import_order")  # before a test imports a framework


def pytest_collection_finish() -> None:
    """Exclude objects from the frameworks' imports from garbage collection: they live until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def give_memory_back() -> Iterator[None]:
    """Free the networks that Keras and TensorFlow keep, gigabytes in total."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    if "torch._dynamo" in sys.modules:  # it compiles a function only a few times, for all networks together
        sys.modules["torch._dynamo"].reset()
    gc.collect()


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed the random generators, so that tests do not depend on the tests before them."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


class Ran(NamedTuple):
    """Exit code and output of one command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def run(capsys) -> Callable[..., Ran]:
    """Runs `weights-convert` with these arguments; an error must be one line without a traceback."""
    from weights_convert.__main__ import main

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        ran = Ran(code, *capsys.readouterr())
        assert "Traceback" not in ran.out + ran.err
        if code not in (0, 1):  # one line, then an indented list
            assert ran.err.endswith("\n")
            assert ran.lines[0].strip() == ran.lines[0] != ""
            assert all(line.startswith("  ") for line in ran.lines[1:])
        return ran

    return run


@pytest.fixture(scope="session")
def good_files(tmp_path_factory) -> Path:
    """One network in every container."""
    from parity_tests.judge.synthetic import SMALL, position_coded
    from weights_convert import save

    folder = tmp_path_factory.mktemp("good")
    for suffix in (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt"):
        save(position_coded(SMALL), folder / f"good{suffix}")
    return folder


@pytest.fixture
def folder(tmp_path, good_files, monkeypatch) -> Path:
    """The current directory: a copy of `good_files`, and some files that are not checkpoints."""
    shutil.copytree(good_files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("these are not weights, in spite of the name\n")
    Path("empty.pth").touch()
    Path("folder").mkdir()
    Path("folder.npz").mkdir()
    return tmp_path


@pytest.fixture
def unchanged(folder) -> Callable[[], AbstractContextManager[None]]:
    """`with unchanged():` checks that no file in the current directory is changed, created or removed."""

    def contents() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    @contextmanager
    def unchanged() -> Iterator[None]:
        before = contents()
        yield
        assert contents() == before

    return unchanged


@pytest.fixture
def session() -> Iterator[Any]:
    """A TF1 session with its own graph. It is not the default graph, in which Keras would build models."""
    import tensorflow.compat.v1 as tf

    opened = tf.Session(graph=tf.Graph())
    yield opened
    opened.close()
