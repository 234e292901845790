"""The limit of a layer's error: a multiple of the rounding noise there, at most a fixed ceiling.

    limit(float64) = min(CEILING, max(1e-12, 8 noise)),  limit(float32) = min(CEILING, 8 noise)

The noise is measured on torch's layer: for float32 its float32 against its float64, for float64 the effect of
changing the images by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.inputs import NONE, Beside
from parity_tests.watch.open import tracer_of
from parity_tests.watch.repeat import run
from parity_tests.watch.rounding import moved
from parity_tests.watch.trace import is_index

_CARRIED = 8  # layers, about one block


def limit_at(noise: float | None, dtype: str) -> float:
    """The limit at a point with this noise; see the top of this file."""
    if dtype == "float64":
        return tolerances.float64_limit(noise or 0.0)
    return tolerances.FLOAT32_UNMEASURED if noise is None else tolerances.float32_limit(noise)


def torch_noise(
    model: Any, inputs: np.ndarray, dtype: str, train: bool = False, beside: Beside = NONE
) -> dict[str, float]:
    """Layer -> rounding noise in `dtype` of a torch module's output; see the top of this file."""

    def tracer(dtype: str) -> Any:
        found = tracer_of(model, dtype)
        found.beside = beside
        return found

    exact = run(tracer("float64"), inputs, train)
    if dtype == "float32":
        other = run(tracer("float32"), inputs, train)
    elif is_index(inputs):  # nothing is between two indices: change the weights instead
        nudged = tracer("float64")
        nudged.move_weights(float(np.finfo(np.float64).eps))
        other = run(nudged, inputs, train)
    else:
        other = run(tracer("float64"), moved(inputs, "float64"), train)
    found = {n: tolerances.relative_error(c.output, exact[n].output) for n, c in other.items() if n in exact}
    return _carried(found)


def capped(noise: Mapping[str, float], dtype: str) -> list[str]:
    """The layers whose noise would need a limit above the ceiling."""
    factor = tolerances.FLOAT64_FACTOR if dtype == "float64" else tolerances.FLOAT32_FACTOR
    return [n for n, value in noise.items() if np.isfinite(value) and factor * value > tolerances.CEILING]


def _carried(noise: dict[str, float]) -> dict[str, float]:
    """The largest noise of each layer and the layers just before it.

    A layer cannot be more exact than its input, although a layer with few values may look exact by chance.
    """
    values = list(noise.values())
    return {name: max(values[max(0, i - _CARRIED) : i + 1]) for i, name in enumerate(noise)}
