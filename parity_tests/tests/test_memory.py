"""Arrays in tiles, slabs and pieces: the bits and the order of NumPy's copies, without large copies."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from weights_convert import memory
from weights_convert.memory import contiguous, not_finite, pieces, slabs, transposed

SHAPES = [
    (),
    (0,),
    (5,),
    (1, 1),
    (3, 0, 2),
    (130, 67),
    (1, 1, 65, 66),
    (65, 3, 2, 2),
    (7, 1, 66, 3),
    (2, 3, 4, 5),
]
DTYPES = [np.float32, np.int64, ml_dtypes.bfloat16]


def coded(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_transposition(monkeypatch, shape: tuple[int, ...], dtype: type):
    array = coded(shape, dtype)
    for axes in itertools.permutations(range(array.ndim)):
        view = array.transpose(axes)
        for given in (view, view[::-1] if view.ndim else view, view[..., ::2] if view.ndim else view):
            wanted = given.copy(order="C")
            found = contiguous(given)
            assert found.flags.c_contiguous
            assert (found.shape, found.dtype, found.tobytes()) == (
                wanted.shape,
                wanted.dtype,
                wanted.tobytes(),
            )
            for slab in (1, 64, 1000, 1 << 22):
                monkeypatch.setattr(memory, "_SLAB", slab)
                assert b"".join(pieces(given)) == wanted.tobytes()
                assert sum(given[index].size for index in slabs(given)) == given.size
                if slab >= 64 and not given.flags.c_contiguous:
                    assert all(given[index].nbytes <= slab for index in slabs(given))


def test_large_arrays_stay_views(monkeypatch):
    array = coded((20, 30), np.float32)
    assert transposed(array, (1, 0)).base is None
    monkeypatch.setattr(memory, "LARGE", array.nbytes - 1)
    assert np.shares_memory(transposed(array, (1, 0)), array)


def test_big_endian_bytes_are_swapped():
    array = coded((3, 4), np.float32)
    assert b"".join(pieces(array.astype(">f4"))) == array.astype("<f4").tobytes()


@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_not_finite(monkeypatch, slab: int):
    monkeypatch.setattr(memory, "_SLAB", slab)
    array = np.array([[1, np.nan], [np.inf, -np.inf]], np.float32)
    assert [
        not_finite(a) for a in (array, array.T, array[0], np.arange(3), array.astype(ml_dtypes.bfloat16))
    ] == [3, 3, 1, 0, 3]


PROCESS = """
import resource, sys
import numpy as np
from weights_convert import Checkpoint, ResNetSpec, convert, save, parameters
from weights_convert.checkpoint import Tensor
from weights_convert.formats.base import TensorInfo
if sys.argv[1] == "make":
    spec = ResNetSpec(depths=(1,), width=8, stem_width=8, block="basic", num_classes=3_200_000)
    def tensor(name, shape, role):
        dtype = np.dtype(np.int64 if role == "count" else np.float32)
        return Tensor(TensorInfo(shape, dtype), name, lambda: np.zeros(shape, dtype))
    save(Checkpoint({p.name: tensor(*p) for p in parameters(spec)}, spec), sys.argv[2])
else:
    convert(*sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(*arguments: object) -> int:
    """The peak memory of a separate process, in MB."""
    # through a shell: Linux counts a parent's memory in its child's peak
    command = ["/bin/sh", "-c", '"$@"', "sh", sys.executable, "-c", PROCESS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A file with a tensor of 100 MB."""
    path = tmp_path_factory.mktemp("large") / "a.npz"
    peak("make", path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt"])
def test_a_large_tensor_is_not_copied(tmp_path, large, suffix: str):
    """Conversions there and back in separate processes need less additional memory than the tensor."""
    there, back = tmp_path / f"b{suffix}", tmp_path / "c.npz"
    assert peak(large, there) < 98 + 85
    assert peak(there, back) < 98 + 85
    assert back.read_bytes() == large.read_bytes()
