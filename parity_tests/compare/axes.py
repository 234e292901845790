"""The axes of the input: stated by the caller, or the ones with which the outputs of both models agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity_tests.compare.views import SAME_AXES, Views
from parity_tests.judge import tolerances
from parity_tests.watch.exported.base import Exported
from parity_tests.watch.repeat import Watched, run, watch
from parity_tests.watch.structure import paired
from parity_tests.watch.trace import Trace, Tracer, is_index
from weights_convert.errors import SpecError

LAYOUTS = ("moved", "same")  # channels last in Keras and TF1 and second in torch; or the same axes in both


def check_layouts(layouts: Mapping[str, str]) -> None:
    for name, layout in layouts.items():
        if layout not in LAYOUTS:
            raise SpecError(f"layouts={{{name!r}: {layout!r}}}: expected 'moved' or 'same'")


def prepared(tracer: Tracer, inputs: np.ndarray, train: bool, layouts: Mapping[str, str]) -> np.ndarray:
    """Choose the axes of the reference's input; indices that it takes only as numbers become numbers."""
    axes = _choices(tracer, inputs, layouts)
    choices = [inputs, inputs.astype(np.float64)] if is_index(inputs) else [inputs]
    refused: SpecError | None = None
    for same in axes:
        for given in choices:
            try:
                tracer.same_axes = same
                run(tracer, given, train)
                tracer.restore()
                return given
            except SpecError as error:
                refused = refused or error
    assert refused is not None
    raise refused


def watch_nearest(
    first: Trace, tracer: Tracer, inputs: np.ndarray, train: bool, layouts: Mapping[str, str]
) -> tuple[Watched, list[str]]:
    """Run a candidate with the axes of the input that bring its outputs nearest to the reference's."""
    first_choice, *others = _choices(tracer, inputs, layouts)
    tracer.same_axes = first_choice
    if not others or inputs.ndim < 3:
        return watch(tracer, inputs, train), []
    refused: SpecError | None = None
    try:
        usual = watch(tracer, inputs, train)
        error = _error(first, usual.trace)
        if error <= tolerances.CEILING:
            return usual, []
    except SpecError as reason:
        refused, error = reason, np.inf
    tracer.same_axes = others[0]
    try:
        other = watch(tracer, inputs, train)
        if refused or _error(first, other.trace) < error:
            axes = SAME_AXES if tracer.same_axes else "channels last"
            return other, [f"{tracer.framework}: {axes} at the input"]
    except SpecError:
        pass
    tracer.same_axes = first_choice
    if refused:
        raise refused
    return usual, []


def _choices(tracer: Tracer, inputs: np.ndarray, layouts: Mapping[str, str]) -> list[bool]:
    """The values of `Tracer.same_axes` to try: the stated one, else the usual one first."""
    free = tracer.either_axes if isinstance(tracer, Exported) else tracer.framework in ("keras", "tf1")
    if "input" in layouts and free:
        return [layouts["input"] == "same"]
    if isinstance(tracer, Exported):
        return tracer.layouts(inputs)
    return list(dict.fromkeys((tracer.same_axes, True)))


def _error(first: Trace, trace: Trace) -> float:
    """The largest error of an output, in the order of axes that fits best."""
    views, errors = Views(first, trace), []
    for theirs, ours in paired(first.outputs, trace.outputs).items():
        found, wanted = trace[theirs].output, first[ours].output
        view = views.best(found, wanted, tolerances.CEILING, flat=False)
        errors.append(tolerances.relative_error(view.seen(found), wanted))
    return max(errors, default=np.inf)
