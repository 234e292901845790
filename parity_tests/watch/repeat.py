"""Runs a model twice on the same input: a model with two different outputs proves nothing.

The noise measured on a random model would be as large as its random numbers, and every error would be within
the limit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.trace import Trace, Tracer, Weights
from weights_convert.errors import SpecError, WeightsConvertError

# Runs of a model that draws random numbers but gives the same outputs: some layers, such as stochastic depth,
# change the outputs in few runs only.
_REPEATS = 8


class Watched(NamedTuple):
    """One model's run.

    Attributes:
        trace: every layer.
        statistics, unbiased: after a run in train mode, see `Tracer`; none in eval mode.
        weighted: the layers with weights.
        unstable: points that differ between two runs on the same input -> difference.
    """

    trace: Trace
    statistics: Mapping[str, np.ndarray]
    unbiased: Mapping[str, np.ndarray]
    weighted: Mapping[str, Weights]
    unstable: dict[str, float]


def watch(tracer: Tracer, inputs: np.ndarray, train: bool) -> Watched:
    """Run a model twice on the same input and restore its weights."""
    before = _randomness(tracer)
    trace = run(tracer, inputs, train)
    statistics, unbiased = (tracer.statistics(), tracer.unbiased()) if train else ({}, {})
    drew = _randomness(tracer) != before
    unstable: dict[str, float] = {}
    for _ in range(_REPEATS if drew else 1):
        if train:
            tracer.restore()
        unstable = _differing(trace, run(tracer, inputs, train), tracer.dtype)
        if unstable:
            break
    tracer.restore()
    return Watched(trace, statistics, unbiased, tracer.weighted(), unstable)


def refuse_random(reference: Tracer, watched: Watched) -> None:
    """Raise `SpecError` for a reference that gives two outputs for one input."""
    for name, error in watched.unstable.items():
        raise SpecError(
            f"the reference ({reference.framework}) gives two outputs for one input: {name} differs by "
            f"{error:.1e} from one run to the next; switch its dropout or noise off, or reset its state "
            "between calls"
        )


def run(tracer: Tracer, inputs: np.ndarray, train: bool) -> Trace:
    """A trace; any exception of a framework becomes a one-line `SpecError`."""
    try:
        return tracer.trace(inputs, train=train)
    except WeightsConvertError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SpecError(
            f"the {tracer.framework} model does not run on inputs {inputs.shape} (N, C, H, W): "
            f"{type(error).__name__}: {reason}"
        ) from error


def _randomness(tracer: Tracer) -> Any:
    """The state of all random generators that the model may use."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002  (a user's model may draw from it)
    return tracer.randomness(), random.getstate(), repr(state)


def _differing(first: Trace, second: Trace, dtype: str) -> dict[str, float]:
    """The points that only one run has, or that differ by more than rounding explains."""
    floor = tolerances.FLOAT64 if dtype == "float64" else tolerances.float32_limit(0)
    found = {}
    for name in dict.fromkeys((*first, *second)):
        if name not in first or name not in second:
            found[name] = float("inf")
            continue
        one, other = first[name].output, second[name].output
        if not _equal(one, other):
            error = tolerances.relative_error(other, one)
            if not error <= floor:
                found[name] = error
    return found


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
