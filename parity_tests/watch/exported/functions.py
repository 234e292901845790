"""Any callable as a model: outputs only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parity_tests.watch.exported.base import Exported, Values
from parity_tests.watch.structure import arrays
from weights_convert.errors import SpecError

_LAYOUTS = ("nchw", "nhwc")
_DTYPES = ("float32", "float64")


class Callable(Exported):
    """Any function of arrays as a model for `compare_models`: its outputs are compared, nothing else.

    Args:
        fn: takes one NumPy array for each input and returns arrays, also nested in lists or dicts.
        layout: "nchw" or "nhwc", of the images that `fn` takes and returns.
        dtype: "float32" or "float64", of the numbers that `fn` takes and computes with.

    Example:
        >>> model = Callable(lambda images: images.mean(axis=(2, 3)), layout="nchw")
        >>> model.trace(np.ones((2, 3, 4, 4)))["output"].output.shape
        (2, 3)
    """

    framework = "callable"
    either_axes = False

    def __init__(self, fn: Any, layout: str = "nchw", *, dtype: str = "float32") -> None:
        if not callable(fn):
            raise SpecError(f"Callable({type(fn).__name__}): expected a function of arrays")
        if layout not in _LAYOUTS:
            raise SpecError(f"Callable(layout={layout!r}): expected 'nchw' or 'nhwc'")
        if dtype not in _DTYPES:
            raise SpecError(f"Callable(dtype={dtype!r}): expected 'float32' or 'float64'")
        super().__init__(f"the callable {getattr(fn, '__name__', type(fn).__name__)}")
        self.fn, self.precision = fn, dtype
        self.channels_last = layout == "nhwc"
        self.same_axes = not self.channels_last

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = [self.beside.name, *(name for name, _ in self.beside.others)]
        copies = [array.copy() for array in given]  # it may work in place
        named = dict(zip(names, copies, strict=True))
        returned = self.fn(**named) if any(names) else self.fn(*copies)
        found, opaque = arrays(returned, _is_array, _array)
        if opaque or not found:
            raise SpecError(f"{self.what} returned {type(returned).__name__}, expected arrays")
        return found


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "detach")


def _array(value: Any) -> np.ndarray:
    return np.array(value.detach().cpu() if hasattr(value, "detach") else value)
