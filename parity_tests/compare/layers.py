"""`compare_models`: the first layer that differs, and the layer that is wrong by itself.

    limit(float64) = max(1e-12, 8 noise),  limit(float32) = 8 noise

where noise is what rounding alone does at that layer of torch: in float32 its float32 against its float64, in
float64 a change of the images by one unit in the last place.
Every layer is then run alone on the reference's own input, so that a wrong layer is told from its followers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests import tolerances
from parity_tests.compare.environment import environment
from parity_tests.compare.report import Histogram, Point, Report
from parity_tests.compare.trace import OUTPUT, Trace, Tracer, is_torch, tracer_of
from weights_convert.errors import MismatchError, SpecError, WeightsConvertError

_CARRIED = 8  # layers: about a block


def compare_models(
    reference: Any,
    candidate: Any,
    inputs: np.ndarray,
    *,
    names: Mapping[str, str] | None = None,
    dtype: str = "float64",
    train: bool = False,
    title: str = "",
) -> Report:
    """Compare two live models layer by layer; their weights are assumed to be loaded.

    Args:
        reference, candidate: a torch module, a Keras model (channels last) or a `TF1Model`.
        inputs: (N, C, H, W).
        names: layer of the reference -> the same layer of the candidate, where they are called otherwise.
        dtype: "float64" proves the logic, "float32" the rounding.
        train: batch statistics, and the running ones compared after the step.
        title: of the report.

    Raises:
        SpecError: a model that is none of these, or that cannot be had in `dtype`.
        MismatchError: no layers can be matched.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> report = compare_models(model, model, np.ones((1, 3, 8, 8)))
        >>> report.holds, [point.name for point in report.layers]
        (True, ['0', '1', 'output'])
    """
    check_dtype(dtype)
    inputs = np.asarray(inputs)
    if inputs.ndim < 2 or not inputs.size or inputs.dtype.kind not in "fiu":
        raise SpecError(
            f"inputs {inputs.dtype} {inputs.shape}, expected images as (N, C, H, W), at least one"
        )
    first, second = tracer_of(reference, wide(reference, dtype)), tracer_of(candidate, dtype)
    return compare_tracers(
        first,
        {second.framework: second},
        inputs,
        names=names,
        noise=_noise(reference, candidate, inputs, dtype, train),
        train=train,
        title=title or f"{type(reference).__name__} and {type(candidate).__name__}",
    )


def assert_parity(reference: Any, candidate: Any, inputs: np.ndarray, **keywords: Any) -> Report:
    """`compare_models`, and an AssertionError with the first divergence if there is one."""
    report = compare_models(reference, candidate, inputs, **keywords)
    divergence = report.first_divergence()
    if divergence is not None:
        raise AssertionError(f"{report.title}: {divergence}")
    return report


def check_dtype(dtype: str) -> None:
    if dtype not in ("float64", "float32"):
        raise SpecError(f"dtype={dtype!r}: expected 'float64' or 'float32'")


def wide(model: Any, dtype: str) -> str:
    """The dtype of the reference: a torch module's float64 is what a candidate's float32 is held to."""
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
) -> Report:
    """`compare_models` for models that are being watched already, several candidates at once."""
    dtype = next(iter(candidates.values())).dtype
    pairs = [f"{b}-{a}" for a, b in itertools.combinations(candidates, 2)]  # the candidates with one another
    report = Report(title, reference.framework, [*candidates, *pairs], dtype, "train" if train else "eval")
    report.images = inputs.shape
    report.environment = environment()
    try:
        trace = _run(reference, inputs, train)
        traces = {}
        lonely = {}
        for name, tracer in candidates.items():
            traces[name] = _renamed(_run(tracer, inputs, train), names)
            lonely[name] = _lonely(reference, trace, tracer, traces[name], names)
        report.layers = _points(trace, traces, lonely, noise or {}, dtype)
        if train:
            report.layers += _statistics(reference, candidates, dtype)
        _isolate(report, trace, traces, candidates, names, train)
    finally:
        for tracer in (*candidates.values(), reference):  # the first that ran knows how it was
            tracer.restore()
    report.histogram = _histogram(report, trace, traces)
    report.notes += _notes(trace, traces)
    if noise is None:
        report.notes.append("no noise was measured (neither model is torch's): fixed limits")
    return report


def _run(tracer: Tracer, inputs: np.ndarray, train: bool) -> Trace:
    """A trace; whatever a framework raises becomes one line."""
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


def _notes(trace: Trace, traces: Mapping[str, Trace]) -> list[str]:
    """What was not compared, or could not be."""
    notes = []
    for who, other in traces.items():
        if missing := [name for name in trace if name not in other]:
            notes.append(f"in the reference and not in {who}: {', '.join(missing)}")
        if extra := [name for name in other if name not in trace]:
            notes.append(f"in {who} and not in the reference: {', '.join(extra)}")
    if lost := [name for name, call in trace.items() if not np.isfinite(call.output).any()]:
        notes.append(f"the reference has no finite value at {', '.join(lost)}: nothing was compared there")
    return notes


def _renamed(trace: Trace, names: Mapping[str, str] | None) -> Trace:
    ours = {theirs: name for name, theirs in (names or {}).items()}
    return {ours.get(name, name): call for name, call in trace.items()}


def _lonely(
    reference: Tracer, trace: Trace, candidate: Tracer, other: Trace, names: Mapping[str, str] | None
) -> list[str]:
    """The layers with weights that only one side has: mistakes, for a layer that is not called is not right.

    Raises:
        MismatchError: both sides have some, so they are called otherwise; or `names` has what is not there.
    """
    absent = [name for name in names or {} if name not in trace or name not in other]
    if absent:
        theirs = [(names or {}).get(name, name) for name in other]
        known = f"the reference has {', '.join(trace)}; the candidate {', '.join(theirs)}"
        raise MismatchError(f"names=: no layers for {', '.join(map(repr, absent))}; {known}")
    ours = {new: old for old, new in (names or {}).items()}
    weighted = {ours.get(name, name) for name in candidate.weighted()}
    missing = [name for name in trace if name in reference.weighted() and name not in other]
    extra = [name for name in other if name in weighted and name not in trace]
    if not (missing and extra):
        return missing + extra
    pairs = [f"{n} {c.output.shape}" for n, c in trace.items() if n != OUTPUT]
    others = [f"{n} {c.output.shape}" for n, c in other.items() if n != OUTPUT]
    lines = [f"{a:<50} {b}" for a, b in itertools.zip_longest(pairs[:40], others[:40], fillvalue="-")]
    raise MismatchError(
        f"no counterpart for {', '.join((missing + extra)[:5])} in reference and {candidate.framework} "
        "candidate; say which layers are the same with names={reference: candidate}; in order of execution:",
        lines,
    )


def limit_at(noise: float | None, dtype: str) -> float:
    """What an error may be at a point with this noise; see the top of this file."""
    if noise is not None and not np.isfinite(noise):  # float32 overflows there: nothing was measured
        noise = None
    if dtype == "float64":
        return max(tolerances.FLOAT64, tolerances.FLOAT64_FACTOR * (noise or 0.0))
    return tolerances.FLOAT32_UNMEASURED if noise is None else tolerances.float32_limit(noise)


def _points(
    trace: Trace,
    traces: Mapping[str, Trace],
    lonely: Mapping[str, list[str]],
    noise: Mapping[str, float],
    dtype: str,
) -> list[Point]:
    """Outputs in execution order; before the first that fails, its input too, if that differs already.

    A layer with weights that one side has not is off by infinity, in its place or at the end.
    """
    points: list[Point] = []
    for name, call in trace.items():
        others = {who: other[name] for who, other in traces.items() if name in other}
        limit = limit_at(noise.get(name), dtype)
        output = Point(name, call.output.shape, {}, limit, noise.get(name))
        output.errors = {w: tolerances.relative_error(o.output, call.output) for w, o in others.items()}
        output.errors |= {who: math.inf for who, names in lonely.items() if name in names}
        for a, b in itertools.combinations(others, 2):
            error = tolerances.relative_error(others[b].output, others[a].output)
            output.errors[f"{b}-{a}"] = error
        if not output.errors:
            continue
        if output.failures() and not any(point.failures() for point in points):
            entered = Point(f"input of {name}", call.input.shape, {}, limit)
            entered.errors = {w: tolerances.relative_error(o.input, call.input) for w, o in others.items()}
            if entered.failures():
                points.append(entered)
        points.append(output)
    for who, names in lonely.items():
        for name in names:
            if name not in trace:
                shape = traces[who][name].output.shape
                points.append(
                    Point(f"{name} (not in the reference)", shape, {who: math.inf}, limit_at(None, dtype))
                )
    return points


def _statistics(reference: Tracer, candidates: Mapping[str, Tracer], dtype: str) -> list[Point]:
    """The running statistics after the step, in the order of the reference."""
    others = {name: tracer.statistics() for name, tracer in candidates.items()}
    points = []
    for name, value in reference.statistics().items():
        errors = {w: tolerances.relative_error(o[name], value) for w, o in others.items() if name in o}
        points.append(Point(name, value.shape, errors, limit_at(None, dtype)))
    return points


def _isolate(
    report: Report,
    trace: Trace,
    traces: Mapping[str, Trace],
    candidates: Mapping[str, Tracer],
    names: Mapping[str, str] | None,
    train: bool,
) -> None:
    """Run every layer alone on the reference's own input."""
    for who, tracer in candidates.items():
        points = [p for p in report.layers if p.name in trace and p.name in traces[who] and p.name != OUTPUT]
        theirs = {(names or {}).get(point.name, point.name): point for point in points}
        outputs = tracer.alone({name: trace[p.name].input for name, p in theirs.items()}, train=train)
        for name, point in theirs.items():
            wanted = trace[point.name].output
            found = outputs.get(name)
            point.isolated[who] = None if found is None else tolerances.relative_error(found, wanted)


