"""`compare_models`: finds the first layer that differs, and the layer that is wrong by itself.

It compares every layer's output, the model's outputs and, in train mode, the running statistics, each with a
limit from the rounding noise there (`noise`). It runs each model twice (`repeat`) and counts what was
compared (`coverage`). Then it runs every layer alone on the reference's input: a wrong layer differs there
too, the layers after it do not.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from parity_tests.compare.accuracy import check_top1
from parity_tests.compare.artefacts import (
    judged_by_accuracy,
    outputs_of,
    own_dtype,
    sees_outputs_only,
    shows_no_common_layer,
)
from parity_tests.compare.axes import check_layouts, prepared, watch_nearest
from parity_tests.compare.coverage import OWN, Ignored, Renamed, coverage, covers_call
from parity_tests.compare.environment import environment
from parity_tests.compare.noise import limit_at, torch_noise
from parity_tests.compare.orders import judge_layers
from parity_tests.compare.pairing import Names, pair_layers, read_names
from parity_tests.compare.pairing import notes as pairing_notes
from parity_tests.compare.points import Matched
from parity_tests.compare.power.of_report import power_of_report
from parity_tests.compare.remarks import conditions, left_over, rounding_notes
from parity_tests.compare.report import Histogram, Point, Report
from parity_tests.compare.rounding import accept_rounding, check_float32_rounding
from parity_tests.compare.scales import Noise, scale_that_differs
from parity_tests.compare.statistics import check_biased_variance, statistics
from parity_tests.judge import tolerances
from parity_tests.watch.exported.base import Exported
from parity_tests.watch.exported.kinds import opened, title_of
from parity_tests.watch.inputs import Beside, Inputs, split
from parity_tests.watch.open import is_keras, is_torch, tracer_of
from parity_tests.watch.repeat import Watched, refuse_random, watch
from parity_tests.watch.trace import Tracer
from weights_convert.errors import MismatchError, SpecError

__all__ = ["assert_parity", "compare_models", "compare_tracers", "limit_at", "torch_noise"]


def compare_models(
    reference: Any,
    candidate: Any,
    inputs: Inputs,
    *,
    names: Names = None,
    dtype: str = "float64",
    train: bool = False,
    title: str = "",
    ignore: Iterable[str] = (),
    biased_variance: str = "note",
    float32_rounding: str = "note",
    layouts: Mapping[str, str] | None = None,
    top1: float | None = None,
) -> Report:
    """Compare two models layer by layer; their weights are assumed to be loaded.

    Args:
        reference, candidate: a torch module, a Keras model (channels last) or a `TF1Model`; or an exported
            artefact, as a path or an object, or a `Callable`. An artefact computes in its own dtype.
        inputs: (N, C, H, W), or any other array: sequences, tokens, indices (int32 or int64). Several
            inputs are a list of arrays in order, or a dict by keyword. Small models that agree are also
            compared on 10, 100 and -1 times the inputs.
        names: layer of the reference -> the same layer of the candidate, for names that differ; also for
            outputs ("output y": "output z"). Or a JSON file of them. Layers with weights that it does not
            state are paired by equal weights, equal outputs or unique shapes, see `Report.pairing`.
        dtype: "float64" proves the logic, "float32" the rounding.
        train: use batch statistics and compare the running statistics after the step.
        title: of the report.
        ignore: layers with weights, outputs and statistics that need no comparison, each including everything
            inside it. Parity does not hold if others are not compared.
        biased_variance: "note" accepts Keras's running variance, biased by n / (n - 1), and adds a note;
            "fail" counts it as a difference.
        float32_rounding: "note" accepts a float64 error of a layer that computes in float32, as Keras's
            `UpSampling2D`, and adds a note; "fail" counts it as a difference.
        layouts: "input" or the name of an output -> "moved" (channels second in torch, last in Keras and
            TF1) or "same" (the same axes in both). Without it the layout is the one with which the outputs
            agree, and the report has a note.
        top1: of a quantised artefact, the smallest accepted share of inputs with the same class. Without it
            there are figures of accuracy (`Report.accuracy`) and no verdict of equality.

    Raises:
        SpecError: a model is none of these, cannot be read or does not run in `dtype`, or the reference gives
            two outputs for one input.
        MismatchError: no layers can be matched.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> report = compare_models(model, model, np.ones((1, 3, 8, 8)))
        >>> report.holds, [point.name for point in report.layers]
        (True, ['0', '1', 'output'])
    """
    check_dtype(dtype)
    check_float32_rounding(float32_rounding)
    array, beside = split(inputs)
    check_layouts(layouts or {})
    check_top1(top1)
    keywords: dict[str, Any] = {"names": names, "train": train, "ignore": ignore}
    keywords |= {"biased_variance": biased_variance}
    keywords |= {"title": title or f"{title_of(reference)} and {title_of(candidate)}", "top1": top1}
    accept = float32_rounding == "note"
    reference, candidate = opened(reference), opened(candidate)
    dtype = own_dtype(reference, candidate, dtype)
    try:
        return _compare(reference, candidate, array, beside, dtype, layouts, accept, keywords)
    except SpecError as error:
        if dtype == "float32" or not _lacks_float64(error.__cause__):
            raise
        report = _compare(reference, candidate, array, beside, "float32", layouts, accept, keywords)
        report.notes.insert(0, f"compared in float32: {error}")
        return report


def _lacks_float64(error: BaseException | None) -> bool:
    """Whether a framework has no float64 kernel for an operation, as TensorFlow for a 3-D average pool."""
    return "DT_DOUBLE" in str(error) or "'Double'" in str(error)


def _compare(
    reference: Any,
    candidate: Any,
    array: np.ndarray,
    beside: Beside,
    dtype: str,
    layouts: Mapping[str, str] | None,
    accept_float32: bool,
    keywords: Mapping[str, Any],
) -> Report:
    first, second = tracer_of(reference, wide(reference, dtype)), tracer_of(candidate, dtype, as_it_is=True)
    first.beside = second.beside = beside
    array = prepared(first, array, keywords["train"], layouts or {})

    def noise(x: np.ndarray, dtype: str = dtype) -> dict[str, float] | None:
        return _noise(reference, candidate, x, beside, dtype, keywords["train"])

    return compare_tracers(
        first,
        {second.framework: second},
        array,
        noise=noise(array),
        layouts=layouts,
        float32_noise=partial(noise, dtype="float32") if accept_float32 and dtype == "float64" else None,
        scan=noise,
        **keywords,
    )


def assert_parity(reference: Any, candidate: Any, inputs: Inputs, **keywords: Any) -> Report:
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
    names: Names = None,
    noise: Mapping[str, float] | None = None,
    train: bool = False,
    title: str = "",
    ignore: Iterable[str] = (),
    biased_variance: str = "note",
    bit_for_bit: Collection[str] = (),
    layouts: Mapping[str, str] | None = None,
    float32_noise: Noise | None = None,
    scan: Noise | None = None,
    top1: float | None = None,
) -> Report:
    """`compare_models` for tracers, with several candidates at once.

    Args:
        bit_for_bit: weights of the torch module that are known to be identical in every other model.
        float32_noise: inputs -> noise of float32, to accept float32 arithmetic in layers of a float64 model;
            None for a difference like any other.
        scan: inputs -> noise, to compare larger and negative inputs too.
        top1: of a quantised artefact, see `compare_models`.
    """
    check_biased_variance(biased_variance)
    ignored, names = Ignored(ignore), read_names(names)
    dtype = next(iter(candidates.values())).dtype
    pairs = [f"{b}-{a}" for a, b in itertools.combinations(candidates, 2)]  # pairs of candidates
    report = Report(title, reference.framework, [*candidates, *pairs], dtype, "train" if train else "eval")
    report.images = inputs.shape
    report.environment = environment()
    try:
        first = watch(reference, inputs, train)
        refuse_random(reference, first)
        watched = {}
        for who, tracer in candidates.items():
            watched[who], notes = watch_nearest(first.trace, tracer, inputs, train, layouts or {})
            report.notes += notes
        if sees_outputs_only(reference, candidates):
            report.outputs_only = list(candidates)
            first = outputs_of(first)
            watched = {who: outputs_of(run) for who, run in watched.items()}
        for who, run in watched.items():
            sides = (first, reference, run, candidates[who])
            report.pairing[who] = pair_layers(*sides, names, ignored, dtype, inputs)
            report.notes += pairing_notes(who, report.pairing[who])
        renamed = {
            who: Renamed(first.trace, run, names | {a: b for a, (b, _) in report.pairing[who].items()})
            for who, run in watched.items()
        }
        if not report.outputs_only and shows_no_common_layer(first.trace, renamed):
            report.outputs_only = list(candidates)
            first = outputs_of(first)
            renamed = {who: Renamed(first.trace, outputs_of(run), {}) for who, run in watched.items()}
        _check_names(first, watched, renamed, names, ignored)
        moved: list[Point] = []
        if train:
            runs = {who: (run, renamed[who].statistics) for who, run in watched.items()}
            moved, notes = statistics(first, runs, dtype, biased_variance)
            report.notes += notes
        compared = (ignored, noise or {}, dtype, layouts or {}, moved)
        matched, report.layers, notes = judge_layers(first, renamed, candidates, inputs, train, *compared)
        report.notes += notes
        if float32_noise is not None and not train:
            for who, m in matched.items():
                accept_rounding(report, who, m, reference, candidates[who], partial(float32_noise, inputs))
    finally:
        for tracer in (*candidates.values(), reference):  # last the reference, which ran first
            tracer.restore()
    traces = {who: run.trace for who, run in renamed.items()}
    report.coverage = {who: _coverage(report, first, m, ignored) for who, m in matched.items()}
    report.histogram = _histogram(report, matched)
    report.notes += [note for m in matched.values() for note in m.notes()]
    report.notes += left_over(first.trace, traces)
    report.notes += [note for tracer in (reference, *candidates.values()) for note in tracer.notes]
    report.notes += conditions(renamed, noise, dtype, train)
    report.notes += rounding_notes(report)
    if judged_by_accuracy(report, reference, candidates, matched, top1):
        return report
    if report.holds and scan is not None and not train:
        limits = {point.name: point.limit for point in report.layers}
        for who, m in matched.items():
            scale = scale_that_differs(first.trace, m, limits, reference, candidates[who], inputs, scan)
            if scale is not None:
                other = compare_tracers(
                    reference,
                    candidates,
                    inputs * scale,
                    names=names,
                    noise=scan(inputs * scale),
                    title=title,
                    ignore=ignored.entries,
                    layouts=layouts,
                    float32_noise=float32_noise,
                )
                other.notes.insert(0, f"{who} agrees on the inputs as given; these are {scale:g} times them")
                return other
    if report.holds:  # power only matters without a difference
        own = {who: (tracer, renamed[who]) for who, tracer in candidates.items()}
        report.power = power_of_report(report, reference, first.trace, own, inputs, ignored, bit_for_bit)
    return report


def _check_names(
    first: Watched,
    watched: Mapping[str, Watched],
    renamed: Mapping[str, Renamed],
    names: Mapping[str, str],
    ignored: Ignored,
) -> None:
    """Raise `MismatchError` for entries of `names` and `ignore` that match nothing."""
    for run in renamed.values():
        traces = (first.trace, run.trace)
        absent = [n for n in names if any(all(not covers_call(n, call) for call in t) for t in traces)]
        if absent:
            known = f"the reference has {', '.join(first.trace)}; the candidate {', '.join(run.own.values())}"
            raise MismatchError(f"names=: no layers for {', '.join(map(repr, absent))}; {known}")
    known_names = [OWN]
    for one in (first, *watched.values()):
        known_names += [*one.weighted, *one.trace, *one.trace.opaque, *one.statistics]
    for other in renamed.values():
        known_names += [*other.weighted, *other.trace, *other.statistics]
    ignored.check(known_names)


def _coverage(report: Report, first: Watched, m: Matched, ignored: Ignored) -> dict[str, Any]:
    """How much of the reference and of a candidate was compared."""
    run = m.run
    compared = {point.name for point in report.layers if m.who in point.errors}
    both = {name for name in compared if name in first.trace and name in run.trace}
    both |= {name for name in compared if name in first.statistics and name in run.statistics}
    both |= m.grouped
    common = first.trace.keys() & run.trace.keys()
    return {
        "reference": coverage(first.trace, first.weighted, first.statistics, both, common, ignored),
        "candidate": coverage(run.trace, run.weighted, run.statistics, both, common, ignored),
    }


def _histogram(report: Report, matched: Mapping[str, Matched]) -> Histogram | None:
    """The differences of the first failing layer, else of the worst layer."""
    singly = {who: {n for n, j in m.judged.items() if not j.group} for who, m in matched.items()}
    points = [(p, who) for p in report.layers for who in p.errors if p.name in singly.get(who, ())]
    if not points:
        return None
    failing = [(p, who) for p, who in points if who in p.failures()]
    point, who = failing[0] if failing else max(points, key=lambda found: found[0].errors[found[1]])
    m = matched[who]
    view = m.judged[point.name].view
    wanted = tolerances.widened(m.trace[point.name].output)
    found = tolerances.widened(view.seen(m.run.trace[point.name].output))
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
    reference: Any, candidate: Any, inputs: np.ndarray, beside: Beside, dtype: str, train: bool
) -> dict[str, float] | None:
    """The rounding noise at each layer of the model that is a torch module; None if neither is.

    Of a Keras model beside an artefact too: its float32 against its float64.
    """
    model = next((m for m in (reference, candidate) if is_torch(m)), None)
    if model is not None:
        return torch_noise(model, inputs, dtype, train, beside)
    keras = next((m for m in (reference, candidate) if is_keras(m)), None)
    if (
        keras is None
        or dtype != "float32"
        or not any(isinstance(m, Exported) for m in (reference, candidate))
    ):
        return None
    try:
        return torch_noise(keras, inputs, dtype, train, beside)
    except SpecError:  # it does not run in float64
        return None
