"""Inputs of other sizes and signs: a ReLU in the place of a ReLU6 shows only where values pass 6."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from parity_tests.compare.coverage import Ignored, Renamed
from parity_tests.compare.points import Matched
from parity_tests.watch.repeat import Watched, run
from parity_tests.watch.trace import Trace, Tracer, is_index
from weights_convert.errors import SpecError

SCALES = (10.0, 100.0, -1.0)
_MOST = 4_000_000  # numbers in all outputs of the layers, beyond which the scan would take long

Noise = Callable[[np.ndarray], Mapping[str, float] | None]


def scale_that_differs(
    trace: Trace,
    m: Matched,
    limits: Mapping[str, float],
    reference: Tracer,
    candidate: Tracer,
    inputs: np.ndarray,
    noise: Noise,
) -> float | None:
    """The first factor of the inputs with which some layer differs, for models that agree on the inputs.

    Large networks, inputs of indices and inputs on which a model has no finite outputs are not scanned.

    Args:
        trace: the reference's run.
        m: the candidate's matched run.
        limits: of the points that agree on the inputs as they are.
        reference, candidate: the tracers.
        inputs: as they are.
        noise: inputs -> the rounding noise at each layer.
    """
    if is_index(inputs) or sum(call.output.size for call in trace.values()) > _MOST:
        return None
    for scale in SCALES:
        try:
            first, other = run(reference, inputs * scale, False), run(candidate, inputs * scale, False)
        except SpecError:  # a model may refuse such values
            continue
        if not all(np.isfinite(first[name].output).all() for name in first.outputs if name in first):
            continue
        runs = (m, limits, first, other)
        if _differs(*runs, {}) and _differs(*runs, noise(inputs * scale) or {}):
            return scale
    return None


def _differs(
    m: Matched, limits: Mapping[str, float], first: Trace, other: Trace, noise: Mapping[str, float]
) -> bool:
    names = {ours: theirs for ours, theirs in m.run.own.items() if ours != theirs}
    renamed = Renamed(first, Watched(other, {}, {}, {}, {}), names)
    found = Matched(Watched(first, {}, {}, {}, {}), renamed, m.who, Ignored(()), noise, m.dtype, m.layouts)
    return any(
        not judged.error <= max(limits[name], found.limits[name])
        for name, judged in found.judged.items()
        if name in limits
    )