def _histogram(report: Report, trace: Trace, traces: Mapping[str, Trace]) -> Histogram | None:
    """The differences of the layer that fails first, or of the worst."""
    both = {who: {*trace} & {*other} for who, other in traces.items()}
    points = [(p, who) for p in report.layers for who in p.errors if p.name in both.get(who, ())]
    if not points:
        return None
    failing = [(p, who) for p, who in points if who in p.failures()]
    point, who = failing[0] if failing else max(points, key=lambda found: found[0].errors[found[1]])
    wanted, found = trace[point.name].output, traces[who][point.name].output
    if wanted.shape != found.shape:
        return None
    scale = float(np.abs(wanted).max()) or 1.0
    difference = np.abs(found.astype(np.float64) - wanted) / scale
    positive = difference[np.isfinite(difference) & (difference > 0)]
    edges = np.arange(-18, 3)
    counts, _ = np.histogram(np.log10(positive), edges) if positive.size else (np.zeros(20, int), edges)
    return Histogram(
        point.name, who, [float(edge) for edge in edges], counts.tolist(), int((difference == 0).sum())
    )


def _noise(
    reference: Any, candidate: Any, inputs: np.ndarray, dtype: str, train: bool
) -> dict[str, float] | None:
    """What rounding does at each layer of whichever of the two is a torch module; None if neither is."""
    model = next((m for m in (reference, candidate) if is_torch(m)), None)
    return None if model is None else torch_noise(model, inputs, dtype, train)


def torch_noise(model: Any, inputs: np.ndarray, dtype: str, train: bool = False) -> dict[str, float]:
    """Layer -> what rounding in `dtype` does there to a torch module's output; see the top of this file."""
    exact = _run(tracer_of(model, "float64"), inputs, train)
    if dtype == "float32":
        other = _run(tracer_of(model, "float32"), inputs, train)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], inputs.shape)
        moved = inputs.astype(np.float64) * (1 + signs * np.finfo(np.float64).eps)
        other = _run(tracer_of(model, "float64"), moved, train)
    return _carried({n: tolerances.relative_error(c.output, exact[n].output) for n, c in other.items()})


def _carried(noise: dict[str, float]) -> dict[str, float]:
    """The noise of each layer, or of one just before it where that is larger.

    A layer cannot be more exact than what it is given. One of a handful of values may look so, by luck.
    """
    values = list(noise.values())
    return {name: max(values[max(0, i - _CARRIED) : i + 1]) for i, name in enumerate(noise)}
