"""Whether a copy of a model in a wider dtype is the same model: rounding must explain how far it is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from parity_tests.judge import tolerances
from weights_convert.errors import SpecError

# What float32 does to a network's outputs, in multiples of what a change of its images by one float32 ulp
# does: at most 9 on the networks of this project. One step in bfloat16 is about 2^16.
_FACTOR = 200
_EPSILON = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}

Outputs = Mapping[str, np.ndarray]


def moved(images: np.ndarray, dtype: str) -> np.ndarray:
    """The images in float64, every pixel one unit in the last place of `dtype` up or down."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], images.shape)
    return images.astype(np.float64) * (1 + signs * _EPSILON[dtype])


def check_rounding(
    what: str, own: Callable[[np.ndarray], Outputs], wide: Callable[[np.ndarray], Outputs], images: np.ndarray
) -> None:
    """Hold a copy in float64 to the outputs of the model in float32.

    A model that gives two outputs for one input is not held to any: the comparison finds it.

    Args:
        what: the model, for the message.
        own: images -> the outputs of the model itself, by path.
        wide: the same of the copy.
        images: to run them on.

    Raises:
        SpecError: the copy is another model.
    """
    images = images.astype(np.float32).astype(np.float64)
    outputs, again = own(images), own(images)
    if not same(outputs, again):
        return
    copied, other = wide(images), wide(moved(images, "float32"))
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
                f"{what} gives other outputs in float64 than as it is: by {error:.1e}, and rounding explains "
                f"{limit:.1e}; compare it as it is with dtype='float32'"
            )


def same(one: Outputs, other: Outputs) -> bool:
    """Whether they are the same bits."""
    return set(one) == set(other) and all(
        array.dtype == other[path].dtype and array.tobytes() == other[path].tobytes()
        for path, array in one.items()
    )
