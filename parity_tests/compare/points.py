"""The compared points of two or more runs: each common output judged, and what only one side calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from parity_tests.compare.coverage import Ignored, Renamed, covers_call
from parity_tests.compare.hidden import hidden
from parity_tests.compare.neighbours import KINDS, Judged, judge, members
from parity_tests.compare.noise import limit_at
from parity_tests.compare.report import Point
from parity_tests.compare.views import Views
from parity_tests.judge import tolerances
from parity_tests.watch.repeat import Watched
from parity_tests.watch.trace import Trace, base_name
from weights_convert.errors import MismatchError

LOOSE = tolerances.FLOAT32_UNMEASURED  # for finding groups of layers, not for accepting them


class Matched:
    """A candidate's run beside the reference's: each common output judged, and the calls that one side lacks.

    Attributes:
        run: under the names of the reference.
        views: the orders of the candidate's numbers.
        judged: name -> `Judged`, for every name in both runs.
        grouped: the calls of layers with weights that one side lacks and that are in a group that agrees.
        unmatched: the other ones: differences, because they compute something.
        fronted: layers that stand for a group in front of them, so that their inputs differ.
        sites: layers where an error arises in the corrected run, see `isolation`.
        in_front: layers that are right alone -> the error that arises between them and the layers before.
        folded: layers whose output alone is that of a later call of the reference.
    """

    def __init__(
        self,
        first: Watched,
        run: Renamed,
        who: str,
        ignored: Ignored,
        noise: Mapping[str, float],
        dtype: str,
        layouts: Mapping[str, str],
        orders: Mapping[int, Sequence[np.ndarray]] | None = None,
    ) -> None:
        trace = first.trace
        self.who, self.run, self.trace = who, run, trace
        self.dtype, self.layouts = dtype, layouts
        self._weighted = (first.weighted, run.weighted)
        self.sites: set[str] = set()
        self.fronted: set[str] = set()
        self.in_front: dict[str, float] = {}
        self.folded: set[str] = set()
        self.views = Views(trace, run.trace, layouts, orders)
        self.limits = {name: limit_at(noise.get(name), dtype) for name in trace}
        both = [name for name in trace if name in run.trace and tolerances.is_comparable(trace[name].output)]
        self._activations_count: set[str] = set()
        self.judged = {name: self.judge(name, run.trace, KINDS) for name in both}
        for name in [name for name, judged in self.judged.items() if judged.group == "inside"]:
            if self._feeds_a_failure(name):
                self._activations_count.add(name)
                self.judged[name] = self.judge(name, run.trace, KINDS)
        self._allow_permuted()
        missing = _only_in(trace, first.weighted, run.trace, ignored)
        extra = _only_in(run.trace, run.weighted, trace, ignored)
        self.grouped = self._groups() if missing or extra else set()
        self.grouped |= self._inside(missing, run.weighted) | self._inside(extra, first.weighted)
        fused = {*run.trace.fused.values()}
        self.fronted |= {name for name in both if fused and run.trace[name].layer in fused}
        self.grouped |= hidden(missing, trace, run.trace, self.judged, self.limits)
        self.grouped |= hidden(extra, run.trace, trace, self.judged, self.limits)
        self.unmatched = _refuse_pairs(trace, run.trace, who, *(
            [name for name in names if name not in self.grouped] for names in (missing, extra)
        ))  # fmt: skip

    def judge(self, name: str, trace: Trace, kinds: Collection[str]) -> Judged:
        """Judge an output of the candidate, in this run or another one."""
        matched = self.trace.keys() & self.run.trace.keys()
        if name in self._activations_count:
            kinds = [kind for kind in kinds if kind != "inside"]
        judged = judge(name, self.trace, trace, self.views, self.limits[name], matched, kinds)
        if judged.error > LOOSE > self.limits[name]:  # float32 weights of a folded batch norm
            rounded = judge(name, self.trace, trace, self.views, LOOSE, matched, kinds)
            return rounded if rounded.group == "reference" else judged
        return judged

    def _allow_permuted(self) -> None:
        """Accept channels in another order if everything agrees then: all layers permute them alike."""
        failing = [name for name, judged in self.judged.items() if not judged.error <= self.limits[name]]
        if any(name in self.trace.outputs for name in failing):
            return
        found = {name: self.judge(name, self.run.trace, [*KINDS, "permuted"]) for name in failing}
        if all(judged.error <= self.limits[name] for name, judged in found.items()):
            self.judged |= found

    def _feeds_a_failure(self, name: str) -> bool:
        """Whether a layer's activation reaches an output that differs: then the activation is to blame."""
        trace = self.run.trace
        value = trace[name].output
        for later, judged in self.judged.items():
            call = trace[later]
            given = [call.output] if later in trace.outputs else [call.input, *call.others]
            if not judged.error <= self.limits[later] and any(np.array_equal(x, value) for x in given):
                return True
        return False

    def _groups(self) -> set[str]:
        matched = self.trace.keys() & self.run.trace.keys()
        found: set[str] = set()
        for name, judged in self.judged.items():
            around = (self.trace, self.run.trace, self.views, self.limits[name], matched)
            group = members(name, judged, *around)
            right = judged.error <= (LOOSE if judged.group == "reference" else self.limits[name])
            if right or (group and self._stands_for(name, group)):
                found.update(group)
                self.fronted.update([name] if group else [])
        return found

    def _stands_for(self, name: str, group: Collection[str]) -> bool:
        """Whether a layer that differs has as many parameters as it and the group have on the other side."""
        layer = self.trace[name].layer
        ours, theirs = self._weighted
        if layer not in ours or layer not in theirs:
            return False
        inside = {self.trace[n].layer if n in self.trace else base_name(n) for n in group}
        more = sum(
            side[other].parameters for other in inside for side in (ours, theirs) if side.keys() & {other}
        )
        return abs(ours[layer].parameters - theirs[layer].parameters) == more > 0

    def _inside(self, calls: Iterable[str], weighted: Iterable[str]) -> set[str]:
        """The calls in a layer that both sides call, and that has the weights itself on one side."""
        both = {layer for layer in weighted if layer} & {self.trace[name].layer for name in self.judged}
        return {name for name in calls if any(name.startswith(f"{layer}.") for layer in both)}

    def notes(self) -> list[str]:
        """Notes on recognised orders of the numbers and on groups of layers."""
        found: dict[str, list[str]] = {}
        for name, judged in self.judged.items():
            if judged.error <= self.limits[name] and judged.view.text:
                found.setdefault(judged.view.text, []).append(name)
            if judged.group == "inside":
                found.setdefault("compared before the activation inside the layer", []).append(name)
            elif judged.group:
                found.setdefault("judged by what reaches the next layer", []).append(name)
        if self.grouped:
            found["inside the layers beside them"] = sorted(self.grouped)
        return [f"{self.who}: {what}: {_few(names)}" for what, names in found.items()]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse_pairs(trace: Trace, other: Trace, who: str, missing: list[str], extra: list[str]) -> list[str]:
    """The calls that one side lacks.

    Raises:
        MismatchError: both sides have such calls, probably the same layers under different names.
    """
    if not (missing and extra):
        return missing + extra
    pairs = [f"{n} {c.output.shape}" for n, c in trace.items() if n not in trace.outputs]
    others = [f"{n} {c.output.shape}" for n, c in other.items() if n not in other.outputs]
    lines = [f"{a:<50} {b}" for a, b in itertools.zip_longest(pairs[:40], others[:40], fillvalue="-")]
    raise MismatchError(
        f"no counterpart for {', '.join((missing + extra)[:5])} in reference and {who} "
        "candidate; pair the layers with names={reference: candidate}; in order of execution:",
        lines,
    )


