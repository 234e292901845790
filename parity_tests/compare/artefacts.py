"""Exported artefacts in a comparison: their dtype, outputs without layers, accuracy in place of equality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from parity_tests.compare.accuracy import accuracy_of, worst
from parity_tests.compare.coverage import Renamed
from parity_tests.compare.points import Matched
from parity_tests.compare.report import Report
from parity_tests.watch.exported.base import LOW, Exported
from parity_tests.watch.repeat import Watched
from parity_tests.watch.trace import Trace, Tracer


def own_dtype(reference: Any, candidate: Any, dtype: str) -> str:
    """float32 if an artefact computes in no more, else the requested dtype."""
    exported = [model for model in (reference, candidate) if isinstance(model, Exported)]
    for model in exported:
        if model.dtype == "float32" and dtype == "float64":
            model.notes.append(f"{model.what} computes in {model.precision}: compared in float32")
            dtype = "float32"
    return dtype


def sees_outputs_only(reference: Tracer, candidates: Mapping[str, Tracer]) -> bool:
    """Whether some model shows nothing but its outputs."""
    return any(
        isinstance(model, Exported) and (model.outputs_only or model.precision in LOW)
        for model in (reference, *candidates.values())
    )


def shows_no_common_layer(first: Trace, renamed: Mapping[str, Renamed]) -> bool:
    """Whether an exported graph and the other model share no layer, so that only outputs are left."""
    return any(
        (first.exported or run.trace.exported)
        and not {*first} & {*run.trace} - {*first.outputs, *run.trace.outputs}
        for run in renamed.values()
    )


def outputs_of(watched: Watched) -> Watched:
    """A run without its layers and weights."""
    trace = Trace({name: watched.trace[name] for name in watched.trace.outputs})
    trace.outputs, trace.opaque = list(watched.trace.outputs), list(watched.trace.opaque)
    trace.moved = watched.trace.moved
    unstable = {name: error for name, error in watched.unstable.items() if name in trace}
    return watched._replace(trace=trace, weighted={}, unstable=unstable)


def judged_by_accuracy(
    report: Report,
    reference: Tracer,
    candidates: Mapping[str, Tracer],
    matched: Mapping[str, Matched],
    top1: float | None,
) -> bool:
    """Replace the limits of a report on quantised artefacts by figures of accuracy.

    Not if an output differs in shape or was not compared: that is no matter of precision.
    """
    for who, candidate in candidates.items():
        low = [m for m in (candidate, reference) if isinstance(m, Exported) and m.precision in LOW]
        if not low:
            continue
        m = matched[who]
        outputs = [name for name in m.trace.outputs if name in m.judged]
        infinite = any(not math.isfinite(m.judged[name].error) for name in outputs)
        if not outputs or infinite or report.coverage[who]["reference"].left_out:
            continue
        figures = []
        for name in outputs:
            found = m.judged[name].view.seen(m.run.trace[name].output)
            step = low[0].step if low[0] is candidate and name == outputs[0] else 0.0
            figures.append(accuracy_of(low[0].precision, step, found, m.trace[name].output, top1))
        report.accuracy[who] = worst(figures)
    if report.accuracy:
        for point in report.layers:
            point.limit, point.isolated = math.inf, {}
    return bool(report.accuracy)
