"""A third verdict: a difference in float64 that float32 arithmetic in a layer of the candidate explains.

In a float64 model Keras computes `UpSampling2D` in float32 and rounds LeakyReLU's slope to float32; a batch
norm that was folded by hand has float32 weights. The logic is right then, and no change of the port brings
the error down to that of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from parity_tests.compare.points import Matched
from parity_tests.compare.report import Report
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Tracer
from weights_convert.errors import SpecError

CHOICES = ("note", "fail")
_CONSTANT = 2.0**-24  # largest relative error of a constant that is rounded to float32
# An input changes by _STEP; an error that then changes by _NEW of itself or more is rounding. The error of a
# wrong formula stays nearly the same.
_STEP = 2.0**-6
_NEW = 0.5


def check_float32_rounding(choice: str) -> None:
    if choice not in CHOICES:
        raise SpecError(f"float32_rounding={choice!r}: expected 'note' or 'fail'")


def accept_rounding(
    report: Report,
    who: str,
    m: Matched,
    reference: Tracer,
    candidate: Tracer,
    noise: Callable[[], Mapping[str, float] | None],
) -> None:
    """Widen the limits to those of float32 at the points where rounding in single layers explains the errors.

    A layer that is wrong by itself has to err as float32 does: by a rounded constant, by folded weights, or
    by errors that are new on a changed input. A layer whose epsilon differs never does. Other layers keep
    their limits; so do larger errors. An error between two layers has to be that of a rounded constant.

    Args:
        report: of a comparison in float64.
        who, m: the candidate and its matched run.
        reference, candidate: the tracers.
        noise: measures the noise of float32, see `torch_noise`.
    """
    failing = [point for point in report.layers if who in point.failures()]
    least = [min(point.errors[who], point.isolated.get(who) or math.inf) for point in failing]
    if not any(error <= tolerances.FLOAT32_UNMEASURED for error in (*least, *m.in_front.values())):
        return
    limits = {name: tolerances.float32_limit(value) for name, value in (noise() or {}).items()}
    wrong = {point.name: point.isolated[who] or 0.0 for point in failing if who in point.culprit_of()}
    rounded = {
        name: error
        for name, error in wrong.items()
        if error <= limits.get(name, 0.0)
        and same_settings(
            *(tracer.settings(n) for tracer, n in ((reference, name), (candidate, m.run.own[name])))
        )
        and (error <= _CONSTANT or name in m.folded or _is_new(name, m, reference, candidate))
    }
    between = {f"in front of {name}": error for name, error in m.in_front.items() if error <= _CONSTANT}
    if not (rounded or between):
        return
    innermost = {name for other, name in report.culprits() if other == who}
    report.rounding[who] = {n: error for n, error in rounded.items() if n in innermost} | between
    for point in failing:
        name = point.name.removeprefix("input of ")
        small = point.errors[who] <= limits.get(name, 0.0) and name not in wrong
        if small or name in rounded:
            point.limit = limits[name]


def same_settings(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Whether two layers have the same epsilon and the like, up to the rounding of float32."""
    return all(
        abs(value - theirs[name]) <= 2 * _CONSTANT * abs(value)
        for name, value in ours.items()
        if name in theirs
    )


def _is_new(name: str, m: Matched, reference: Tracer, candidate: Tracer) -> bool:
    """Whether a layer's errors change wholly when its input changes a little."""
    x = m.trace[name].input
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape)
    before = _difference(name, x, m, reference, candidate)
    after = _difference(name, x * (1 + signs * _STEP), m, reference, candidate)
    if before is None or after is None or before.shape != after.shape:
        return False
    return bool(np.abs(after - before).max() >= _NEW * np.abs(before).max())


def _difference(
    name: str, x: np.ndarray, m: Matched, reference: Tracer, candidate: Tracer
) -> np.ndarray | None:
    """The candidate's layer minus the reference's on an input; None if one cannot run alone."""
    own, views = m.run.own[name], m.views
    given = views.best(m.run.trace[name].input, m.trace[name].input, tolerances.FLOAT32_UNMEASURED)
    wanted = reference.run_alone({name: x})[name]
    found = candidate.run_alone({own: given.fed(x)})[own]
    if isinstance(wanted, str) or isinstance(found, str):
        return None
    seen = views.best(found, wanted, tolerances.FLOAT32_UNMEASURED).seen(found)
    return seen - wanted if seen.shape == wanted.shape else None
