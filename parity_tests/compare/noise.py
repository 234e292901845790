"""What an error may be at a layer: a multiple of what rounding alone does there, and never above a ceiling.

    limit(float64) = min(CEILING, max(1e-12, 8 noise)),  limit(float32) = min(CEILING, 8 noise)

where noise is measured on torch's own layer: in float32 its float32 against its float64, in float64 a change
of the images by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.open import tracer_of
from parity_tests.watch.repeat import run
from parity_tests.watch.rounding import moved

_CARRIED = 8  # layers: about a block


def limit_at(noise: float | None, dtype: str) -> float:
    """What an error may be at a point with this noise; see the top of this file."""
    if dtype == "float64":
        return tolerances.float64_limit(noise or 0.0)
    return tolerances.FLOAT32_UNMEASURED if noise is None else tolerances.float32_limit(noise)


def torch_noise(model: Any, inputs: np.ndarray, dtype: str, train: bool = False) -> dict[str, float]:
    """Layer -> what rounding in `dtype` does there to a torch module's output; see the top of this file."""
    exact = run(tracer_of(model, "float64"), inputs, train)
    if dtype == "float32":
        other = run(tracer_of(model, "float32"), inputs, train)
    else:
        other = run(tracer_of(model, "float64"), moved(inputs, "float64"), train)
    found = {n: tolerances.relative_error(c.output, exact[n].output) for n, c in other.items() if n in exact}
    return _carried(found)


def capped(noise: Mapping[str, float], dtype: str) -> list[str]:
    """The layers at which the noise asks for more than the ceiling."""
    factor = tolerances.FLOAT64_FACTOR if dtype == "float64" else tolerances.FLOAT32_FACTOR
    return [n for n, value in noise.items() if np.isfinite(value) and factor * value > tolerances.CEILING]


def _carried(noise: dict[str, float]) -> dict[str, float]:
    """The noise of each layer, or of one just before it where that is larger.

    A layer cannot be more exact than what it is given. One of a handful of values may look so, by luck.
    """
    values = list(noise.values())
    return {name: max(values[max(0, i - _CARRIED) : i + 1]) for i, name in enumerate(noise)}
