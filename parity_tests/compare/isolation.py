"""Finds the layers that are wrong by themselves.

Every layer runs alone on the reference's input, and the whole candidate runs once more with every layer's
output corrected before it is used. In that run an error arises between the layers before and this one: at a
*site*. A layer is wrong if it differs alone and it, or a layer inside it, is a site. So neither an error that
is only inherited counts, nor padding that stands in front of a layer on one side and inside it on the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from parity_tests.compare.neighbours import KINDS, after, reached_by
from parity_tests.compare.points import LOOSE, Matched
from parity_tests.compare.report import Point
from parity_tests.compare.views import FLATTENED
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Call, Trace, Tracer

_REACHED = 6  # arrays after a layer that may be its output on the other side


def isolate(
    points: list[Point],
    matched: Mapping[str, Matched],
    tracers: Mapping[str, Tracer],
    images: np.ndarray,
    train: bool,
) -> list[str]:
    """Set `isolated` of every layer's point, and return notes on layers that could not be isolated."""
    notes = []
    for who, m in matched.items():
        notes += _Isolation(m, tracers[who], images, train).of(points)
    return notes


class _Isolation:
    def __init__(self, m: Matched, tracer: Tracer, images: np.ndarray, train: bool) -> None:
        self.m, self.tracer, self.images, self.train = m, tracer, images, train
        self.layers = [name for name in m.judged if name not in m.trace.outputs]

    def of(self, points: list[Point]) -> list[str]:
        mine = {point.name: point for point in points if point.name in self.layers}
        failing = {name for name, point in mine.items() if self.m.who in point.failures()}
        corrected = self._corrected() if failing else Trace()
        errors = {name: self._corrected_error(name, corrected) for name in failing if name in corrected}
        sites = self.m.sites = {
            name for name in failing if not errors.get(name, math.inf) <= mine[name].limit
        }
        outputs = self.tracer.run_alone(self._inputs(corrected), train=self.train)
        notes = []
        for name, point in mine.items():
            found = outputs.get(self.m.run.own[name], "")
            error = None if isinstance(found, str) else self._error(name, found, point.limit)
            if error is not None and error <= point.limit:
                if name in sites:
                    self.m.in_front[name] = errors.get(name, math.inf)
            elif not any(site == name or site.startswith(f"{name}.") for site in sites):
                error = errors.get(name)  # what stands in front differs; nothing arises here
            elif isinstance(found, str):
                error = self._own_error(name, corrected, errors, point.limit)
                if error is None and found:
                    notes.append(f"{self.m.who}: {name} was not isolated: {found}")
            elif name in sites and self._only_order(name, point.limit):
                notes.append(f"{self.m.who}: the input of {name} is {FLATTENED} than its weights")
            point.isolated[self.m.who] = error
        return notes

    def _corrected_error(self, name: str, corrected: Trace) -> float:
        shape = corrected[name].output.shape
        replaced = any(array.shape == shape for array in self._accepted(name))
        kinds = [kind for kind in KINDS if not (replaced and kind == "candidate")]
        return self.m.judge(name, corrected, kinds).error

    def _corrected(self) -> Trace:
        """The run with corrected outputs, under the names of the reference."""
        outputs = {self.m.run.own[name]: self._accepted(name) for name in self.layers}
        trace = self.tracer.run_corrected(self.images, outputs, train=self.train)
        names = {own: name for name, own in self.m.run.own.items()}
        found = Trace({names.get(own, own): call for own, call in trace.items()})
        found.outputs, found.moved = list(self.m.run.trace.outputs), trace.moved
        return found

    def _accepted(self, name: str) -> list[np.ndarray]:
        """The outputs, in the candidate's order, that a right layer may have."""
        wanted = self.m.trace[name].output
        later = (x for x in after(self.m.trace, name, self.m.judged) if x.size == wanted.size and x.ndim > 1)
        arrays = [wanted, *itertools.islice(later, _REACHED)]
        return [order for array in arrays for order in self.m.views.orders(array)]

    def _inputs(self, corrected: Trace) -> dict[str, np.ndarray]:
        """The reference's inputs in the order that the candidate has them in."""
        found = {}
        for name in self.layers:
            wanted, given = self.m.trace[name].input, self.m.run.trace[name].input
            if name in corrected:
                given = corrected[name].input
            view = self.m.views.best(given, wanted, self.m.limits[name])
            found[self.m.run.own[name]] = view.fed(wanted)
        return found

    def _error(self, name: str, found: np.ndarray, limit: float) -> float:
        """The error of a layer's output alone, or at the end of its group."""
        views, wanted = self.m.views, self.m.trace[name].output
        error = tolerances.relative_error(views.best(found, wanted, limit).seen(found), wanted)
        if error <= limit:
            return error
        reached = reached_by(found, name, self.m.trace, views, max(limit, LOOSE), self.m.judged)
        if reached is not None:
            wanted = reached
            if error > LOOSE:
                self.m.folded.add(name)
        return tolerances.relative_error(views.best(found, wanted, limit).seen(found), wanted)

    def _own_error(
        self, name: str, corrected: Trace, errors: Mapping[str, float], limit: float
    ) -> float | None:
        """The error of a layer that cannot run alone: in the corrected run, if its inputs are right there.

        An input of another shape is padding that belongs to this layer.
        """
        if name not in corrected or name not in errors:
            return None
        ours, theirs = self.m.trace[name], corrected[name]
        if ours.input.ndim == theirs.input.ndim and ours.input.shape != theirs.input.shape:
            return errors[name]
        right = [self._agree(a, b, limit) for a, b in zip(_given(theirs), _given(ours), strict=False)]
        return errors[name] if right and all(right) else None

    def _agree(self, found: np.ndarray, wanted: np.ndarray, limit: float) -> bool:
        view = self.m.views.best(found, wanted, limit)
        return tolerances.relative_error(view.seen(found), wanted) <= limit

    def _only_order(self, name: str, limit: float) -> bool:
        """Whether a layer is right on an input that is flattened in the reference's order."""
        wanted, own = self.m.trace[name].input, self.m.run.own[name]
        view = self.m.views.best(self.m.run.trace[name].input, wanted, limit)
        if view.text != FLATTENED:
            return False
        found = self.tracer.run_alone({own: wanted}, train=self.train)[own]
        return not isinstance(found, str) and self._error(name, found, limit) <= limit


def _given(call: Call) -> list[np.ndarray]:
    return [call.input, *call.others]
