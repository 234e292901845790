"""Pairs layers that have other names in the candidate.

By equal weights, equal outputs, unique shapes, the layers that feed them (`feeding`), and last by names.

Only layers with weights are paired, and only those without a counterpart of the same name. A pair that is not
unique on both sides is no pair: it is left to the caller, with `names=`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.compare.coverage import Ignored
from parity_tests.compare.feeding import Feeders, feeders, last_of_group, numbers, pair_by_feeders
from parity_tests.compare.noise import limit_at
from parity_tests.compare.views import Views
from parity_tests.watch.repeat import Watched
from parity_tests.watch.trace import Fingerprint, Tracer
from weights_convert.errors import SpecError

Names = Mapping[str, str] | str | Path | None
Pairing = dict[str, tuple[str, str]]  # layer of the reference -> (layer of the candidate, how it was found)


def read_names(names: Names) -> dict[str, str]:
    """The pairs of `names=`, which may be a JSON file: {reference: candidate}, or a pairing of a report.

    Raises:
        SpecError: the file cannot be read or has no such pairs.
    """
    if names is None or isinstance(names, Mapping):
        return dict(names or {})
    try:
        found = json.loads(Path(names).read_text("utf-8"))
        return {
            str(ours): theirs if isinstance(theirs, str) else str(theirs[0]) for ours, theirs in found.items()
        }
    except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
        raise SpecError(
            f"names={str(names)!r}: expected a JSON file of {{reference: candidate}} ({type(error).__name__})"
        ) from error


def pair_layers(
    first: Watched,
    reference: Tracer,
    run: Watched,
    candidate: Tracer,
    names: Mapping[str, str],
    ignored: Ignored,
    dtype: str,
    inputs: np.ndarray,
) -> Pairing:
    """The layers with other names, as far as they can be told.

    Args:
        first, reference: the reference's run and its tracer.
        run, candidate: the candidate's.
        names: pairs that the caller states.
        ignored: layers that need no counterpart.
        dtype, inputs: of the comparison.
    """
    stated = {name.partition(" ")[0] for name in (*names, *names.values())}
    missing = _without(first, run, stated, ignored)
    extra = _without(run, first, stated, ignored)
    found: Pairing = {}
    if not (missing and extra):
        return found
    prints = (reference.fingerprints(), candidate.fingerprints())

    def weights(side: int, layer: str) -> list[Any]:
        return [value for value, _ in prints[side].get(layer, ()) if value]

    def shapes(side: int, layer: str) -> list[Any]:
        found = tuple(shapes_of(prints[side], layer))
        return [found] if found else []

    def by_name(side: int, layer: str) -> list[Any]:
        return [(*shapes(side, layer), layer.rpartition(".")[2])]

    _pair("equal weights", weights, missing, extra, found)
    _pair_outputs(first, run, missing, extra, limit_at(None, dtype), found)
    _pair("equal shapes", shapes, missing, extra, found)
    if missing and extra:
        known = {layer: layer for layer in first.weighted if layer in run.weighted and layer not in stated}
        known |= dict(names) | {ours: theirs for ours, (theirs, _) in found.items()}
        sides = feeders(first, reference, inputs), feeders(run, candidate, inputs)
        own = [lambda layer, side=side: shapes_of(prints[side], layer) for side in (0, 1)]
        _pair_fed(sides, own, known, missing, extra, found)
        _pair_groups(own, missing, extra, found)
    _pair("equal shapes and the end of the name", by_name, missing, extra, found)
    return found


def _pair_fed(
    sides: tuple[Feeders | None, Feeders | None],
    shapes: Sequence[Callable[[str], list[tuple[int, ...]]]],
    known: Mapping[str, str],
    missing: list[str],
    extra: list[str],
    found: Pairing,
) -> None:
    """Pair by equal shapes and the layers that feed a layer, then by the number of weights and these.

    The kernels alone count first (torch's LSTM has two biases), then all weights (Keras's attention has
    split projections).
    """
    ours, theirs = sides
    if ours is None or theirs is None:
        return
    kernels = [lambda layer, shape=shape: numbers(shape(layer)) for shape in shapes]
    totals = [lambda layer, shape=shape: [(sum(map(math.prod, shape(layer))),)] for shape in shapes]
    tiers = (("shapes", shapes), ("numbers of weights", kernels), ("numbers of weights", totals))
    for how, (left, right) in tiers:
        certain = {**known, **{a: b for a, (b, _) in found.items()}}
        for a, b in pair_by_feeders((ours, theirs), (left, right), certain, missing, extra).items():
            _found(a, b, f"equal {how} and the layers that feed it", missing, extra, found)


def shapes_of(prints: Mapping[str, Sequence[Fingerprint]], layer: str) -> list[tuple[int, ...]]:
    """The sizes of a layer's weights, in no order."""
    return sorted(shape for _, shape in prints.get(layer, ()))


