"""Arrays: their dtypes, their bytes without a full copy of large ones, and fast transposed copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO

import ml_dtypes
import numpy as np

from weights_convert.errors import SpecError, nearest

DTYPES = {  # to choose from for a file or a model
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
LARGE = 1 << 26  # bytes; a larger array is never copied as a whole
_SLAB = 1 << 22  # bytes per step of a copy
# Size of a tile: neighbours in the array, and in the copy. Rows are mostly a power of two apart, and a cache
# keeps only eight lines with such a distance: tiles of 64 x 64 took up to twice as long.
_NEAR, _LAST = 1024, 8


def dtype_of(name: str) -> np.dtype:
    """The dtype with this name.

    Raises:
        SpecError: an unknown name; the message offers the nearest one.
    """
    if name not in DTYPES:
        raise SpecError(f"there is no dtype {name!r}{nearest(name, DTYPES)}; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order, without a copy if it is contiguous.

    The copy is made in tiles, because copying a transposed matrix row by row loads a cache line for every
    number: 2048 x 1024 in float32 takes 18 ms in NumPy, 3 to 5 ms in tiles.
    """
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    long = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    last = long[-1]  # neighbours in the copy
    near = min(long, key=lambda axis: abs(array.strides[axis]))  # neighbours in the array
    if near == last:
        copy[...] = array
        return copy
    for i in range(0, array.shape[near], _NEAR):
        for j in range(0, array.shape[last], _LAST):
            tile = [slice(None)] * array.ndim
            tile[near], tile[last] = slice(i, i + _NEAR), slice(j, j + _LAST)
            copy[*tile] = array[*tile]
    return copy


def transposed(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """`array.transpose(axes)`, C-contiguous; for a large array a view, for `pieces`."""
    view = array.transpose(axes)
    return view if array.nbytes > LARGE else contiguous(view)


Index = tuple[int | slice, ...]


def slabs(array: np.ndarray) -> Iterator[Index]:
    """Indices of consecutive parts of the array in C order, each of a few megabytes."""
    if array.nbytes <= _SLAB or not array.ndim:
        yield ()
        return
    rows = _SLAB // (array.nbytes // len(array))
    if rows:
        yield from ((slice(start, start + rows),) for start in range(0, len(array), rows))
    else:  # a single row is longer than a slab
        yield from ((i, *index) for i in range(len(array)) for index in slabs(array[i]))


def not_finite(array: np.ndarray) -> int:
    """The number of values that are NaN or infinite."""
    if array.dtype.kind in "iub":
        return 0
    finite = sum(int(np.count_nonzero(np.isfinite(array[index]))) for index in slabs(array))
    return array.size - finite


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """An array's little-endian bytes in C order: in one piece if that needs no copy, else slab by slab."""
    array = np.asarray(array)
    ready = array.flags.c_contiguous and array.dtype == array.dtype.newbyteorder("<")
    for index in [()] if ready else slabs(array):
        slab = array[index]
        little = contiguous(np.asarray(slab, slab.dtype.newbyteorder("<")))
        if little.size:
            yield little.reshape(-1).view(np.uint8).data


def write(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array's bytes. A function, so that no local variable keeps the array alive afterwards."""
    for piece in pieces(array):
        file.write(piece)


def sha256(array: np.ndarray) -> str:
    """The sha256 of the little-endian bytes in C order."""
    digest = hashlib.sha256()
    for piece in pieces(array):
        digest.update(piece)
    return digest.hexdigest()
