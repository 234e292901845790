"""Pairs layers that have other names in the candidate: by equal weights, equal outputs, then unique shapes.

Only layers with weights are paired, and only those without a counterpart of the same name. A pair that is not
unique on both sides is no pair: it is left to the caller, with `names=`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.compare.coverage import Ignored
from parity_tests.compare.noise import limit_at
from parity_tests.compare.views import Views
from parity_tests.watch.repeat import Watched
from parity_tests.watch.trace import Tracer
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
) -> Pairing:
    """The layers with other names, as far as they can be told.

    Args:
        first, reference: the reference's run and its tracer.
        run, candidate: the candidate's.
        names: pairs that the caller states.
        ignored: layers that need no counterpart.
        dtype: of the comparison.
    """
    stated = {name.partition(" ")[0] for name in (*names, *names.values())}
    missing = _without(first.weighted, run, stated, ignored)
    extra = _without(run.weighted, first, stated, ignored)
    found: Pairing = {}
    if not (missing and extra):
        return found
    prints = (reference.fingerprints(), candidate.fingerprints())

    def weights(side: int, layer: str) -> list[Any]:
        return [value for value, _ in prints[side].get(layer, ()) if value]

    def shapes(side: int, layer: str) -> list[Any]:
        found = tuple(sorted(shape for _, shape in prints[side].get(layer, ())))
        return [found] if found else []

    _pair("equal weights", weights, missing, extra, found)
    _pair_outputs(first, run, missing, extra, limit_at(None, dtype), found)
    _pair("equal shapes", shapes, missing, extra, found)
    return found


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


def _without(layers: Iterable[str], other: Watched, stated: set[str], ignored: Ignored) -> list[str]:
    """The layers that the other side does not call, not even as a part of a layer that has weights there."""
    called = {*other.weighted, *(call.layer for call in other.trace.values())}
    return [
        name
        for name in layers
        if name not in called
        and name not in stated
        and name not in ignored
        and not any(name.startswith(f"{layer}.") for layer in other.weighted if layer)
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
