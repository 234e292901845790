"""Finds the layers of two live models that belong together, for `weights_convert.transfer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from parity_tests.compare.axes import prepared, watch_nearest
from parity_tests.compare.coverage import Ignored
from parity_tests.compare.layers import compare_models
from parity_tests.compare.noise import limit_at
from parity_tests.compare.pairing import Names, pair_layers, read_names
from parity_tests.compare.report import Report
from parity_tests.compare.views import FLATTENED, Views
from parity_tests.watch.exported.kinds import is_artefact, title_of
from parity_tests.watch.inputs import Inputs, split
from parity_tests.watch.open import is_torch, tracer_of
from parity_tests.watch.repeat import Watched, watch
from parity_tests.watch.trace import TF1Model, Tracer
from weights_convert.errors import MismatchError, SpecError


class Paired(Protocol):
    """A pair of layers of `weights_convert.transfer`."""

    source: str
    target: str


def match_layers(source: Any, target: Any, inputs: Inputs, names: Names = None) -> list[tuple[str, str, str]]:
    """Layer of the source, layer of the target, and the way in which the pair was found, for all weights.

    Raises:
        MismatchError: a layer of either model has no counterpart, or several.
    """
    stated = read_names(names)
    array, sides = _watched(source, target, inputs)
    (first, reference), (run, candidate) = sides
    for ours, theirs in stated.items():
        if ours not in first.weighted or theirs not in run.weighted:
            raise MismatchError(f"names=: no layers with weights for {ours!r}: {theirs!r}")
    pairing = pair_layers(first, reference, run, candidate, stated, Ignored(()), "float32", array)
    found = {ours: (theirs, "stated") for ours, theirs in stated.items()} | pairing
    taken = {theirs for theirs, _ in found.values()}
    for layer in first.weighted:
        if layer not in found and layer in run.weighted and layer not in taken:
            found[layer] = (layer, "equal names")
    taken = {theirs for theirs, _ in found.values()}
    missing = [layer or "the model's own weights" for layer in first.weighted if layer not in found]
    extra = [layer or "the model's own weights" for layer in run.weighted if layer not in taken]
    if missing or extra:
        raise MismatchError(
            f"no certain counterpart for {', '.join(missing) or 'no layer'} of the source and "
            f"{', '.join(extra) or 'no layer'} of the target; state pairs with names={{source: target}}"
        )
    return [(ours, *found[ours]) for ours in first.weighted]


def _watched(
    source: Any, target: Any, inputs: Inputs
) -> tuple[np.ndarray, tuple[tuple[Watched, Tracer], tuple[Watched, Tracer]]]:
    """The inputs, and the run of each model in float32 with its tracer."""
    for model in (source, target):
        if isinstance(model, TF1Model):
            raise SpecError("a TF1Model has a session, expected a torch module or a Keras model")
        if is_artefact(model):
            raise SpecError(f"{title_of(model)} is exported, expected a torch module or a Keras model")
    array, beside = split(inputs)
    first, second = tracer_of(source, "float32"), tracer_of(target, "float32")
    first.beside = second.beside = beside
    array = prepared(first, array, False, {})
    run = watch(first, array, False)
    other, _ = watch_nearest(run.trace, second, array, False, {})
    return array, ((run, first), (other, second))


def live_layers(model: Any) -> Mapping[str, Any]:
    """The layers of a live model by the names that the harness gives them."""
    if is_torch(model):
        from parity_tests.watch.torch_plain import live_layers as of_torch

        return of_torch(model)
    from parity_tests.watch.keras_layers import named_layers

    return dict(named_layers(model))


def flattened_inputs(
    source: Any, target: Any, inputs: Inputs, pairs: Iterable[Paired]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Layers of the source whose input the target has flattened in another order, with the new order of rows.

    Only inputs that agree in that order count, and only where the layer's own output does not agree yet.
    """
    _, ((run, _), (other, _)) = _watched(source, target, inputs)
    views, limit = Views(run.trace, other.trace), limit_at(None, "float32")
    found = {}
    for pair in pairs:
        if pair.source not in run.trace or pair.target not in other.trace:
            continue
        ours, theirs = run.trace[pair.source], other.trace[pair.target]
        view = views.best(theirs.input, ours.input, limit)
        right = views.equal(theirs.output, [ours.output], limit) is not None
        if (
            view.text == FLATTENED
            and not right
            and views.equal(theirs.input, [ours.input], limit) is not None
        ):
            found[pair.source] = view.fed
    return found


def verdict(source: Any, target: Any, inputs: Inputs, pairs: Iterable[Paired]) -> Report:
    """The harness's report on the two models with these pairs."""
    return compare_models(
        source, target, inputs, names={p.source: p.target for p in pairs if p.source != p.target}
    )
