"""`compare_models`: finds the first layer that differs, and the layer that is wrong by itself.

It compares every layer's output, the model's outputs and, in train mode, the running statistics, each with a
limit from the rounding noise there (`noise`). It runs each model twice (`repeat`) and counts what was
compared (`coverage`). Then it runs every layer alone on the reference's input: a wrong layer differs there
too, the layers after it do not.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from parity_tests.compare.coverage import OWN, Ignored, Renamed, coverage, covers_call
from parity_tests.compare.environment import environment
from parity_tests.compare.noise import limit_at, torch_noise
from parity_tests.compare.power.of_report import power_of_report
from parity_tests.compare.remarks import conditions, left_over
from parity_tests.compare.report import Histogram, Point, Report
from parity_tests.compare.statistics import check_biased_variance, statistics
from parity_tests.judge import tolerances
from parity_tests.watch.open import is_torch, tracer_of
from parity_tests.watch.repeat import Watched, refuse_random, watch
from parity_tests.watch.trace import Trace, Tracer
from weights_convert.errors import MismatchError, SpecError

__all__ = ["assert_parity", "compare_models", "compare_tracers", "limit_at", "torch_noise"]


def compare_models(
    reference: Any,
    candidate: Any,
    inputs: np.ndarray,
    *,
    names: Mapping[str, str] | None = None,
    dtype: str = "float64",
    train: bool = False,
    title: str = "",
    ignore: Iterable[str] = (),
    biased_variance: str = "note",
) -> Report:
    """Compare two live models layer by layer; their weights are assumed to be loaded.

    Args:
        reference, candidate: a torch module, a Keras model (channels last) or a `TF1Model`.
        inputs: (N, C, H, W).
        names: layer of the reference -> the same layer of the candidate, for names that differ; also for
            outputs ("output y": "output z").
        dtype: "float64" proves the logic, "float32" the rounding.
        train: use batch statistics and compare the running statistics after the step.
        title: of the report.
        ignore: layers with weights, outputs and statistics that need no comparison, each including everything
            inside it. Parity does not hold if others are not compared.
        biased_variance: "note" accepts Keras's running variance, biased by n / (n - 1), and adds a note;
            "fail" counts it as a difference.

    Raises:
        SpecError: a model is none of these or does not run in `dtype`, or the reference gives two outputs for
            one input.
        MismatchError: no layers can be matched.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> report = compare_models(model, model, np.ones((1, 3, 8, 8)))
        >>> report.holds, [point.name for point in report.layers]
        (True, ['0', '1', 'output'])
    """
    check_dtype(dtype)
    inputs = np.array(inputs)
    if inputs.ndim < 2 or not inputs.size or inputs.dtype.kind not in "fiu":
        raise SpecError(
            f"inputs {inputs.dtype} {inputs.shape}, expected images as (N, C, H, W), at least one"
        )
    first, second = tracer_of(reference, wide(reference, dtype)), tracer_of(candidate, dtype, as_it_is=True)
    return compare_tracers(
        first,
        {second.framework: second},
        inputs,
        names=names,
        noise=_noise(reference, candidate, inputs, dtype, train),
        train=train,
        title=title or f"{type(reference).__name__} and {type(candidate).__name__}",
        ignore=ignore,
        biased_variance=biased_variance,
    )


def assert_parity(reference: Any, candidate: Any, inputs: np.ndarray, **keywords: Any) -> Report:
    """Call `compare_models` and raise an AssertionError with the reason if parity does not hold.

    Warn if parity holds but a change of 1 % in some tensor or setting would stay unnoticed.
    """
    report = compare_models(reference, candidate, inputs, **keywords)
    if not report.holds:
        raise AssertionError(f"{report.title}: {report.why_not()}")
    if report.caveat:
        warnings.warn(f"{report.title}: parity holds, but {report.caveat}", stacklevel=2)
    return report


def check_dtype(dtype: str) -> None:
    if dtype not in ("float64", "float32"):
        raise SpecError(f"dtype={dtype!r}: expected 'float64' or 'float32'")


def wide(model: Any, dtype: str) -> str:
    """The dtype of the reference: float64 for a torch module, also for a float32 candidate."""
    return "float64" if is_torch(model) else dtype


def compare_tracers(
    reference: Tracer,
    candidates: Mapping[str, Tracer],
    inputs: np.ndarray,
    *,
    names: Mapping[str, str] | None = None,
    noise: Mapping[str, float] | None = None,
    train: bool = False,
    title: str = "",
    ignore: Iterable[str] = (),
    biased_variance: str = "note",
    bit_for_bit: Collection[str] = (),
) -> Report:
    """`compare_models` for tracers, with several candidates at once.

    `bit_for_bit`: weights of the torch module that are known to be identical in every other model.
    """
    check_biased_variance(biased_variance)
    ignored = Ignored(ignore)
    dtype = next(iter(candidates.values())).dtype
    pairs = [f"{b}-{a}" for a, b in itertools.combinations(candidates, 2)]  # pairs of candidates
    report = Report(title, reference.framework, [*candidates, *pairs], dtype, "train" if train else "eval")
    report.images = inputs.shape
    report.environment = environment()
    try:
        first = watch(reference, inputs, train)
        refuse_random(reference, first)
        watched = {who: watch(tracer, inputs, train) for who, tracer in candidates.items()}
        renamed = {who: Renamed(first.trace, run, names) for who, run in watched.items()}
        _check_names(first, watched, renamed, names, ignored)
        unmatched = {who: _unmatched(first, run, who, ignored) for who, run in renamed.items()}
        report.layers = _points(first.trace, renamed, unmatched, noise or {}, dtype)
        if train:
            runs = {who: (run, renamed[who].statistics) for who, run in watched.items()}
            points, notes = statistics(first, runs, dtype, biased_variance)
            report.layers += points
            report.notes += notes
        _isolate(report, first.trace, renamed, candidates, train)
    finally:
        for tracer in (*candidates.values(), reference):  # last the reference, which ran first
            tracer.restore()
    traces = {who: run.trace for who, run in renamed.items()}
    report.coverage = {who: _coverage(report, first, who, run, ignored) for who, run in renamed.items()}
    report.histogram = _histogram(report, first.trace, traces)
    report.notes += left_over(first.trace, traces)
    report.notes += [note for tracer in (reference, *candidates.values()) for note in tracer.notes]
    report.notes += conditions(renamed, noise, dtype, train)
    if report.holds:  # power only matters without a difference
        own = {who: (tracer, renamed[who]) for who, tracer in candidates.items()}
        report.power = power_of_report(report, reference, first.trace, own, inputs, ignored, bit_for_bit)
    return report


def _check_names(
    first: Watched,
    watched: Mapping[str, Watched],
    renamed: Mapping[str, Renamed],
    names: Mapping[str, str] | None,
    ignored: Ignored,
) -> None:
    """Raise `MismatchError` for entries of `names` and `ignore` that match nothing."""
    for run in renamed.values():
        absent = [name for name in names or {} if name not in first.trace or name not in run.trace]
        if absent:
            known = f"the reference has {', '.join(first.trace)}; the candidate {', '.join(run.own.values())}"
            raise MismatchError(f"names=: no layers for {', '.join(map(repr, absent))}; {known}")
    known_names = [OWN]
    for one in (first, *watched.values()):
        known_names += [*one.weighted, *one.trace, *one.trace.opaque, *one.statistics]
    for other in renamed.values():
        known_names += [*other.weighted, *other.trace, *other.statistics]
    ignored.check(known_names)


def _unmatched(first: Watched, other: Renamed, who: str, ignored: Ignored) -> list[str]:
    """The calls of layers with weights that only one side has: differences, because they compute something.

    Raises:
        MismatchError: both sides have such calls, probably the same layers under different names.
    """
    trace = first.trace
    missing = _only_in(trace, first.weighted, other.trace, ignored)
    extra = _only_in(other.trace, other.weighted, trace, ignored)
    if not (missing and extra):
        return missing + extra
    pairs = [f"{n} {c.output.shape}" for n, c in trace.items() if n not in trace.outputs]
    others = [f"{n} {c.output.shape}" for n, c in other.trace.items() if n not in other.trace.outputs]
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


def _points(
    trace: Trace,
    renamed: Mapping[str, Renamed],
    unmatched: Mapping[str, list[str]],
    noise: Mapping[str, float],
    dtype: str,
) -> list[Point]:
    """Outputs in execution order; before the first failing output also its input, if the input differs.

    A layer with weights that only one side calls has an infinite error, at its place or at the end. A random
    layer has the difference between its two runs as error. A reference without finite values has no point.
    """
    points: list[Point] = []
    for name, call in trace.items():
        others = {who: run.trace[name] for who, run in renamed.items() if name in run.trace}
        limit = limit_at(noise.get(name), dtype)
        output = Point(name, call.output.shape, {}, limit, noise.get(name))
        if tolerances.is_comparable(call.output):
            output.errors = {w: _error(o.output, call.output) for w, o in others.items()}
            output.errors |= {w: math.inf for w, names in unmatched.items() if name in names}
            for who in others:
                output.errors[who] = max(output.errors[who], renamed[who].unstable.get(name, 0.0))
            for a, b in itertools.combinations(others, 2):
                output.errors[f"{b}-{a}"] = _error(others[b].output, others[a].output)
        if not output.errors:
            continue
        if output.failures() and not any(point.failures() for point in points) and call.input.size:
            entered = Point(f"input of {name}", call.input.shape, {}, limit)
            entered.errors = {w: _error(o.input, call.input) for w, o in others.items()}
            if entered.failures():
                points.append(entered)
        points.append(output)
    for who, names in unmatched.items():
        for name in names:
            if name not in trace:
                shape = renamed[who].trace[name].output.shape
                points.append(
                    Point(f"{name} (not in the reference)", shape, {who: math.inf}, limit_at(None, dtype))
                )
    for who, run in renamed.items():
        _insert_random(points, who, run, dtype)
    return points


_error = tolerances.relative_error


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


def _isolate(
    report: Report,
    trace: Trace,
    renamed: Mapping[str, Renamed],
    candidates: Mapping[str, Tracer],
    train: bool,
) -> None:
    """Run every layer alone on the reference's input."""
    for who, tracer in candidates.items():
        run = renamed[who]
        layers = [name for name in trace if name in run.trace and name not in trace.outputs]
        points = [point for point in report.layers if point.name in layers]
        theirs = {run.own[point.name]: point for point in points}
        outputs = tracer.run_alone({name: trace[p.name].input for name, p in theirs.items()}, train=train)
        for name, point in theirs.items():
            wanted = trace[point.name].output
            found = outputs.get(name)
            point.isolated[who] = None if found is None else tolerances.relative_error(found, wanted)