def _only_in(trace: Trace, weighted: Iterable[str], other: Trace, ignored: Ignored) -> list[str]:
    """The calls of layers with weights that the other side does not call at all."""
    found = []
    for name in trace:
        layer = next((layer for layer in weighted if layer and covers_call(layer, name)), None)
        if layer and name not in ignored and not any(covers_call(layer, theirs) for theirs in other):
            found.append(name)
    return found


def points_of(
    trace: Trace, matched: Mapping[str, Matched], noise: Mapping[str, float], dtype: str
) -> list[Point]:
    """Outputs in execution order; before the first failing output also its input, if the input differs.

    A layer with weights that only one side calls has an infinite error, at its place or at the end. A random
    layer has the difference between its two runs as error. A reference without finite values has no point.
    """
    points: list[Point] = []
    for name, call in trace.items():
        output = Point(name, call.output.shape, {}, limit_at(noise.get(name), dtype), noise.get(name))
        output.errors = _errors(name, matched)
        if not output.errors:
            continue
        if output.failures() and not any(point.failures() for point in points) and call.input.size:
            entered = Point(f"input of {name}", call.input.shape, {}, output.limit)
            entered.errors = {
                who: error
                for who, m in matched.items()
                if name in m.judged and (error := _entered(m, name)) is not None
            }
            if entered.failures():
                points.append(entered)
        points.append(output)
    for who, m in matched.items():
        for name in m.unmatched:
            if name not in trace:
                shape = m.run.trace[name].output.shape
                points.append(
                    Point(f"{name} (not in the reference)", shape, {who: math.inf}, limit_at(None, dtype))
                )
    for who, m in matched.items():
        _insert_random(points, who, m.run, dtype)
    return points


def _errors(name: str, matched: Mapping[str, Matched]) -> dict[str, float]:
    """Candidate -> error, also of the pairs of candidates."""
    found: dict[str, float] = {}
    plain = {}
    for who, m in matched.items():
        if name in m.judged:
            judged = m.judged[name]
            found[who] = max(judged.error, m.run.unstable.get(name, 0.0))
            if not judged.group:
                plain[who] = judged.view.seen(m.run.trace[name].output)
        if name in m.unmatched:
            found[who] = math.inf
    for a, b in itertools.combinations(plain, 2):
        found[f"{b}-{a}"] = tolerances.relative_error(plain[b], plain[a])
    return found


def _entered(m: Matched, name: str) -> float | None:
    """The error of a layer's input; None where padding or a layer in front of it belongs to it."""
    if name in m.fronted:
        return None
    wanted, found = m.trace[name].input, m.run.trace[name].input
    error = tolerances.relative_error(m.views.best(found, wanted, m.limits[name]).seen(found), wanted)
    return None if error == math.inf and found.shape != wanted.shape else error


def _insert_random(points: list[Point], who: str, run: Renamed, dtype: str) -> None:
    """Insert a random layer that only a candidate has, before the layers that follow it."""
    first = next((name for name in run.trace if name in run.unstable), None)
    if first is None or any(point.name == first for point in points):
        return
    following = list(run.trace)[list(run.trace).index(first) :]
    places = [i for i, point in enumerate(points) if point.name.removeprefix("input of ") in following]
    shape = run.trace[first].output.shape
    point = Point(first, shape, {who: run.unstable[first]}, limit_at(None, dtype))
    points.insert(min(places, default=len(points)), point)
