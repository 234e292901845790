"""Shared set-up of the tests: quiet TensorFlow, nothing that depends on the machine, and the command line."""

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
# A worker inherits what the process that started it has set here, all cores, and has to set it again.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = str(max(1, (os.cpu_count() or 1) // _WORKERS))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    if _WORKERS > 1 or _name not in os.environ:
        os.environ[_name] = _SHARE
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# for the processes that tests start, in whichever folder: the project need not be installed
_ROOT = str(Path(__file__).parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

importlib.import_module("weights_convert.import_order")  # before a test imports a framework


def pytest_collection_finish() -> None:
    """What the frameworks' imports left is here to stay: each collection of garbage would look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def give_memory_back() -> Iterator[None]:
    """Keras and TensorFlow keep what was built until they are told; whole networks add up to gigabytes."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    if "torch._dynamo" in sys.modules:  # it compiles a function a few times only, for all networks together
        sys.modules["torch._dynamo"].reset()
    gc.collect()


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Whatever ran before: what a test makes at random is the same in every run."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


class Ran(NamedTuple):
    """What one command ended with and printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def run(capsys) -> Callable[..., Ran]:
    """Runs `weights-convert` with these arguments; one clear line and no traceback, whatever happens."""
    from weights_convert.__main__ import main

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        ran = Ran(code, *capsys.readouterr())
        assert "Traceback" not in ran.out + ran.err
        if code not in (0, 1):  # one line, then a list that is indented
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
    """The current directory: a copy of `good_files`, and some things that are no checkpoints."""
    shutil.copytree(good_files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("these are not weights, whatever the name says\n")
    Path("empty.pth").touch()
    Path("folder").mkdir()
    Path("folder.npz").mkdir()
    return tmp_path


@pytest.fixture
def unchanged(folder) -> Callable[[], AbstractContextManager[None]]:
    """`with unchanged():` no file in the current directory changes, comes or goes."""

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
    """A TF1 session of a graph of its own, which is not the default one: Keras would build models there."""
    import tensorflow.compat.v1 as tf

    opened = tf.Session(graph=tf.Graph())
    yield opened
    opened.close()
