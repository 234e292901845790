"""Checks a copy of a model in a wider dtype: rounding must explain its difference from the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.trace import is_index
from weights_convert.errors import SpecError

# Largest float32 error of a network's outputs, as a multiple of the effect of changing its images by one
# float32 ulp: at most 9 for the networks of this project. One step in bfloat16 is about 2^16.
_FACTOR = 200
_EPSILON = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}

Outputs = Mapping[str, np.ndarray]


def moved(images: np.ndarray, dtype: str) -> np.ndarray:
    """The images in float64, every pixel moved up or down by one unit in the last place of `dtype`."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], images.shape)
    return images.astype(np.float64) * (1 + signs * _EPSILON[dtype])


def check_rounding(
    what: str, own: Callable[[np.ndarray], Outputs], wide: Callable[[np.ndarray], Outputs], images: np.ndarray
) -> None:
    """Compare a copy in float64 with the outputs of the model in float32.

    A model with two outputs for one input is not checked here; the comparison finds it.

    Args:
        what: the model, for the message.
        own: images -> the outputs of the model, by path.
        wide: images -> the outputs of the copy.
        images: to run them on.

    Raises:
        SpecError: the copy differs from the model.
    """
    indices = is_index(images)
    images = images if indices else images.astype(np.float32).astype(np.float64)
    outputs, again = own(images), own(images)
    if not same(outputs, again):
        return
    copied, other = wide(images), wide(images if indices else moved(images, "float32"))
    if set(outputs) != set(copied):
        raise SpecError(f"{what} has other outputs in float64: {', '.join(copied)}; compare in float32")
    for path, array in copied.items():
        if not tolerances.is_comparable(array) or array.dtype.kind in "biu":
            continue
        sensitivity = tolerances.relative_error(other[path], array)
        error = tolerances.relative_error(outputs[path], array)
        limit = _FACTOR * max(sensitivity, _EPSILON["float32"])
        if np.isfinite(sensitivity) and not error <= limit:
            raise SpecError(
                f"{what} differs from its float64 copy by {error:.1e}, but rounding explains only "
                f"{limit:.1e}; compare it as it is with dtype='float32'"
            )


def same(one: Outputs, other: Outputs) -> bool:
    """Whether the outputs are identical, bit for bit."""
    return set(one) == set(other) and all(
        array.dtype == other[path].dtype and array.tobytes() == other[path].tobytes()
        for path, array in one.items()
    )