def _pair_groups(
    shapes: Sequence[Callable[[str], list[tuple[int, ...]]]],
    missing: list[str],
    extra: list[str],
    found: Pairing,
) -> None:
    """Pair one layer with the last of several layers that have the same kernels together."""
    how = "the kernels of several layers"
    for layer in list(extra):
        if last := last_of_group(missing, shapes[0], shapes[1](layer)):
            _found(last, layer, how, missing, extra, found)
    for layer in list(missing):
        if last := last_of_group(extra, shapes[1], shapes[0](layer)):
            _found(layer, last, how, missing, extra, found)


def _pair(
    how: str, keys: Callable[[int, str], list[Any]], missing: list[str], extra: list[str], found: Pairing
) -> None:
    """Pair the layers that share a key that no other layer on either side has."""
    owners: dict[Any, tuple[set[str], set[str]]] = {}
    for side, layers in enumerate((missing, extra)):
        for layer in layers:
            for key in keys(side, layer):
                owners.setdefault(key, (set(), set()))[side].add(layer)
    for left, right in owners.values():
        if len(left) == len(right) == 1 and left <= {*missing} and right <= {*extra}:
            _found(left.pop(), right.pop(), how, missing, extra, found)


def _found(ours: str, theirs: str, how: str, missing: list[str], extra: list[str], found: Pairing) -> None:
    found[ours] = (theirs, how)
    missing.remove(ours)
    extra.remove(theirs)


def _without(watched: Watched, other: Watched, stated: set[str], ignored: Ignored) -> list[str]:
    """The layers that the other side does not call.

    A layer inside another that both sides call, and that has weights on the other side, needs no counterpart.
    """
    own = {call.layer for call in watched.trace.values()}
    called = {*other.weighted, *(call.layer for call in other.trace.values())}
    return [
        name
        for name in watched.weighted
        if name not in called
        and name not in stated
        and name not in ignored
        and not any(name.startswith(f"{layer}.") and layer in own for layer in other.weighted if layer)
    ]


def _pair_outputs(
    first: Watched, run: Watched, missing: list[str], extra: list[str], limit: float, found: Pairing
) -> None:
    """Pair the layers whose outputs agree, if there is only one such layer on either side."""
    views = Views(first.trace, run.trace)

    def outputs(watched: Watched, layer: str) -> list[np.ndarray]:
        return [call.output for call in watched.trace.values() if call.layer == layer]

    agreeing = [
        (ours, theirs)
        for ours in missing
        for theirs in extra
        if any(views.equal(x, outputs(first, ours), limit) is not None for x in outputs(run, theirs))
    ]
    for ours, theirs in agreeing:
        if sum(a == ours or b == theirs for a, b in agreeing) == 1:
            _found(ours, theirs, "equal outputs", missing, extra, found)


def notes(who: str, pairing: Pairing) -> list[str]:
    """Notes on the pairs, sorted by the way they were found."""
    found: dict[str, list[str]] = {}
    for ours, (theirs, how) in pairing.items():
        found.setdefault(how, []).append(f"{ours} with {theirs}")
    return [f"{who}: paired by {how}: {', '.join(pairs)}" for how, pairs in found.items()]
