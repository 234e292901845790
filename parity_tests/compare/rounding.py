"""A third verdict: a difference in float64 that float32 arithmetic in a layer of the candidate explains.

In a float64 model Keras computes `UpSampling2D` in float32 and rounds LeakyReLU's slope to float32; a batch
norm that was folded by hand has float32 weights. The logic is right then, and no change of the port brings
the error down to that of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from parity_tests.compare.points import Matched
from parity_tests.compare.report import Report
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Tracer
from weights_convert.errors import SpecError

CHOICES = ("note", "fail")
_CONSTANT = 2.0**-24  # largest relative error of a constant that is rounded to float32
_STEP = (
    2.0**-6
)  # relative change of an input: rounding errors are new then, a wrong formula's are nearly the same
_NEW = 0.5  # change of the error, relative to the error, from which it is new


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

    Every layer there that is wrong by itself has to err as float32 does: by a rounded constant, by folded
    weights, or by errors that are new on a changed input. Larger errors are not touched.

    Args:
        report: of a comparison in float64.
        who, m: the candidate and its matched run.
        reference, candidate: the tracers.
        noise: measures the noise of float32, see `torch_noise`.
    """
    failing = [point for point in report.layers if who in point.failures()]
    if not any(point.errors[who] <= tolerances.FLOAT32_UNMEASURED for point in failing):
        return
    limits = {name: tolerances.float32_limit(value) for name, value in (noise() or {}).items()}
    small = [point for point in failing if point.errors[who] <= limits.get(point.name, 0.0)]
    wrong = {point.name: point.isolated[who] or 0.0 for point in small if who in point.culprit_of()}
    for name, error in wrong.items():
        folded = m.judged[name].group == "reference"
        if not (error <= _CONSTANT or folded or _is_new(name, m, reference, candidate)):
            return
    if wrong:
        innermost = {name for other, name in report.culprits() if other == who}
        report.rounding[who] = {name: error for name, error in wrong.items() if name in innermost}
        for point in small:
            point.limit = limits[point.name]


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