def _coverage(report: Report, first: Watched, who: str, run: Renamed, ignored: Ignored) -> dict[str, Any]:
    """How much of the reference and of a candidate was compared."""
    compared = {point.name for point in report.layers if who in point.errors}
    both = {name for name in compared if name in first.trace and name in run.trace}
    both |= {name for name in compared if name in first.statistics and name in run.statistics}
    return {
        "reference": coverage(first.trace, first.weighted, first.statistics, both, ignored),
        "candidate": coverage(run.trace, run.weighted, run.statistics, both, ignored),
    }


def _histogram(report: Report, trace: Trace, traces: Mapping[str, Trace]) -> Histogram | None:
    """The differences of the first failing layer, else of the worst layer."""
    both = {who: {*trace} & {*other} for who, other in traces.items()}
    points = [(p, who) for p in report.layers for who in p.errors if p.name in both.get(who, ())]
    if not points:
        return None
    failing = [(p, who) for p, who in points if who in p.failures()]
    point, who = failing[0] if failing else max(points, key=lambda found: found[0].errors[found[1]])
    wanted, found = (tolerances.widened(t[point.name].output) for t in (trace, traces[who]))
    if wanted.shape != found.shape:
        return None
    scale = float(np.abs(wanted).max()) or 1.0
    difference = np.abs(found - wanted) / scale
    positive = difference[np.isfinite(difference) & (difference > 0)]
    edges = np.arange(-18, 3)
    counts, _ = np.histogram(np.log10(positive), edges) if positive.size else (np.zeros(20, int), edges)
    return Histogram(
        point.name, who, [float(edge) for edge in edges], counts.tolist(), int((difference == 0).sum())
    )


def _noise(
    reference: Any, candidate: Any, inputs: np.ndarray, dtype: str, train: bool
) -> dict[str, float] | None:
    """The rounding noise at each layer of the model that is a torch module; None if neither is."""
    model = next((m for m in (reference, candidate) if is_torch(m)), None)
    return None if model is None else torch_noise(model, inputs, dtype, train)
